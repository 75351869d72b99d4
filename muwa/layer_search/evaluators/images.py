"""One step of a text encoder, judged by what the pipeline draws with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from muwa.cache.store import Store
from muwa.data.prompts import image_requests
from muwa.eval.clip.accuracy import wilson
from muwa.layer_search.candidates import Candidate, moved
from muwa.layer_search.steps import relative_size
from muwa.models.diffusion.image_generation import ImageClassifier, ImageGenerator, prompts_of, seen
from muwa.models.diffusion.model import Diffusion
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.image_requests import ImageRequest
from muwa.types.search import Evaluation


class ImageEvaluator:
    """Draws the probe prompts with a candidate edit and says what is still recognised, against the unedited model's.

    Args:
        pictures: Of the concept, for each step.
        others: Of retained and unrelated concepts together: two thirds and one third.
        steps: Sampling steps while searching; the model's own number confirms, with fresh seeds.
        forget_at_most: Feasible: the 95 % interval of the concept's recognition lies below it.
    """

    def __init__(
        self, model: Diffusion, gradients: Mapping[str, Gradients], task: Task, classifier: ImageClassifier, store: Store | None,
        pictures: int, others: int, steps: int, forget_at_most: float, progress: bool,
    ):  # fmt: skip
        self._model, self._gradients, self._classifier = model, gradients, classifier
        self._store, self._progress, self._limit = store, progress, forget_at_most
        self._name, self._steps = task.names[0], steps
        self.anew = f"Drawn again with {model.sampling.steps} sampling steps from fresh seeds"
        retained = -(-2 * others // 3)
        self._asks = {fresh: probes(task, pictures, retained, others - retained, fresh) for fresh in (False, True)}
        for some in self._asks.values():
            classifier.check(some)
        self._before: dict[int | None, list[bool]] = {}
        self._text = model.clip.encode("text", model.clip.tokenize([self._name])).detach().cpu()

    @property
    def counts(self) -> tuple[int, int]:
        """Retain and cross pictures that rates are of."""
        roles = [ask.role for ask in self._asks[False]]
        return roles.count("retain"), roles.count("cross")

    def before(self) -> Evaluation:
        """The unedited model, drawn with the search's sampling steps."""
        return self._row(self._draw(self._model, self._steps), "", 0.0, 0.0, self._steps)

    def judge(self, candidate: Candidate, step: float, *, anew: bool = False) -> tuple[Evaluation, float]:
        """One step of a candidate; `anew` with the model's own sampling steps and fresh seeds.

        Returns:
            (the evaluation, `step` as given; the upper end of the 95 % interval of the share lost among the other pictures
            that the unedited model drew recognisably from the same seeds).
        """
        edit = moved(self._model, self._gradients, candidate.layers, step)
        encoder, layer = next(iter(candidate.layers.items()))
        size = relative_size(self._model.clips[encoder], layer, edit.deltas)
        steps = None if anew else self._steps
        hits, pictures = self._draw(self._model.edited(edit), steps)
        lost = [not hit for hit, known, ask in zip(hits[1], self._known(steps), self._asks[steps is None], strict=True)
                if known and ask.role != "forget"]  # fmt: skip
        return self._row((hits, pictures), candidate.name, step, size, steps), wilson(sum(lost), len(lost))[1]

    def _known(self, steps: int | None) -> list[bool]:
        if steps not in self._before:
            self._before[steps] = self._draw(self._model, steps)[0][1]
        return self._before[steps]

    def _draw(self, model: Diffusion, steps: int | None) -> tuple[dict[int, list[bool]], Tensor]:
        """(k -> whether each asked-for concept is among the classifier's first k; the pictures of the concept)."""
        image_generator = ImageGenerator(model, self._store, progress=self._progress)
        wanted = self._asks[steps is None]
        pictures = (image_generator if steps is None else image_generator.sampled(steps)).draw(prompts_of(wanted))
        mine = [i for i, ask in enumerate(wanted) if ask.role == "forget"]
        return {k: seen(pictures, wanted, self._classifier, k) for k in (1, 5)}, pictures[mine]

    def _row(
        self, drawn: tuple[dict[int, list[bool]], Tensor], layer: str, step: float, size: float, steps: int | None
    ) -> Evaluation:
        hits, pictures = drawn
        wanted = self._asks[steps is None]

        def rate(role: str, k: int = 1) -> float:
            mine = [hit for hit, ask in zip(hits[k], wanted, strict=True) if ask.role == role]
            return sum(mine) / max(1, len(mine))

        forgotten = sum(hit for hit, ask in zip(hits[1], wanted, strict=True) if ask.role == "forget")
        return Evaluation(
            layer=layer, tower="text" if layer else "", iteration=0, step=step, relative_norm=size,
            forget_top1=rate("forget"), forget_top5=rate("forget", 5), forget_cosine=self._cosine(pictures),
            retain_top1=rate("retain"), utility_top1=rate("cross"),
            feasible=wilson(forgotten, len(pictures))[1] <= self._limit,
        )  # fmt: skip

    @torch.inference_mode()
    def _cosine(self, pictures: Tensor) -> float:
        """Mean cosine of the concept's pictures with its name, by the unedited CLIP."""
        clip = self._model.clip
        ready = [clip.prepare(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in pictures]
        images = clip.encode("vision", clip.prepare.scale(torch.stack(ready).to(clip.device))).cpu()
        return (images @ self._text.T).mean().item()


def probes(task: Task, pictures: int, retained: int, cross: int, fresh: bool) -> list[ImageRequest]:
    """What a search draws for each step: `pictures` of the concept, `retained` and `cross` others, evenly spread.

    Of kinds "style" and "class" a retained picture is asked for both its style and its class, so that none is drawn twice.
    `fresh` takes other seeds.
    """
    first = pictures if fresh else 0
    every = image_requests(task, task.probe, seeds=range(first, first + pictures))
    found = _evenly([ask for ask in every if ask.role == "forget"], pictures)
    kept = _evenly([ask for ask in every if ask.role == "retain"], retained)
    if task.kind in ("style", "class"):
        same = {(ask.text, ask.seed) for ask in kept}
        others = [ask for ask in every if ask.role == "cross" and (ask.text, ask.seed) in same]
    else:
        others = [ask for ask in every if ask.role == "cross"]
    return [*found, *kept, *_evenly(others, cross)]


def _evenly(some: Sequence[ImageRequest], count: int) -> list[ImageRequest]:
    count = min(count, len(some))
    return [some[i * len(some) // count] for i in range(count)]
