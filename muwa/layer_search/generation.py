"""Search a layer and a step of the text encoders by the images generated before and after the edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from muwa.layer_search.base import LayerSearch
from muwa.layer_search.by_outputs import by_outputs
from muwa.layer_search.checks import check_at_least_1, check_enough
from muwa.layer_search.evaluators.images import ImageEvaluator, probe_requests
from muwa.layer_search.settings import OutputSettings
from muwa.models.diffusion.image_classifier import ClassifierLoader
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Search


@dataclass(frozen=True)
class Generation(OutputSettings, LayerSearch):
    """Bisect the step of each candidate until the concept is no longer generated and the others still are.

    A candidate is a layer; with two text encoders (XL) it is one layer of each. Both are moved by the same
    fraction of their |theta| / |g_f|. Prompts come from the probe split, and seeds start at 0; a report is to
    use other seeds.

    Args:
        classifier: Loads the classifier of images. It is never the model under test.
        pictures: Images of the concept that are generated for each step.
        retain_pictures: Other images that are generated for each step: two thirds of the same kind, one third
            unrelated.
        sampling_steps: While searching. A confirmation takes the model's own number, and fresh seeds.
        Others: As in `muwa.layer_search.settings.OutputSettings`.

    Source: SLUG (arXiv 2407.11867), algorithm 3 and section 4.2: stop when the concept is gone and the others
    are within 10 points. Differs: the release judges each step on three unseeded images of each set, by
    points. Here the numbers are given, seeds are fixed, each image is compared with its own image before, and
    intervals decide.
    """

    classifier: ClassifierLoader
    pictures: int
    retain_pictures: int
    sampling_steps: int

    def check(self, model: Any, task: Task) -> None:
        """Load the classifier. Raise if it does not know a concept, or a setting does not fit.

        Raises:
            ValueError: Names the key, what it was and what it may be.
            FileNotFoundError: The classifier's weights are missing.
        """
        self.check_settings("layer_search=generation", ImageGenerator, model)
        check_at_least_1(
            pictures=self.pictures, retain_pictures=self.retain_pictures, sampling_steps=self.sampling_steps
        )
        check_enough("layer_search.pictures", self.pictures, self.forget_at_most)
        classifier = self.classifier(model, task)
        for name in task.names:
            classifier.check(probe_requests(self, task.only(name), fresh=False))

    def ready(self, model: Any, task: Task) -> Self:
        """The same search with its classifier loaded: the cache key is then made of its weights."""
        return replace(self, classifier=self.classifier(model, task))

    def __call__(
        self, model: Any, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search the text encoders of a pipeline; gradients are under their names."""
        evaluator = ImageEvaluator(self, model, gradients, task, run)
        return by_outputs(self, evaluator, model, gradients, task, concept, run=run)
