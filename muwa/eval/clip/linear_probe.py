"""Is the target still in the image features? A linear classifier on the frozen vision tower looks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.mia import balanced_accuracy, forget_images
from muwa.eval.clip.retrained_models import check_retrained, load_retrained
from muwa.eval.statistics import area
from muwa.models.base import Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Positive, Text

_SECTION = "A linear probe of the image features"


@dataclass(frozen=True)
class LinearProbe(Measure):
    """`probe/auc`, `probe/balanced_accuracy`: the target against other names, from image features alone.

    Logistic regression on standardised features learns to tell the images of the forget pairs from those of
    the retain pairs that do not mention the target. It is tested on held-out images of both. 0.5 is chance.
    Lower is better, but a model that never saw the person tells faces apart too: with retrained models,
    `probe/retrained_auc` is the value to be reached.

    Args:
        c: Inverse strength of the penalty on the weights.
        retrained: Folders of models trained without the target (`python -m muwa.miniature.retrained`); may be
            empty.

    Raises:
        ValueError: `c` is not above 0; a side has no images; a retrained model has another architecture or
            was trained without a name other than the target's (`check`).

    Source: linear probes of CLIP (arXiv 2103.00020), section 3.2. Differs: one name against all others, one
    fixed `c`.
    """

    observes: ClassVar[type[Observer]] = Features

    c: Positive
    retrained: Sequence[Text]

    def check(self, model: Any, task: Task) -> None:
        """Raise if `c` is not above 0, a side has no images, or a retrained model does not fit."""
        if not 0 < self.c < float("inf"):
            raise ValueError(f"eval.linear_probe.c: got {self.c}, want a number above 0")
        for what, images in (
            ("forget pairs", forget_images(task)),
            ("retain pairs", _images_of_others(task)),
            ("eval images", task.eval.forget),
            ("eval images of other names", task.eval.retain),
        ):
            if not len(images):
                raise ValueError(
                    f"eval.linear_probe: got 0 {what}, want at least 1; leave linear_probe out of eval=[...]"
                )
        check_retrained(model, self.retrained, task.names, "eval.linear_probe.retrained")

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        yes, no = self._scores(features, task)
        probe = "a linear classifier on frozen image features"
        often = f"how often {probe} tells held-out images of the target from others; 0.5 is chance"
        text = f"balanced accuracy of {probe}, held-out images of the target against others; 0.5 is chance"
        metrics = {
            "probe/auc": area(yes, no, _area(often, "lower")),
            "probe/balanced_accuracy": balanced_accuracy(yes, no, Reading(text, "lower", section=_SECTION)),
        }
        if self.retrained:
            models = load_retrained(features.model, self.retrained)
            each = [self._scores(Features(model, features.run), task) for model in models]
            yes, no = (torch.stack(side).mean(0) for side in zip(*each, strict=True))
            text = f"the same for {len(models)} models that never saw the target: the value to be reached"
            metrics["probe/retrained_auc"] = area(yes, no, _area(text, "neither"))
        return metrics

    def _scores(self, features: Features, task: Task) -> tuple[Tensor, Tensor]:
        """Decision values of held-out images: (of the target, of others). Above 0 means "the target"."""
        known, other = forget_images(task), _images_of_others(task)
        x = torch.cat([features.images(known), features.images(other)]).double().numpy()
        truth = np.repeat([1, 0], [len(known), len(other)])
        regression = LogisticRegression(C=self.c, class_weight="balanced", max_iter=2000)
        probe = make_pipeline(StandardScaler(), regression).fit(x, truth)
        asked = (features.images(images).double().numpy() for images in (task.eval.forget, task.eval.retain))
        yes, no = (torch.from_numpy(probe.decision_function(one)) for one in asked)
        return yes, no


def _area(text: str, better: str) -> Reading:
    return Reading(text, better, unit="auc", section=_SECTION)


def _images_of_others(task: Task) -> LabelledImages:
    """The images of the retain pairs that do not mention the target, with the placeholder label 0."""
    pairs = task.retain_pairs()
    return LabelledImages(pairs.keys, pairs.images, (0,) * len(pairs), Classes(("",), ("{}",)))
