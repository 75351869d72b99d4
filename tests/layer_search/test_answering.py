"""The search by answers, on real answers of a tiny model: what it counts, what it may move, what it refuses."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
import torch
from eval.answers.test_accuracy import alike

from muwa.eval.answers.matching import named
from muwa.eval.clip.accuracy import wilson
from muwa.layer_search.answering import Answers, answering
from muwa.layer_search.candidates import Candidate, moved
from muwa.models.vlm.model import TOWER
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.types.gradients import Gradients

LAYER = "visual.transformer.resblocks.0.mlp.c_fc.weight"
SMALL = {"wordings": tiny_vlm.WORDINGS, "start": "ratio", "forget_at_most": 0.5, "retain_pictures": 9, "max_evals": 4,
         "candidates": 2, "lost_at_most": 0.9}  # fmt: skip


def gradients() -> dict[str, Gradients]:
    generator = torch.Generator().manual_seed(3)
    made = {n: torch.randn(w.shape, generator=generator) for n, w in tiny.clip().weights.items()}
    return {TOWER: Gradients(made, {n: g.flip(0) for n, g in made.items()}, 4, 4, {"made": "here"})}


def taught():
    """A task whose right answers are what the unedited model says: it knows everything, before an edit."""
    model, task = tiny_vlm.vlm(), tiny.task()
    aliases: dict[str, list[str]] = {}
    for split in (task.probe, task.eval):
        asked = questions(task, split, wordings=tiny_vlm.WORDINGS)
        for one, said in zip(asked, QuestionAnswering(model).ask(asked), strict=True):
            aliases.setdefault(one.accepted[0], []).append(said)
    return model, task, aliases


def test_rates_are_those_counted_by_hand() -> None:
    model, task, aliases = taught()
    judge = Answers(model, gradients(), task, None, tiny_vlm.WORDINGS, aliases, 1, 9, 0.5, False)
    before = judge.before()
    assert (before.forget_top1, before.retain_top1, before.utility_top1, before.feasible) == (1, 1, 1, False)
    assert judge.counts == (6, 3)
    layer = next(one for one in model.clip.layers("tensor") if one.name == LAYER)
    row, lost = judge.judge(Candidate({TOWER: layer}, 0.1), 0.8)
    edited = model.edited(moved(model, gradients(), {TOWER: layer}, 0.8))
    first = {kind: texts[:1] for kind, texts in tiny_vlm.WORDINGS.items()}
    asked = questions(task, task.probe, wordings=first, aliases=aliases, retain=6, utility=3)
    hits: dict[str, list[bool]] = {"forget": [], "retain": [], "utility": []}
    for one, said in zip(asked, QuestionAnswering(edited).ask(asked), strict=True):
        hits[one.role].append(named(said, one.accepted, one.others))
    assert row.forget_top1 == sum(hits["forget"]) / 2
    assert row.retain_top1 == sum(hits["retain"]) / 6
    assert row.utility_top1 == sum(hits["utility"]) / 3
    kept = hits["retain"] + hits["utility"]
    assert lost == wilson(kept.count(False), 9)[1]
    assert row.relative_norm == pytest.approx(0.8, rel=1e-5)


def test_anothers_exact_name_is_not_counted_as_the_forgotten(monkeypatch) -> None:
    task = replace(alike(), probe=alike().eval)
    monkeypatch.setattr(QuestionAnswering, "ask", lambda self, asked: ["Rachel Bilson"] * len(asked))
    before = Answers(tiny_vlm.vlm(), gradients(), task, None, tiny_vlm.WORDINGS, {}, 1, 9, 0.5, False).before()
    assert (before.forget_top1, before.retain_top1) == (0, 1 / 6)


def test_it_moves_only_what_the_model_reads_and_confirms_in_all_wordings() -> None:
    model, task, aliases = taught()
    found = answering(model, gradients(), task, task.names[0], aliases=aliases, search_wordings=2, **SMALL)
    assert found.scores
    assert all("resblocks.1" not in name and name.startswith("visual.") for name in found.scores)
    assert {row.tower for row in found.trace} == {"vision"}
    if found.chosen is not None:
        assert found.chosen == len(found.trace) - 1
        assert "Asked again in 2 wordings" in found.why
    else:
        assert not found.trace[-1].feasible or "None of" in found.why


def test_too_few_pictures_for_the_interval_are_refused() -> None:
    model, task = tiny_vlm.vlm(), tiny.task()
    with pytest.raises(ValueError, match="no step could be feasible. Take at least 12"):
        answering(model, gradients(), task, task.names[0], **{**SMALL, "forget_at_most": 0.25})
    with pytest.raises(ValueError, match="search_wordings: got 0, want at least 1"):
        answering(model, gradients(), task, task.names[0], search_wordings=0, **SMALL)
    with pytest.raises(ValueError, match="a style is not asked for by name"):
        answering(model, gradients(), replace(task, kind="style"), "x", **{**SMALL, "wordings": {"style": ("a", "b")}})
