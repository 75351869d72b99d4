from dataclasses import replace

import pytest
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from muwa.eval.clip.linear_probe import linear_probe
from muwa.models.clip.embeddings import Features


def test_the_probe_is_the_same_by_hand():
    """Standardised by the training mean and (population) deviation, then scikit-learn's own regression."""
    features, task = Features(tiny.clip()), tiny.task()
    kept = [i for i in range(12) if i not in task.mentions]
    images = [*task.forget[tiny.NAMES[0]].images, *(task.retain.images[i] for i in kept)]
    labels = [1] * 6 + [0] * 10
    x, yes, no = (features.images(replace(tiny.pictures([0] * len(some)), images=tuple(some))).double().numpy()
                  for some in (images, task.eval.forget.images, task.eval.retain.images))  # fmt: skip
    mean, deviation = x.mean(0), x.std(0)
    probe = LogisticRegression(C=0.5, class_weight="balanced", max_iter=2000).fit((x - mean) / deviation, labels)
    asked = [probe.decision_function((side - mean) / deviation) for side in (yes, no)]
    truth, scores = [1] * 2 + [0] * 7, [*asked[0], *asked[1]]
    found = linear_probe(features, task, c=0.5)
    assert found["probe/auc"].value == pytest.approx(roc_auc_score(truth, scores))
    want = balanced_accuracy_score(truth, [score > 0 for score in scores])
    assert found["probe/balanced_accuracy"].value == pytest.approx(want)
    assert found["probe/auc"].n == 9


def test_a_model_that_sees_nothing_gives_nothing_away():
    model = tiny.clip()
    blind = model.with_weights({"visual.conv1.weight": model.weights["visual.conv1.weight"] * 0})
    found = linear_probe(Features(blind), tiny.task())
    assert found["probe/auc"].value == 0.5


def test_settings_are_checked_before_any_compute():
    with pytest.raises(ValueError, match="eval.linear_probe.c: got 0, want a number above 0"):
        linear_probe(Features(tiny.clip()), tiny.task(), c=0)
    nobody = replace(tiny.task(), mentions=tuple(range(12)))
    with pytest.raises(ValueError, match="eval.linear_probe: got 0 retain pairs, want at least 1"):
        linear_probe(Features(tiny.clip()), nobody)
    with pytest.raises(ValueError, match="eval.linear_probe.twins: got nowhere, want a folder that open_clip loads"):
        linear_probe(Features(tiny.clip()), tiny.task(), twins=["nowhere"])
