from dataclasses import replace

import pytest
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from muwa.eval.clip import linear_probe as module
from muwa.eval.clip.linear_probe import LinearProbe
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def test_the_probe_is_the_same_by_hand():
    """Standardised by the training mean and (population) deviation, then scikit-learn's own regression."""
    features, task = Features(tiny.clip(), Run()), tiny.task()
    kept = [i for i in range(12) if i not in task.mentions]
    images = [*task.forget[tiny.NAMES[0]].images, *(task.retain.images[i] for i in kept)]
    labels = [1] * 6 + [0] * 10
    x, yes, no = (features.images(replace(tiny.pictures([0] * len(some)), images=tuple(some))).double().numpy()
                  for some in (images, task.eval.forget.images, task.eval.retain.images))  # fmt: skip
    mean, deviation = x.mean(0), x.std(0)
    probe = LogisticRegression(C=0.5, class_weight="balanced", max_iter=2000).fit(
        (x - mean) / deviation, labels
    )
    asked = [probe.decision_function((side - mean) / deviation) for side in (yes, no)]
    truth, scores = [1] * 2 + [0] * 7, [*asked[0], *asked[1]]
    found = LinearProbe(c=0.5, retrained=())(features, task)
    assert found["probe/auc"].value == pytest.approx(roc_auc_score(truth, scores))
    want = balanced_accuracy_score(truth, [score > 0 for score in scores])
    assert found["probe/balanced_accuracy"].value == pytest.approx(want)
    assert found["probe/auc"].n == 9
    assert list(found) == ["probe/auc", "probe/balanced_accuracy"]
    assert [(m.reading.unit, m.reading.better) for m in found.values()] == [
        ("auc", "lower"),
        ("rate", "lower"),
    ]


def test_retrained_models_say_what_is_to_be_reached(monkeypatch):
    """The area of the mean decision values of two models, each with a probe of its own."""
    models, task = [tiny.clip(1), tiny.clip(2)], tiny.task()
    monkeypatch.setattr(module, "load_retrained", lambda model, folders: models)
    probe = LinearProbe(c=1.0, retrained=("a", "b"))
    found = probe(Features(tiny.clip(), Run()), task)
    each = [probe._scores(Features(one, Run()), task) for one in models]
    scores = [((a + b) / 2).tolist() for a, b in zip(*each, strict=True)]
    metric = found["probe/retrained_auc"]
    assert metric.value == pytest.approx(roc_auc_score([1] * 2 + [0] * 7, [*scores[0], *scores[1]]))
    assert (metric.reading.better, metric.reading.unit) == ("neither", "auc")


def test_a_model_that_sees_nothing_gives_nothing_away():
    model = tiny.clip()
    blind = model.with_weights({"visual.conv1.weight": model.weights["visual.conv1.weight"] * 0})
    found = LinearProbe(c=1.0, retrained=())(Features(blind, Run()), tiny.task())
    assert found["probe/auc"].value == 0.5


def test_settings_are_checked_before_any_compute():
    with pytest.raises(ValueError, match="eval.linear_probe.c: got 0, want a number above 0"):
        LinearProbe(c=0, retrained=()).check(tiny.clip(), tiny.task())
    nobody = replace(tiny.task(), mentions=tuple(range(12)))
    with pytest.raises(ValueError, match="eval.linear_probe: got 0 retain pairs, want at least 1"):
        LinearProbe(c=1.0, retrained=()).check(tiny.clip(), nobody)
    with pytest.raises(
        ValueError, match="eval.linear_probe.retrained: got nowhere, want a folder that open_clip loads"
    ):
        LinearProbe(c=1.0, retrained=["nowhere"]).check(tiny.clip(), tiny.task())
    LinearProbe(c=1.0, retrained=()).check(tiny.clip(), tiny.task())
