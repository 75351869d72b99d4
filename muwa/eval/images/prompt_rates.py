"""How often the target is detected in images of a file's prompts, and what images of the others show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from muwa.data.prompts import earlier_requests, image_requests, kept_label, rows_of
from muwa.eval.base import Measure
from muwa.eval.images.canvas import COUNTED, GONE_AT, hit_rate
from muwa.eval.images.kept_prompts import judge_of
from muwa.eval.so_far import so_far
from muwa.models.base import Observer
from muwa.models.diffusion.image_classifier import (
    ClassifierLoader,
    ImageClassifier,
    labels_naming,
    margins,
    recognised,
)
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.types.data import PROMPTS, Task
from muwa.types.image_requests import ImageRequest
from muwa.types.metric import Metric, Reading, Sample
from muwa.types.ranges import Count, Seed

DETECTED = Reading(
    "fraction of images, generated from the file's prompts about the target, in which the target is detected",
    better="lower",
    role="forgotten",
    in_objective=True,
    label="detected in images of its prompts",
    counted=COUNTED,
    gone_at=GONE_AT,
)
OF_CONCEPT = replace(DETECTED, role="", in_objective=False, label="", section="Detections by concept")
MATCHED = Reading(
    "fraction of images of the prompts to be kept whose nearest prompt, of all that are kept, is their own "
    "or names the same concept, by an unedited CLIP (CLIP R-precision)",
    role="kept",
    in_objective=True,
    label="Prompts that are kept, matched by their images",
    counted=COUNTED,
)
OTHERS = Reading(
    "fraction of images of the prompts to be kept in which the concept of the prompt is detected, where the "
    "detector knows it",
    role="kept",
    in_objective=True,
    label="Other concepts, detected in images of their prompts",
    counted=COUNTED,
)
FALSE = Reading(
    "fraction of images of the prompts to be kept in which a target is detected",
    better="lower",
    counted=COUNTED,
)


@dataclass(frozen=True)
class PromptRates(Measure):
    """`forget/detected`, `retain/matched`, `retain/detected`, `retain/target_detected`: rates over a file.

    With several names to forget there is also `detected/NAME` for each. `retain/detected` is left out if the
    detector knows no concept of the prompts to be kept. Each metric has its samples: prompt, seed, score and
    whether it counted.

    Args:
        classifier: Loads the detector.
        seeds: Images per prompt, from the file's seed on; or first_seed, first_seed + 1, ... where the file
            has none.
        first_seed: The first seed of prompts without one.

    Raises:
        ValueError: The task has no prompts, `seeds` is below 1, or the detector does not know a name to
            forget (`check`).

    Sources: I2P (arXiv 2211.05105), the rate of inappropriate images; HUB (arXiv 2410.05664), the target
    proportion. Differs: Wilson intervals. Images of one prompt with several seeds count as independent.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator
    reads_prompts: ClassVar[bool] = True

    classifier: ClassifierLoader
    seeds: Count
    first_seed: Seed

    def check(self, model: Any, task: Task) -> None:
        """Raise if the task has no prompts, or the detector does not know a name to forget."""
        if task.kind != PROMPTS:
            raise ValueError(
                f"eval.prompts: got a task of kind {task.kind!r}, want task=prompts; take eval=[canvas]"
            )
        if self.seeds < 1:
            raise ValueError(f"eval.prompts.seeds: got {self.seeds}, want at least 1")
        judge_of(self.classifier, model, task).check(self.requests(task))

    def requests(self, task: Task) -> list[ImageRequest]:
        """The images that are asked for."""
        return image_requests(
            task, task.eval, seeds=range(self.first_seed, self.first_seed + self.seeds), retain=None
        )

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        requests = self.requests(task)
        images = observer.generate(prompts_of(requests))
        judge = judge_of(self.classifier, observer.model, task)
        forget = [i for i, one in enumerate(requests) if one.role == "forget"]
        kept = [i for i, one in enumerate(requests) if one.role == "retain"]
        asked = [requests[i] for i in forget]
        samples = scored(images[forget], asked, judge)
        metrics = {"forget/detected": rate(samples, DETECTED)}
        if len(task.names) > 1:
            for name in task.names:
                mine = [one for one in samples if one.concept == name]
                metrics[f"detected/{name.replace(' ', '_')}"] = rate(mine, OF_CONCEPT)
        if about := list(filter(judge.knows, self.earlier(task))):
            before = scored(observer.generate(prompts_of(about)), about, judge)
            parts = {"forget": samples, "earlier": before}
            metrics |= so_far(
                "detected",
                DETECTED,
                lambda roles, reading: rate([one for r in sorted(roles) for one in parts[r]], reading),
            )
        if kept:
            metrics |= self._kept(images[kept], [requests[i] for i in kept], judge, task)
        return metrics

    def earlier(self, task: Task) -> list[ImageRequest]:
        """The images of concepts that were forgotten before."""
        return earlier_requests(task, task.eval, seeds=range(self.first_seed, self.first_seed + self.seeds))

    def _kept(
        self, images: Tensor, requests: Sequence[ImageRequest], judge: ImageClassifier, task: Task
    ) -> dict[str, Metric]:
        """The metrics of the prompts to be kept."""
        names = task.eval.forget.classes.names
        matched = [
            one if one.concept in names else replace(one, concept="")
            for one in scored(images, requests, judge)
        ]
        metrics = {"retain/matched": rate(matched, MATCHED)}
        known = known_concepts(task, judge)
        named = [(i, known[one.text]) for i, one in enumerate(requests) if one.text in known]
        if named:
            asked = [replace(requests[i], domain="class", concept=concept) for i, concept in named]
            metrics["retain/detected"] = rate(scored(images[[i for i, _ in named]], asked, judge), OTHERS)
        each = [
            recognised(images, [replace(one, domain="class", concept=name) for one in requests], judge)
            for name in task.names
        ]
        metrics["retain/target_detected"] = hit_rate([any(hits) for hits in zip(*each, strict=True)], FALSE)
        return metrics


def scored(images: Tensor, requests: Sequence[ImageRequest], judge: ImageClassifier) -> tuple[Sample, ...]:
    """What the judge says of each image (n, 3, h, w): its score (`margins`), and whether it is recognised."""
    rows = zip(requests, margins(images, requests, judge), recognised(images, requests, judge), strict=True)
    return tuple(
        Sample(one.text, one.seed, one.guidance, one.concept, score, hit) for one, score, hit in rows
    )


def rate(samples: Sequence[Sample], reading: Reading) -> Metric:
    """The fraction of samples that counted, with its Wilson interval; the metric holds the samples."""
    return replace(hit_rate([one.hit for one in samples], reading), samples=tuple(samples))


def known_concepts(task: Task, judge: ImageClassifier) -> Mapping[str, str]:
    """Prompt to be kept -> the first of its concepts that the detector has a label for."""
    found: dict[str, str] = {}
    labels = judge.labels.get("class", ())
    known: dict[str, bool] = {}
    for row in rows_of(task.eval, "retain"):
        for concept in (kept_label(row), *row.concepts):
            if concept in row.concepts:
                if concept not in known:
                    known[concept] = bool(labels_naming(labels, concept))
                if known[concept]:
                    found.setdefault(row.text, concept)
    return found
