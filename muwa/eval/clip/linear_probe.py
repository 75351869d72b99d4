"""Is the forgotten still in the features? A linear classifier on the frozen vision tower, trained to find it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from muwa.eval.clip.mia import accuracy, trained_on
from muwa.eval.clip.retrained_models import load_twins
from muwa.eval.statistics import area, of_others
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import Metric


def linear_probe(features: Features, task: Task, *, c: float = 1.0, twins: Sequence[str] = ()) -> dict[str, Metric]:
    """`probe/auc`, `probe/balanced_accuracy`: the forgotten against the other names, from image features alone.

    Logistic regression on standardised features is trained on the pictures of the forget pairs against those of the retain
    pairs (which do not name the forgotten), and judged on held-out pictures of both. 0.5 is chance. Lower is better, but a
    model that never saw the person tells faces apart too: with `twins`, `probe/retrained_auc` is what is to be reached.

    Args:
        c: Inverse strength of the penalty on the weights.
        twins: Folders of models trained without the forgotten (`python -m muwa.miniature.twins`).

    Raises:
        ValueError: `c` is not above 0; a side has no pictures; a twin is another kind of model or without somebody else.

    Source: linear probes of CLIP (arXiv 2103.00020), section 3.2. Differs: one name against all others, one fixed `c`.
    """
    if not 0 < c < float("inf"):
        raise ValueError(f"eval.linear_probe.c: got {c}, want a number above 0")
    known, other = trained_on(task), _retained(task)
    for what, pictures in (("forget pairs", known), ("retain pairs", other), ("eval pictures", task.eval.forget),
                           ("eval pictures of other names", task.eval.retain)):  # fmt: skip
        if not len(pictures):
            raise ValueError(f"eval.linear_probe: got 0 {what}, want at least 1; leave linear_probe out of eval=[...]")
    models = load_twins(features.model, twins, "eval.linear_probe.twins", names=task.names)
    yes, no = _scores(features, task, known, other, c)
    reads = (
        "held-out pictures of the forgotten told from those of others by a linear classifier on frozen image features"
    )
    found = {
        "probe/auc": area(yes, no, "lower", f"how often {reads}; 0.5 is chance"),
        "probe/balanced_accuracy": accuracy(yes, no, f"balanced accuracy: {reads}; 0.5 is chance"),
    }
    if models:
        each = [_scores(Features(m, features.store, progress=features.progress), task, known, other, c) for m in models]
        apart = [torch.stack(side).mean(0) for side in zip(*each, strict=True)]
        reads = (
            f"the same of {len(models)} models that never saw the forgotten (their mean score): what is to be reached"
        )
        found["probe/retrained_auc"] = area(apart[0], apart[1], "neither", reads)
    return found


def _retained(task: Task) -> LabelledImages:
    """Their pictures, without labels that mean anything."""
    pairs = of_others(task)
    return LabelledImages(pairs.keys, pairs.images, (0,) * len(pairs), Classes(("",), ("{}",)))


def _scores(features: Features, task: Task, known: LabelledImages, other: LabelledImages, c: float) -> tuple[Tensor, Tensor]:
    """(decision values of the held-out pictures of the forgotten, of the others); above 0 means "the forgotten"."""
    x = torch.cat([features.images(known), features.images(other)]).double().numpy()
    truth = np.repeat([1, 0], [len(known), len(other)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=2000)).fit(
        x, truth
    )
    asked = (task.eval.forget, task.eval.retain)
    yes, no = (torch.from_numpy(probe.decision_function(features.images(one).double().numpy())) for one in asked)
    return yes, no
