"""The search by answers, on answers of a tiny model: what it may edit, how it confirms, what it refuses."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
from layer_search.evaluators.test_answers import GRADIENTS, knowing
from records import part

from muwa.run import Run

SMALL = {
    "wordings": tiny_vlm.WORDINGS, "start": "ratio", "forget_at_most": 0.5, "retain_pictures": 9, "max_evals": 4,
    "candidates": 2, "lost_at_most": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("rule", ["constrained", "paper"])
def test_it_edits_only_what_the_model_reads_and_confirms_in_all_wordings(rule) -> None:
    model, task, aliases = knowing()
    search = part("layer_search=answering", aliases=aliases, rule=rule, **SMALL)
    search.check(model, task)
    found = search(model, GRADIENTS, task, task.names[0], run=Run())
    assert found.scores
    assert all("resblocks.1" not in name and name.startswith("visual.") for name in found.scores)
    assert {row.candidate.tower for row in found.trace} == {"vision"}
    assert {tuple(row.candidate.layers) for row in found.trace} == {("vision_tower",)}
    if rule == "paper":
        assert found.chosen == len(found.trace) - 1
        assert "On confirmation (all 2 wordings): recognised in" in found.why
    else:
        assert found.chosen is None
        assert "No feasible step" in found.why
    assert found.why.endswith(
        f"The model does not read {len(model.unread)} layers of the vision tower, so they were not candidates."
    )
    assert len(model.unread) > 0


@pytest.mark.parametrize(("changed", "message"), [
    ({"forget_at_most": 0.25}, r"search_wordings x probe images=4: .* no step could be feasible. Take at least 12"),
    ({"search_wordings": 0}, "layer_search.search_wordings: got 0, want at least 1"),
    ({"retain_pictures": 0}, "layer_search.retain_pictures: got 0, want at least 1"),
    ({"wordings": {"identity": ("Who?",)}}, "wordings: none for object; got identity"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        part("layer_search=answering", **{**SMALL, **changed}).check(tiny_vlm.vlm(), tiny.task())


def test_a_style_is_refused() -> None:
    with pytest.raises(ValueError, match="a style is not asked for by name"):
        part("layer_search=answering", **SMALL).check(tiny_vlm.vlm(), replace(tiny.task(), kind="style"))


def test_images_are_counted_name_by_name() -> None:
    """Two names with one probe image each: four questions in all, but two per name."""
    both = replace(tiny.task(), names=tiny.NAMES[:2], forget={name: tiny.pairs(2) for name in tiny.NAMES[:2]},
                   probe=replace(tiny.split(), forget=tiny.pictures([0, 1])))  # fmt: skip
    with pytest.raises(ValueError, match="search_wordings x probe images=2: .* Take at least 4"):
        part("layer_search=answering", **SMALL).check(tiny_vlm.vlm(), both)
