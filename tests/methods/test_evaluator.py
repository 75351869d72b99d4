import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.data.earlier import set_apart
from muwa.eval.measure import evaluate
from muwa.methods._evaluator import WHOLE_MODEL, EditEvaluator, norm
from muwa.run import Run
from muwa.types.search import NOTHING_EDITED, Candidate


def evaluator(model, probe, run, **changed):
    settings = {"criterion": "top1", "target": 0.5, "step_unit": "learning rate", **changed}
    return EditEvaluator(model.observe(run), probe, **settings)


def random_deltas(model, names):
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(model.weights[name].shape, generator=generator) for name in names}


@pytest.mark.parametrize(
    "names", [["visual.proj"], ["text_projection"], ["visual.proj", "text_projection"], ["logit_scale"]]
)
def test_an_evaluation_is_that_of_the_edited_model(tmp_path, names):
    model, probe = tiny.clip(), tiny.split()
    deltas = random_deltas(model, names)
    evaluate_edit = evaluator(model, probe, Run(Store(tmp_path)))
    got, before = evaluate_edit(deltas, 3, 0.1), evaluate_edit.before()
    edited = model.with_weights({name: model.weights[name] + delta for name, delta in deltas.items()})
    measures = part("eval=[forget,retain,utility,similarity]")
    for row, one in ((got, edited), (before, model)):
        want = evaluate(one.observe(Run(Store(tmp_path / "other"))), tiny.judged(probe), measures)
        assert row.metrics["forget_top1"] == pytest.approx(want["forget/top1"].value)
        assert row.metrics["forget_top5"] == pytest.approx(want["forget/top5"].value)
        assert row.metrics["forget_cosine"] == pytest.approx(want["forget/cosine"].value, abs=1e-6)
        assert row.metrics["retain_top1"] == pytest.approx(want["retain/top1"].value)
        assert row.metrics["utility_top1"] == pytest.approx(want["utility/top1"].value)
        assert row.feasible == (row.metrics["forget_top1"] <= 0.5)


def test_the_record_of_an_evaluation_worked_by_hand():
    """Retain 7 images, utility 3: kept and its error follow from the two rates."""
    model, probe = tiny.clip(), tiny.split()
    deltas = random_deltas(model, ["visual.proj"])
    evaluate_edit = evaluator(model, probe, Run(), criterion="top5")
    row = evaluate_edit(deltas, 3, 0.1)
    retain, utility = row.metrics["retain_top1"], row.metrics["utility_top1"]
    assert (row.candidate, row.iteration, row.step, row.step_unit) == (WHOLE_MODEL, 3, 0.1, "learning rate")
    assert row.kept == pytest.approx((retain + utility) / 2)
    error = ((retain * (1 - retain) / 7 + utility * (1 - utility) / 3) / 4) ** 0.5
    assert row.kept_error == pytest.approx(error)
    assert evaluate_edit.largest_error == pytest.approx((0.25 / 7 + 0.25 / 3) ** 0.5 / 2)
    assert row.forgotten == row.metrics["forget_top5"]
    assert row.closeness == row.metrics["forget_cosine"]
    before = evaluate_edit.before()
    assert (before.candidate, before.iteration, before.relative_norm) == (NOTHING_EDITED, 0, 0.0)


def test_the_relative_norm_is_of_the_model_or_of_the_tensors_that_change():
    model = tiny.clip()
    deltas = random_deltas(model, ["visual.proj", "text_projection"])
    evaluate_edit = evaluator(model, tiny.split(), Run())
    moved = sum(d.square().sum() for d in deltas.values()) ** 0.5
    whole = sum(w.square().sum() for w in model.weights.values()) ** 0.5
    parts = sum(model.weights[name].square().sum() for name in deltas) ** 0.5
    assert evaluate_edit(deltas, 1, 1.0).relative_norm == pytest.approx((moved / whole).item())
    some = Candidate({"": "both projections"}, "both")
    assert evaluate_edit(deltas, 1, 1.0, some).relative_norm == pytest.approx((moved / parts).item())


def test_the_norm_is_of_all_tensors_together():
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, 4.0]])}) == 5.0


def test_an_edit_that_brings_an_earlier_name_back_is_not_feasible():
    model = tiny.clip()
    probe = set_apart(tiny.task(), tiny.NAMES[1:5], (1, 2, 3, 4)).probe
    evaluate_edit = evaluator(model, probe, Run(), target=0.0)
    before = evaluate_edit.before()
    deltas = random_deltas(model, ["text_projection"])
    seen = set()
    for size in (0.0, -4.0, -2.0, 1.0, 2.0, 4.0):
        row = evaluate_edit({name: size * delta for name, delta in deltas.items()}, 1, size)
        stays = row.metrics["earlier_top1"] <= before.metrics["earlier_top1"]
        seen.add(stays)
        assert row.feasible == (row.metrics["forget_top1"] == 0 and stays)
    assert seen == {True, False}
