"""Evaluate steps on text encoders by the images that the pipeline generates with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from muwa.data.prompts import earlier_requests, image_requests
from muwa.eval.images.kept_prompts import judge_of
from muwa.layer_search.evaluators.outputs import Hits, evaluation
from muwa.layer_search.steps import candidate_of, edit_layers
from muwa.models.diffusion.image_classifier import recognised
from muwa.models.diffusion.image_generation import ROLES, ImageGenerator, prompts_of
from muwa.types.data import PROMPTS, Task
from muwa.types.image_requests import ImageRequest
from muwa.types.search import NOTHING_EDITED, RELATIVE, Candidate, Evaluation, Layer

if TYPE_CHECKING:
    from muwa.layer_search.generation import Generation
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.gradients import Gradients


class ImageEvaluator:
    """Generates images of the probe prompts with an edit; compares what is recognised with before the edit.

    Args:
        search: Its settings: the classifier and the numbers of images and sampling steps. It must be ready
            (`Generation.ready`).
        model: The unedited pipeline.
        gradients: Text encoder -> the gradients of its CLIP.
        task: The names to forget, together; its probe split gives the prompts.
        run: Its cache stores the images.

    Attributes:
        confirmation: How a step is confirmed, as a noun phrase: "12 sampling steps, fresh seeds".
    """

    def __init__(
        self, search: Generation, model: Diffusion, gradients: Mapping[str, Gradients], task: Task, run: Run
    ):
        self._search, self._model, self._gradients, self._run = search, model, gradients, run
        self._classifier, self._names = judge_of(search.classifier, model, task), task.names
        self.confirmation = f"{model.sampling.steps} sampling steps, fresh seeds"
        known = self._classifier.limited(task)
        self._requests = {
            fresh: [
                *probe_requests(search, known, fresh=fresh),
                *filter(self._classifier.knows, probe_earlier(search, task, fresh=fresh)),
            ]
            for fresh in (False, True)
        }
        self._before: dict[bool, Hits] = {}
        self._texts = model.clip.encode("text", model.clip.tokenize(list(task.names))).detach().cpu()

    def before(self) -> Evaluation:
        """Evaluate the unedited model with the sampling steps of the search, not those of a confirmation."""
        return self._evaluation(self._model, NOTHING_EDITED, 0.0, 0.0, confirm=False)[0]

    def __call__(
        self, layers: Mapping[str, Layer], step: float, *, confirm: bool = False
    ) -> tuple[Evaluation, float]:
        """Evaluate one step on one layer of each text encoder.

        Args:
            step: In units of each layer's |theta| / |g_f|.
            confirm: Confirm the step: use the model's own number of sampling steps, and fresh seeds.

        Returns:
            (the evaluation; how much of the retain and utility sets was lost, as
            `muwa.layer_search.evaluators.outputs.Hits.lost` defines it).
        """
        concept = ", ".join(self._names)
        edit = edit_layers(self._model, self._gradients, layers, step, unit=RELATIVE, concept=concept)
        size = edit.moves[0].relative_norm
        row, hits = self._evaluation(
            self._model.edited(edit), candidate_of(layers), step, size, confirm=confirm
        )
        return row, hits.lost(self._hits_before(confirm))

    def _hits_before(self, confirm: bool) -> Hits:
        if confirm not in self._before:
            images = self._generate(self._model, confirm)
            self._before[confirm] = self._hits(images, confirm, 1)
        return self._before[confirm]

    def _evaluation(
        self, model: Diffusion, candidate: Candidate, step: float, size: float, *, confirm: bool
    ) -> tuple[Evaluation, Hits]:
        images = self._generate(model, confirm)
        hits = self._hits(images, confirm, 1)
        requests = self._requests[confirm]
        forget = [(i, one.concept) for i, one in enumerate(requests) if one.role == "forget"]
        row = evaluation(
            hits,
            candidate,
            step,
            size,
            forget_at_most=self._search.forget_at_most,
            forget_top5=self._hits(images, confirm, 5).rate("forget"),
            closeness=self._cosine(images[[i for i, _ in forget]], [concept for _, concept in forget]),
            before=self._hits_before(confirm) if any(one.role == "earlier" for one in requests) else None,
        )
        return row, hits

    def _generate(self, model: Diffusion, confirm: bool) -> Tensor:
        generator = ImageGenerator(model, self._run)
        if not confirm:
            generator = generator.sampled(self._search.sampling_steps)
        return generator.generate(prompts_of(self._requests[confirm]))

    def _hits(self, images: Tensor, confirm: bool, k: int) -> Hits:
        """Whether the requested concept is among the classifier's first `k` guesses for each image."""
        requests = self._requests[confirm]
        right = recognised(images, requests, self._classifier, k)
        roles = [one.role if one.role == "earlier" else ROLES[one.role] for one in requests]
        return Hits(right, roles, [one.concept for one in requests])

    @torch.inference_mode()
    def _cosine(self, images: Tensor, concepts: Sequence[str]) -> float:
        """The mean cosine of each image with the name of its own concept, by the unedited CLIP."""
        clip = self._model.clip
        ready = [clip.prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
        features = clip.encode("vision", clip.prepare.scale(torch.stack(ready).to(clip.device))).cpu()
        own = torch.tensor([[self._names.index(concept)] for concept in concepts])
        return (features @ self._texts.T).gather(1, own).mean().item()


def probe_requests(search: Generation, task: Task, *, fresh: bool) -> list[ImageRequest]:
    """The image requests of each step: for the names to forget, for others of their kind, for unrelated ones.

    There are `search.pictures` images of each name to forget. Each of the three sets is spread evenly over
    the probe split. Two thirds of the images of other names are of the same kind. In tasks of kind "style"
    and "class", one image shows both a style and a class: both are requested of the same image, so that no
    image is generated twice. Prompts of a file have no unrelated set: all images of others are of prompts
    that are to be kept.

    Args:
        search: Its settings give the numbers of images.
        fresh: Whether to take other seeds than those of the search, for a confirmation.
    """
    retained = search.retain_pictures if task.kind == PROMPTS else -(-2 * search.retain_pictures // 3)
    unrelated = search.retain_pictures - retained
    first = search.pictures if fresh else 0
    every = image_requests(task, task.probe, seeds=range(first, first + search.pictures))
    forget = _evenly([one for one in every if one.role == "forget"], search.pictures * len(task.names))
    retain = _evenly([one for one in every if one.role == "retain"], retained)
    cross = [one for one in every if one.role == "cross"]
    if task.kind in ("style", "class"):
        same = {(one.text, one.seed) for one in retain}
        cross = [one for one in cross if (one.text, one.seed) in same]
    return [*forget, *retain, *_evenly(cross, unrelated)]


def probe_earlier(search: Generation, task: Task, *, fresh: bool) -> list[ImageRequest]:
    """The image requests of each step for names that were forgotten before.

    There are as many as for a name to forget, but at least two for each name.
    """
    first = search.pictures if fresh else 0
    every = earlier_requests(task, task.probe, seeds=range(first, first + search.pictures))
    names = {one.concept for one in every}
    return _evenly(every, max(search.pictures, 2 * len(names)))


def _evenly(requests: Sequence[ImageRequest], count: int) -> list[ImageRequest]:
    """`count` of the requests, evenly over their order; all of them if there are no more."""
    count = min(count, len(requests))
    return [requests[i * len(requests) // count] for i in range(count)]
