"""Of a set of prompts, how many pictures still show what is asked for: of the forgotten, of its like, of everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muwa.data.prompts import image_requests
from muwa.eval.clip.accuracy import wilson
from muwa.models.diffusion.image_generation import ImageClassifier, ImageGenerator
from muwa.types.data import Task
from muwa.types.image_requests import ImageRequest
from muwa.types.metric import Metric


def answers(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], seeds: int = 5, forget_seeds: int = 20,
    first_seed: int = 1000, retain: int | None = 12, cross: int | None = 12,
) -> dict[str, Metric]:  # fmt: skip
    """`forget/ua`, `retain/ira`, `retain/cra`: unlearning, in-domain and cross-domain retain accuracy. Higher is better.

        UA = 1 - hits / pictures of the forgotten        IRA, CRA = hits / pictures of the others, of the other domain

    Args:
        classifier: Makes the judge; it looks for what was asked for among all labels of its domain.
        seeds: LabelledImages a prompt, from `first_seed` on.
        forget_seeds: LabelledImages of each forgotten name, of kinds "identity" and "object", which have one prompt a name.
        retain, cross: How many of the other and of the unrelated names are asked for; None is all.

    Raises:
        ValueError: The classifier has no label for something that is asked for; nothing was drawn then.

    Source: UnlearnCanvas (arXiv 2402.11846), section 4. As in its code, CRA counts the pictures of the forgotten too: those
    of a forgotten style are judged for their class. Differs: with Wilson intervals, over all pictures.
    """
    wanted = canvas(task, seeds=seeds, forget_seeds=forget_seeds, first_seed=first_seed, retain=retain, cross=cross)
    judge = classifier()
    judge.check(wanted)
    hits = image_generator.hits(wanted, judge)
    by_role = {role: [hit for hit, ask in zip(hits, wanted, strict=True) if ask.role == role] for role in ROLES}
    return {
        "forget/ua": share([not hit for hit in by_role["forget"]], "higher", f"share of {_READS['forget']}"),
        "retain/ira": share(by_role["retain"], "higher", f"share of {_READS['retain']}"),
        "retain/cra": share(by_role["cross"], "higher", f"share of {_READS['cross']}"),
    }


ROLES = ("forget", "retain", "cross")
_READS = {
    "forget": "pictures asked for the forgotten in which the classifier sees something else first (unlearning accuracy)",
    "retain": "pictures asked for other names of its kind that are recognised as such (in-domain retain accuracy)",
    "cross": "pictures asked for names of another kind that are recognised as such (cross-domain retain accuracy)",
}


def canvas(
    task: Task, *, seeds: int, forget_seeds: int, first_seed: int, retain: int | None, cross: int | None
) -> list[ImageRequest]:
    """What `answers` asks for, in the order of `image_requests`."""
    found = image_requests(task, task.eval, seeds=range(first_seed, first_seed + seeds), retain=retain, cross=cross)
    if task.kind in ("style", "class"):
        return found
    more = image_requests(task, task.eval, seeds=range(first_seed, first_seed + forget_seeds), retain=0, cross=0)
    return [*more, *(ask for ask in found if ask.role != "forget")]


def share(hits: Sequence[bool], better: str, reads: str) -> Metric:
    """The share of `hits` with its Wilson interval; 0 in [0, 1] when there are none.

    >>> share([True, False], "lower", "").value
    0.5
    """
    low, high = wilson(sum(hits), len(hits))
    return Metric(sum(hits) / len(hits) if hits else 0.0, len(hits), low, high, better, reads)
