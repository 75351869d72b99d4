from dataclasses import replace

import pytest
import tiny
import torch

from muwa.methods._edits import difference, edit_of, forget_pairs, nonzero, retain_pairs
from muwa.types.search import BOTH_TOWERS, NOTHING_EDITED, Candidate, Evaluation, Search


def test_forget_pairs_are_joined_in_the_order_of_the_names():
    task = tiny.task()
    two = replace(
        task, names=tiny.NAMES[:2], forget={name: tiny.pairs(3, names=(name,)) for name in tiny.NAMES[:2]}
    )
    joined = forget_pairs(two)
    assert joined.captions == ("a photo of Ada Fox",) * 3 + ("a photo of Bo Hill",) * 3
    assert joined.images == two.forget["Ada Fox"].images + two.forget["Bo Hill"].images
    assert joined.keys == two.forget["Ada Fox"].keys + two.forget["Bo Hill"].keys
    with pytest.raises(ValueError, match=r"task: no pairs of Ada Fox to forget \(an empty forget set\)"):
        forget_pairs(replace(task, forget={"Ada Fox": tiny.pairs(0)}))


def test_retain_pairs_mention_no_forgotten_name():
    task = tiny.task()
    assert retain_pairs(task).keys == tuple(f"k{i}" for i in range(12) if i not in (0, 8))
    with pytest.raises(ValueError, match="task: no retain pairs"):
        retain_pairs(replace(task, mentions=tuple(range(12))))


def test_a_difference_names_only_what_changed():
    start = {"a": torch.ones(2), "b": torch.ones(2)}
    got = difference({"a": torch.ones(2), "b": torch.tensor([1.0, 3.0])}, start)
    assert {name: delta.tolist() for name, delta in got.items()} == {"b": [0.0, 2.0]}
    assert list(nonzero({"a": torch.zeros(2), "b": torch.tensor([0.0, -1.0])})) == ["b"]


def search(chosen):
    """Two evaluations of two layers moved together."""
    before = Evaluation(NOTHING_EDITED, 0, 0.0, "step", 0.0, False, 1.0, 1.0, 0.0, 1.0, {})
    both = Candidate({"": "a + b"}, BOTH_TOWERS)
    trace = tuple(replace(before, candidate=both, step=step, relative_norm=step / 10) for step in (1.0, 2.0))
    return Search("Ada Fox", "best", "tensor", {}, (), before, trace, chosen, "")


def test_an_edit_has_one_move_per_name_and_the_deltas_that_change_anything():
    task, chosen = replace(tiny.task(), names=("Ada Fox", "Bo Hill")), search(1)
    edit = edit_of(task, chosen, {"a": torch.zeros(2), "b": torch.ones(2)}, 7)
    assert [move.concept for move in edit.moves] == ["Ada Fox", "Bo Hill"]
    assert {(m.layer, m.tower, m.step, m.relative_norm) for m in edit.moves} == {("a + b", "both", 2.0, 0.2)}
    assert (list(edit.deltas), edit.searches, edit.samples) == (["b"], (chosen,), 7)


def test_the_edit_of_a_search_that_chose_nothing_is_empty():
    none = search(None)
    edit = edit_of(tiny.task(), none, {"b": torch.ones(2)}, 7)
    assert (edit.deltas, edit.moves, edit.searches, edit.samples) == ({}, (), (none,), 7)
