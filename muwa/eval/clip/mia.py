"""Membership inference: can the model's behaviour tell the pairs it was trained on from pictures it never saw?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from muwa.eval.clip.neighbours import surprise
from muwa.eval.clip.ranks import own_cosine
from muwa.eval.statistics import area, caught, counts, rate_interval
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import Metric

Array = np.ndarray
Attack = Callable[
    [Array, Array, Array], Array
]  # (known values (n, k), whether members (n,), asked (m, k)) -> scores (m,)
_CHANCE = "0.5 is chance, 1 is certain"


def mia(
    features: Features, task: Task, *, folds: int = 10, seeds: int = 10, false_positives: float = 0.01, seed: int = 0
) -> dict[str, Metric]:
    """`mia/<attack>_auc` and `mia/<attack>_tpr`: forget pairs (members) against pictures no model saw. Lower is better.

        logistic      regression on two values a picture: the cosine with its bare name; the cross-entropy of that name
                      among all names, at the model's temperature
        likelihood    log N(z; members) - log N(z; others), z the log odds of the own name (LiRA's score)

    Each is fitted on all folds but one and asked on that one, over `seeds` shufflings, whose scores are averaged; a higher
    score says "member" and the side is learnt, so a model that pushed the members *away* is caught as well. Non-members are
    the held-out pictures of the same names (probe and eval), with the same bare-name captions.

    And as the release does it, with the cosine alone: `mia/release_auc` and `mia/release_accuracy` (balanced), of forget
    pairs against unrelated held-out pictures. That tells people from other pictures, not members from non-members.

    Args:
        folds: As many as the smaller side has pictures, at most.
        seeds: Shufflings.
        false_positives: Share of non-members that `_tpr` lets pass for members; with fewer than its inverse, none.
        seed: First of the shufflings.

    Raises:
        ValueError: A count is out of range, or a side has fewer than two pictures.

    Sources: SLUG (arXiv 2407.11867): logistic regression, 10 seeds, 10 folds; Carlini et al. (arXiv 2112.03570), sections 3
    and 4. Differs: one normal distribution a side instead of one a sample from shadow models, which would need many
    trainings. Training pairs may differ from held-out pictures in more than membership (styles, crops): read the change.
    """
    for key, value, least in (("folds", folds, 2), ("seeds", seeds, 1)):
        if value < least:
            raise ValueError(f"eval.mia.{key}: got {value}, want at least {least}")
    if not 0 < false_positives < 1:
        raise ValueError(f"eval.mia.false_positives: got {false_positives}, want more than 0 and less than 1")
    members, held_out = trained_on(task), bare(task.probe.forget, task.eval.forget)
    for what, pictures in (("forget pairs", members), ("held-out pictures of the forgotten", held_out)):
        if len(pictures) < 2:
            raise ValueError(f"eval.mia: got {len(pictures)} {what}, want at least 2; leave mia out of eval=[...]")
    sides = [torch.stack([_cosine(features, one), surprise(features, one)], 1) for one in (members, held_out)]
    found: dict[str, Metric] = {}
    for name, attack, values in (
        ("logistic", logistic, sides),
        ("likelihood", likelihood, [log_odds(x) for x in sides]),
    ):
        yes, no = scores(attack, values[0], values[1], folds=folds, seeds=range(seed, seed + seeds))
        who = f"({name} attack; members: forget pairs, others: held-out pictures of the same names)"
        reads = f"how often a member scores higher than a picture that was never trained on {who}: {_CHANCE}"
        found[f"mia/{name}_auc"] = area(yes, no, "lower", reads)
        reads = f"share of members caught while {false_positives:.0%} of the others at most are accused {who}"
        found[f"mia/{name}_tpr"] = caught(yes, no, false_positives, "lower", reads)
    unrelated = bare(task.eval.utility)
    if len(unrelated) < 2:
        return found
    yes, no = scores(logistic, sides[0][:, :1], _cosine(features, unrelated)[:, None], folds=folds,
                     seeds=range(seed, seed + seeds))  # fmt: skip
    against = "forget pairs against unrelated held-out pictures, as the paper's release does it"
    found["mia/release_auc"] = area(yes, no, "lower", f"how often a forget pair scores higher: {against}. {_CHANCE}")
    found["mia/release_accuracy"] = accuracy(yes, no, f"balanced accuracy of the attack: {against}. {_CHANCE}")
    return found


def trained_on(task: Task) -> LabelledImages:
    """The forget pairs as pictures labelled with their names, to be captioned with the bare name."""
    classes = Classes(task.eval.forget.classes.names, ("{}",))
    rows = [(k, i, classes.names.index(n)) for n in task.names
            for k, i in zip(task.forget[n].keys, task.forget[n].images, strict=True)]  # fmt: skip
    keys, images, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return LabelledImages(keys, images, labels, classes)


def bare(*parts: LabelledImages) -> LabelledImages:
    """Several sets of the same classes as one, captioned with the bare name."""
    join = [tuple(x for part in parts for x in getattr(part, field)) for field in ("keys", "images", "labels")]
    return LabelledImages(join[0], join[1], join[2], Classes(parts[0].classes.names, ("{}",)))


def scores(
    attack: Attack, members: Tensor, others: Tensor, *, folds: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(scores of the members, of the others): each by an attack that was fitted without it, the mean over `seeds`.

    Folds keep the shares of both sides, so that a fold's prior gives nothing away.
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
    """Decision values of logistic regression on standardised values, both sides weighing the same; 0 is undecided."""
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return model.fit(known, truth).decision_function(asked)


def likelihood(known: Array, truth: Array, asked: Array) -> Array:
    """Log ratio of two normal densities of one value, fitted to members and others."""
    spread = max(known.std() * 1e-3, 1e-9)
    sides = [known[truth == side, 0] for side in (1, 0)]
    yes, no = (norm.logpdf(asked[:, 0], side.mean(), max(side.std(), spread)) for side in sides)
    return yes - no


def log_odds(values: Tensor) -> Tensor:
    """(n, 1) `log(p / (1 - p))` of p = exp(-cross-entropy), the second column; finite whatever p is."""
    loss = values[:, 1:].double().clamp(1e-15)
    return -loss - torch.log(-torch.expm1(-loss))


def accuracy(members: Tensor, others: Tensor, reads: str) -> Metric:
    """Balanced accuracy of the sign of the scores, both sides resampled apart; Wilson's interval of as many samples as the
    smaller side has where all resamples agree, as when every answer is right (`rate_interval`)."""
    right = (members > 0).double().numpy(), (others <= 0).double().numpy()
    value = float(np.mean([side.mean() for side in right]))
    draws = np.mean([counts(len(side), i) @ side / len(side) for i, side in enumerate(right)], 0)
    smaller = min(len(members), len(others))
    return Metric(value, len(members) + len(others), *rate_interval(draws, value, smaller), "lower", reads)


def _cosine(features: Features, pictures: LabelledImages) -> Tensor:
    labels = torch.tensor(pictures.labels, dtype=torch.long)
    return own_cosine(features.images(pictures), features.classes(pictures.classes), labels)
