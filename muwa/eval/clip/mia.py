"""Membership inference: does the model's behaviour tell the pairs it was trained on from unseen images?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.neighbours import surprise
from muwa.eval.clip.ranks import own_cosine
from muwa.eval.statistics import area, caught, counts, rate_interval
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import RATE, Metric, Reading
from muwa.types.ranges import Count, Rate, Seed, TwoOrMore

Array = np.ndarray
# (known (n, k), whether members (n,), asked (m, k)) -> scores (m,)
Attack = Callable[[Array, Array, Array], Array]
_CHANCE = "0.5 is chance, 1 is certain"
_SECTION = "Membership inference: were the forget pairs trained on?"


@dataclass(frozen=True)
class MembershipInference(Measure):
    """`mia/<attack>_auc` and `mia/<attack>_tpr`: forget pairs (members) against other images.

    The non-members are images that the model was not trained on.

    The attacks:

    - logistic: regression on two values of an image: its cosine with its bare name, and the cross-entropy of
      that name among all names, at the model's temperature.
    - likelihood: log N(z; members) - log N(z; non-members), where z is the log odds of the image's own name
      (LiRA's score).

    Each attack is fitted on all folds but one and applied to that one. The scores are averaged over `seeds`
    shufflings. A higher score means "member". The direction is learnt, so a model that pushed the members
    *away* is caught as well. Non-members are the held-out images of the same names (probe and eval), with the
    same bare-name captions.

    `mia/release_auc` and `mia/release_accuracy` (balanced) are computed as in SLUG's release: from the cosine
    alone, for forget pairs against unrelated held-out images. They separate images of the target from
    unrelated images, not members from non-members.

    Lower is better everywhere.

    Args:
        folds: Folds of the cross-validation. They are cut to the number of images of the smaller side.
        seeds: Number of shufflings.
        false_positives: Rate of non-members that may be taken for members in `mia/<attack>_tpr`. With fewer
            than 1 / rate non-members, none may.
        seed: The first of the shufflings' seeds.

    Raises:
        ValueError: A count is out of range, or a side has fewer than two images (`check`).

    Sources: SLUG (arXiv 2407.11867): logistic regression, 10 seeds, 10 folds; Carlini et al. (arXiv
    2112.03570), sections 3 and 4. Differs: one normal distribution per side; they fit one per sample from
    shadow models, which takes many trainings. Training pairs may differ from held-out images in more than
    membership (styles, crops), so look at the change, not at the value.
    """

    observes: ClassVar[type[Observer]] = Features

    folds: TwoOrMore
    seeds: Count
    false_positives: Rate
    seed: Seed

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a count is out of range, or a side has fewer than two images."""
        for key, least in (("folds", 2), ("seeds", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"eval.mia.{key}: got {getattr(self, key)}, want at least {least}")
        if not 0 < self.false_positives < 1:
            raise ValueError(
                f"eval.mia.false_positives: got {self.false_positives}, want more than 0 and less than 1"
            )
        for what, images in (
            ("forget pairs", forget_images(task)),
            ("held-out images of the target", with_bare_names(task.probe.forget, task.eval.forget)),
        ):
            if len(images) < 2:
                raise ValueError(
                    f"eval.mia: got {len(images)} {what}, want at least 2; leave mia out of eval=[...]"
                )

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        sides = [
            torch.stack([_cosine(features, images), surprise(features, images)], 1)
            for images in (forget_images(task), with_bare_names(task.probe.forget, task.eval.forget))
        ]
        metrics: dict[str, Metric] = {}
        for name, attack, (members, others) in (
            ("logistic", logistic, sides),
            ("likelihood", likelihood, [log_odds(side) for side in sides]),
        ):
            metrics |= self._attacked(name, *self._scores(attack, members, others))
        unrelated = with_bare_names(task.eval.utility)
        if len(unrelated) < 2:
            return metrics
        against = f"unrelated held-out image (the release's attack): {_CHANCE}"
        higher = f"how often a forget pair scores higher than an {against}"
        separated = f"balanced accuracy at separating a forget pair from an {against}"
        yes, no = self._scores(logistic, sides[0][:, :1], _cosine(features, unrelated)[:, None])
        return metrics | {
            "mia/release_auc": area(yes, no, _reading(higher, unit="auc")),
            "mia/release_accuracy": balanced_accuracy(yes, no, _reading(separated)),
        }

    def _scores(self, attack: Attack, members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """`scores` with the settings of this measure."""
        return scores(
            attack, members, others, folds=self.folds, seeds=range(self.seed, self.seed + self.seeds)
        )

    def _attacked(self, name: str, yes: Tensor, no: Tensor) -> dict[str, Metric]:
        """AUC and true-positive rate of an attack, from the scores of members and non-members."""
        who = f"({name} attack; members: forget pairs, others: held-out images of the same names)"
        often = f"how often a member scores higher than one of the others {who}: {_CHANCE}"
        most = f"while at most {100 * self.false_positives:g} % of the others are taken for members"
        rate = f"fraction of members caught {most} {who}"
        return {
            f"mia/{name}_auc": area(yes, no, _reading(often, unit="auc")),
            f"mia/{name}_tpr": caught(yes, no, self.false_positives, _reading(rate)),
        }


def _reading(text: str, *, unit: str = RATE) -> Reading:
    return Reading(text, better="lower", unit=unit, section=_SECTION)


def forget_images(task: Task) -> LabelledImages:
    """The forget pairs as images labelled with their names, to be captioned with the bare name."""
    classes = Classes(task.eval.forget.classes.names, ("{}",))
    rows = [
        (key, image, classes.names.index(name))
        for name in task.names
        for key, image in zip(task.forget[name].keys, task.forget[name].images, strict=True)
    ]
    keys, images, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return LabelledImages(keys, images, labels, classes)


def with_bare_names(*parts: LabelledImages) -> LabelledImages:
    """Sets of images that share their classes, joined into one and captioned with the bare name."""
    join = [
        tuple(x for part in parts for x in getattr(part, field)) for field in ("keys", "images", "labels")
    ]
    return LabelledImages(join[0], join[1], join[2], Classes(parts[0].classes.names, ("{}",)))


def scores(
    attack: Attack, members: Tensor, others: Tensor, *, folds: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(scores of the members, of the others).

    Each score comes from attacks fitted without that sample, averaged over `seeds`. Folds are stratified: all
    have the same fraction of members.

    Args:
        members: (n, k) values of each member.
        others: (m, k) values of each non-member.
    """
    values = torch.cat([members, others]).double().numpy()
    truth = np.repeat([1, 0], [len(members), len(others)])
    total, folds = np.zeros(len(truth)), min(folds, len(members), len(others))
    for seed in seeds:
        for known, asked in StratifiedKFold(folds, shuffle=True, random_state=seed).split(values, truth):
            total[asked] += attack(values[known], truth[known], values[asked]) / len(seeds)
    both = torch.from_numpy(total)
    return both[: len(members)], both[len(members) :]


def logistic(known: Array, truth: Array, asked: Array) -> Array:
    """Decision values of a logistic regression on standardised values that weighs both sides equally."""
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return model.fit(known, truth).decision_function(asked)


def likelihood(known: Array, truth: Array, asked: Array) -> Array:
    """Log ratio of two normal densities of one value, fitted to members and non-members."""
    least = max(known.std() * 1e-3, 1e-9)
    sides = [known[truth == side, 0] for side in (1, 0)]
    yes, no = (norm.logpdf(asked[:, 0], side.mean(), max(side.std(), least)) for side in sides)
    return yes - no


def log_odds(values: Tensor) -> Tensor:
    """(n, 1) `log(p / (1 - p))`, p = exp(-cross-entropy); finite whatever p is.

    Args:
        values: (n, 2); the second column is the cross-entropy, in nats.
    """
    loss = values[:, 1:].double().clamp(1e-15)
    return -loss - torch.log(-torch.expm1(-loss))


def balanced_accuracy(members: Tensor, others: Tensor, reading: Reading) -> Metric:
    """Balanced accuracy of the sign of the scores; the two sides are resampled separately.

    Where all resamples agree, as when every answer is right, the interval is Wilson's interval for as
    many samples as the smaller side has (`rate_interval`).

    Args:
        members: (n,) scores; above 0 is right.
        others: (m,) scores; 0 or below is right.
    """
    right = (members > 0).double().numpy(), (others <= 0).double().numpy()
    value = float(np.mean([side.mean() for side in right]))
    draws = np.mean([counts(len(side), i) @ side / len(side) for i, side in enumerate(right)], 0)
    smaller = min(len(members), len(others))
    return Metric(value, len(members) + len(others), *rate_interval(draws, value, smaller), reading)


def _cosine(features: Features, images: LabelledImages) -> Tensor:
    """(n,) the cosine of each image with its own name."""
    labels = torch.tensor(images.labels, dtype=torch.long)
    return own_cosine(features.images(images), features.classes(images.classes), labels)
