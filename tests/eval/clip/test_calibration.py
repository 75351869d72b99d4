import pytest
import tiny
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from muwa.eval.clip.calibration import Calibration, brier, calibration_error, probabilities
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.metric import Reading

FOUR = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]], dtype=torch.double)


def test_the_error_of_four_guesses_by_hand():
    """Two bins; all four guesses are sure of more than half: mean 0.7375, right in 3 of 4."""
    labels = torch.tensor([0, 0, 0, 1])
    assert calibration_error(FOUR, labels, 2, Reading()).value == pytest.approx(0.75 - 0.7375)
    # ten bins, each guess alone: |1 - 0.9|, |1 - 0.8|, |0 - 0.7|, |1 - 0.55|, a quarter each
    assert calibration_error(FOUR, labels, 10, Reading()).value == pytest.approx((0.1 + 0.2 + 0.7 + 0.45) / 4)


def test_the_score_of_four_guesses_by_hand():
    want = [2 * 0.1**2, 2 * 0.8**2, 2 * 0.7**2, 2 * 0.45**2]
    assert brier(FOUR, torch.tensor([0, 1, 0, 1])).tolist() == pytest.approx(want)


def test_the_error_is_that_of_torchmetrics_for_many_classes():
    p = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double().mul(2).softmax(-1)
    labels = torch.randint(6, (200,), generator=torch.Generator().manual_seed(1))
    found = calibration_error(p, labels, 15, Reading())
    assert found.value == pytest.approx(multiclass_calibration_error(p, labels, 6, 15, "l1").item(), abs=1e-6)
    assert found.low < found.value < found.high


def test_probabilities_are_at_the_models_temperature():
    model, pictures = tiny.clip(), tiny.pictures([3, 1])
    sharper = model.with_weights({"logit_scale": model.weights["logit_scale"] + 1.0})
    p, sharp = (probabilities(Features(one, Run()), pictures) for one in (model, sharper))
    assert p.sum(1).tolist() == pytest.approx([1, 1])
    assert torch.allclose(sharp, torch.nn.functional.normalize(p.pow(torch.e), p=1), atol=1e-5)


def test_both_parts_are_measured():
    found = Calibration(bins=15)(Features(tiny.clip(), Run()), tiny.task())
    assert {name: metric.n for name, metric in found.items()} == {
        "calibration/retain_ece": 7, "calibration/retain_brier": 7, "calibration/utility_ece": 3, "calibration/utility_brier": 3
    }  # fmt: skip
    assert {(name.partition("_")[2], m.reading.unit, m.reading.better) for name, m in found.items()} == {
        ("ece", "rate", "lower"), ("brier", "squared error", "lower")
    }  # fmt: skip
    assert "(15 bins;" in found["calibration/retain_ece"].reading.text
    with pytest.raises(ValueError, match="eval.calibration.bins: got 0"):
        Calibration(bins=0).check(tiny.clip(), tiny.task())
    Calibration(bins=1).check(tiny.clip(), tiny.task())
