"""Search for a layer and a step of the text encoders by the images generated before and after the edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from muwa.eval.images.kept_prompts import judge_of
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.by_outputs import by_outputs
from muwa.layer_search.checks import check_at_least_1, check_enough
from muwa.layer_search.evaluators.images import ImageEvaluator, probe_requests
from muwa.layer_search.settings import OutputSettings
from muwa.models.base import Observer
from muwa.models.diffusion.image_classifier import ClassifierLoader
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.run import Run
from muwa.types.data import PROMPTS, Task
from muwa.types.gradients import Gradients
from muwa.types.ranges import Count
from muwa.types.search import Search


@dataclass(frozen=True)
class Generation(OutputSettings, LayerSearch):
    """Bisect the step of each candidate until the concept is no longer generated and the others still are.

    A candidate is a layer; with two text encoders (XL) it is one layer of each. Both are edited by the same
    fraction of their |theta| / |g_f|. Prompts come from the probe split. Seeds start at 0, so a report should
    use other seeds.

    Args:
        classifier: Loads the image classifier that evaluates steps. It is never the model under test.
        pictures: Number of images of each concept to forget generated for each step.
        retain_pictures: Number of images of others generated for each step: two thirds of the same kind as
            the concept, one third unrelated.
        sampling_steps: Sampling steps of each image of the search. A confirmation uses the model's own
            number, and fresh seeds.

    The other arguments are those of `muwa.layer_search.settings.OutputSettings`.

    Source: SLUG (arXiv 2407.11867), algorithm 3 and section 4.2: stop when the concept is gone and the others
    are within 10 points. Differs: the release evaluates each step on three unseeded images of each set, and
    compares rates without intervals. Here the numbers of images are settings, and seeds are fixed. Each image
    is compared with the image of the same prompt and seed before the edit, and intervals decide.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    classifier: ClassifierLoader
    pictures: Count
    retain_pictures: Count
    sampling_steps: Count

    def check(self, model: Any, task: Task) -> None:
        """Raise if a setting is out of range or does not fit the model. Loads the classifier, which must know
        every concept.

        Raises:
            ValueError: Names the key, what it was and what it may be.
            FileNotFoundError: The classifier's weights are missing.
        """
        self.check_settings("layer_search=generation", model)
        check_at_least_1(
            pictures=self.pictures, retain_pictures=self.retain_pictures, sampling_steps=self.sampling_steps
        )
        if self.start == "clip" and task.kind == PROMPTS:
            raise ValueError(
                "layer_search.start: got 'clip', but task=prompts has no images to search the CLIP by; want "
                "ratio, gain or null"
            )
        check_enough("layer_search.pictures", self.pictures, self.forget_at_most)
        classifier = judge_of(self.classifier, model, task)
        classifier.check(probe_requests(self, classifier.limited(task), fresh=False))

    def ready(self, model: Any, task: Task) -> Self:
        """The same search with its classifier loaded: the cache key then depends on its weights."""
        return replace(self, classifier=judge_of(self.classifier, model, task))

    def __call__(
        self, model: Any, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search the text encoders of a pipeline; the keys of `gradients` are their names."""
        evaluator = ImageEvaluator(self, model, gradients, task, run)
        return by_outputs(self, evaluator, model, gradients, task, concept, run=run)
