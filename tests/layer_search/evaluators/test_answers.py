"""One step judged by answers, on answers of a tiny model."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
import torch
from layer_search.examples import layer_of, random_gradients
from records import part

from muwa.data.earlier import set_apart
from muwa.eval.answers.matching import named
from muwa.eval.statistics import wilson
from muwa.layer_search.evaluators.answers import AnswerEvaluator
from muwa.layer_search.steps import edit_layers
from muwa.models.clip.embeddings import Features
from muwa.models.vlm.model import TOWER
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.run import Run
from muwa.types.data import Classes
from muwa.types.search import RELATIVE

LAYER = "visual.transformer.resblocks.0.mlp.c_fc.weight"
GRADIENTS = {TOWER: random_gradients(tiny.clip())}


def knowing():
    """A model, a task, and aliases that make every answer of the unedited model right."""
    model, task = tiny_vlm.vlm(), tiny.task()
    aliases: dict[str, list[str]] = {}
    for split in (task.probe, task.eval):
        asked = questions(task, split, wordings=tiny_vlm.WORDINGS)
        for one, answer in zip(asked, QuestionAnswering(model, Run()).ask(asked), strict=True):
            aliases.setdefault(one.accepted[0], []).append(answer)
    return model, task, aliases


def evaluator_of(model, task, aliases):
    search = part("layer_search=answering", wordings=tiny_vlm.WORDINGS, aliases=aliases, search_wordings=1,
                  retain_pictures=9, forget_at_most=0.5)  # fmt: skip
    return AnswerEvaluator(search, model, GRADIENTS, task, Run())


@pytest.mark.parametrize(("confirm", "wordings"), [(False, 1), (True, 2)])
def test_rates_are_those_counted_by_hand(confirm, wordings) -> None:
    model, task, aliases = knowing()
    evaluator = evaluator_of(model, task, aliases)
    before = evaluator.before()
    assert (before.forgotten, before.metrics["retain_top1"], before.metrics["utility_top1"]) == (1, 1, 1)
    assert (before.feasible, before.candidate.name) == (False, "")
    layers = {TOWER: layer_of(model.clip, LAYER)}
    row, lost = evaluator(layers, 0.8, confirm=confirm)
    edited = model.edited(edit_layers(model, GRADIENTS, layers, 0.8, unit=RELATIVE, concept="x"))
    first = {kind: texts[:wordings] for kind, texts in tiny_vlm.WORDINGS.items()}
    asked = questions(task, task.probe, wordings=first, aliases=aliases, retain=6, utility=3)
    hits: dict[str, list[bool]] = {"forget": [], "retain": [], "utility": []}
    for one, answer in zip(asked, QuestionAnswering(edited, Run()).ask(asked), strict=True):
        hits[one.role].append(named(answer, one.accepted, one.others))
    assert row.forgotten == row.metrics["forget_top1"] == sum(hits["forget"]) / (2 * wordings)
    assert row.metrics["retain_top1"] == sum(hits["retain"]) / (6 * wordings)
    assert row.metrics["utility_top1"] == sum(hits["utility"]) / (3 * wordings)
    others = hits["retain"] + hits["utility"]
    assert others.count(False) > 0
    assert lost == wilson(others.count(False), 9 * wordings)[1]
    assert row.relative_norm == pytest.approx(0.8, rel=1e-5)
    assert (dict(row.candidate.layers), row.candidate.tower) == ({TOWER: LAYER}, "vision")
    features = Features(edited.clip, Run()).images(task.probe.forget)
    name = Features(model.clip, Run()).classes(Classes(task.names, ("{}.",)))
    assert row.closeness == pytest.approx((features @ name.T).mean().item(), abs=1e-6)
    assert torch.isfinite(torch.tensor(row.closeness))
    assert evaluator.confirmation == "all 2 wordings"


def test_anothers_exact_name_is_not_counted_as_the_forgotten(monkeypatch) -> None:
    names = ("Rachel Wilson", "Rachel Bilson", *tiny.NAMES[2:])  # all but one letter the same
    forget, retain = (
        replace(some, classes=Classes(names, ("{}.",))) for some in (tiny.split().forget, tiny.split().retain)
    )
    task = replace(tiny.task(), names=names[:1], probe=replace(tiny.split(), forget=forget, retain=retain))
    monkeypatch.setattr(QuestionAnswering, "ask", lambda self, asked: ["Rachel Bilson"] * len(asked))
    before = evaluator_of(tiny_vlm.vlm(), task, {}).before()
    assert (before.forgotten, before.metrics["retain_top1"]) == (0, 1 / 6)


def test_earlier_names_are_asked_about_too() -> None:
    model, task, aliases = knowing()
    evaluator = evaluator_of(model, set_apart(task, [tiny.NAMES[1]], (1, 9)), aliases)
    before = evaluator.before()
    assert before.metrics["earlier_top1"] == 1
    layers = {TOWER: layer_of(model.clip, LAYER)}
    row, _ = evaluator(layers, 0.8)
    edited = model.edited(edit_layers(model, GRADIENTS, layers, 0.8, unit=RELATIVE, concept="x"))
    first = {kind: texts[:1] for kind, texts in tiny_vlm.WORDINGS.items()}
    after = set_apart(task, [tiny.NAMES[1]], (1, 9))
    asked = questions(
        after, after.probe, wordings=first, aliases=aliases, forget=0, retain=0, utility=0, earlier=None
    )
    assert {one.role for one in asked} == {"earlier"}
    answers = QuestionAnswering(edited, Run()).ask(asked)
    right = [named(answer, one.accepted, one.others) for answer, one in zip(answers, asked, strict=True)]
    assert row.metrics["earlier_top1"] == sum(right) / len(asked)
    assert "earlier_top1" not in evaluator_of(model, task, aliases).before().metrics
