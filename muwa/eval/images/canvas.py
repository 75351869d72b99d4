"""How often generated images show the concept that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from muwa.data.prompts import earlier_requests, image_requests
from muwa.eval.base import Measure
from muwa.eval.so_far import so_far
from muwa.eval.statistics import by_name, most_frequent, wilson
from muwa.models.base import Observer
from muwa.models.diffusion.image_classifier import ClassifierLoader, first_guesses
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.types.data import Task
from muwa.types.image_requests import ImageRequest
from muwa.types.metric import Metric, Outcomes, Reading
from muwa.types.ranges import Count, CountOrZero, Seed

COUNTED = "generated images"
GONE_AT = 0.05  # one image of 20

UNLEARNING = Reading(
    "fraction of images, generated from prompts for the target, whose first classifier guess is something "
    "else (unlearning accuracy)",
    role="forgotten",
    in_objective=True,
    label="generated when asked for",
    counted=COUNTED,
    gone_at=GONE_AT,
)
IN_DOMAIN = Reading(
    "fraction of images generated from prompts for other names of the same kind that are recognised as such "
    "(in-domain retain accuracy)",
    role="kept",
    in_objective=True,
    label="Others of the same kind, generated and recognised",
    counted=COUNTED,
)
CROSS_DOMAIN = Reading(
    "fraction of images generated from prompts for names of another kind that are recognised as such "
    "(cross-domain retain accuracy)",
    role="kept",
    in_objective=True,
    label="Everything else, generated and recognised",
    counted=COUNTED,
)


@dataclass(frozen=True)
class Canvas(Measure):
    """`forget/ua`, `retain/ira`, `retain/cra`: unlearning, in-domain and cross-domain retain accuracy.

        UA  = 1 - hits / images of the target
        IRA = hits / images of other names of the same kind
        CRA = hits / images of names of the other kind

    A hit is an image whose first classifier guess is the name that was asked for. Higher is better for all
    three. If names were forgotten before: `earlier/ua` and `so_far/ua` (`muwa.eval.so_far`).

    Args:
        classifier: Loads the classifier, which chooses among all its labels of a request's domain.
        seeds: Images per prompt in tasks of kind "style" and "class", where a name has many prompts. Their
            seeds are first_seed, first_seed + 1, ...
        forget_seeds, kept_seeds: Images per name to forget, and per other name, in tasks of kind "identity"
            and "object", where a name has a single prompt.
        first_seed: The first seed.
        retain, cross: How many names of the same kind and of the other kind are asked for; None takes all
            that the classifier has labels for.

    Raises:
        ValueError: The classifier has no label for a concept that is asked for (`check`).

    Source: UnlearnCanvas (arXiv 2402.11846), section 4. As in its code, CRA counts the images of the target
    too: an image of a style to forget counts for its class. Differs: Wilson intervals over all images.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    classifier: ClassifierLoader
    seeds: Count
    forget_seeds: Count
    kept_seeds: Count
    first_seed: Seed
    retain: CountOrZero | None
    cross: CountOrZero | None

    def check(self, model: Any, task: Task) -> None:
        """Raise if the classifier cannot be loaded, or has no label for a concept that is asked for."""
        classifier = self.classifier(model, task)
        classifier.check(self.requests(classifier.limited(task)))

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        classifier = self.classifier(observer.model, task)
        requests = [*self.requests(classifier.limited(task)), *filter(classifier.knows, self.earlier(task))]
        hits = observer.hits(requests, classifier)

        def rate(roles: frozenset[str], wanted: bool, reading: Reading) -> Metric:
            mine = [
                (hit == wanted, one.concept)
                for hit, one in zip(hits, requests, strict=True)
                if one.role in roles
            ]
            counted = [hit for hit, _ in mine]
            return replace(hit_rate(counted, reading), by_name=by_name(counted, [name for _, name in mine]))

        metrics = {
            "forget/ua": rate(frozenset({"forget"}), False, UNLEARNING),
            "retain/ira": rate(frozenset({"retain"}), True, IN_DOMAIN),
            "retain/cra": rate(frozenset({"cross"}), True, CROSS_DOMAIN),
        }
        asked = [one for one in requests if one.role == "forget"]
        guesses = first_guesses(observer.generate(prompts_of(asked)), asked, classifier) if asked else ()
        metrics["forget/ua"] = replace(metrics["forget/ua"], guessed=most_frequent(guesses))
        if any(one.role == "earlier" for one in requests):
            metrics |= so_far("ua", UNLEARNING, lambda r, reading: rate(r, False, reading))
        return metrics

    def earlier(self, task: Task) -> list[ImageRequest]:
        """The images of names that were forgotten before: as many of each as of a name to forget."""
        styles = task.kind in ("style", "class")
        count = self.seeds if styles else self.forget_seeds
        return earlier_requests(task, task.eval, seeds=range(self.first_seed, self.first_seed + count))

    def requests(self, task: Task) -> list[ImageRequest]:
        """The images that are asked for."""
        count = kept_count(task, self.seeds, self.kept_seeds)
        seeds = range(self.first_seed, self.first_seed + count)
        forget_seeds = range(self.first_seed, self.first_seed + self.forget_seeds)
        return canvas_requests(task, seeds, forget_seeds, self.retain, self.cross)


def kept_count(task: Task, seeds: int, kept_seeds: int) -> int:
    """Images per prompt of what is kept: `kept_seeds` where a name has a single prompt, else `seeds`."""
    return kept_seeds if task.kind in ("identity", "object") else seeds


def canvas_requests(
    task: Task, seeds: Sequence[int], forget_seeds: Sequence[int], retain: int | None, cross: int | None
) -> list[ImageRequest]:
    """The requests of `Canvas`, in the order of `image_requests`.

    Args:
        seeds: Seeds of each prompt.
        forget_seeds: Seeds of the prompts for the names to forget, in tasks of kind "identity" and "object".
        retain, cross: The same as in `Canvas`.
    """
    requests = image_requests(task, task.eval, seeds=seeds, retain=retain, cross=cross)
    if task.kind in ("style", "class"):
        return requests
    forgotten = image_requests(task, task.eval, seeds=forget_seeds, retain=0, cross=0)
    return [*forgotten, *(one for one in requests if one.role != "forget")]


def hit_rate(hits: Sequence[bool], reading: Reading) -> Metric:
    """The fraction of `hits` that are true, with its Wilson interval; 0 in [0, 1] if there are none.

    >>> hit_rate([True, False], Reading()).value
    0.5
    """
    low, high = wilson(sum(hits), len(hits))
    value = sum(hits) / len(hits) if hits else 0.0
    return Metric(value, len(hits), low, high, reading, outcomes=Outcomes(tuple(map(float, hits))))
