"""Evaluate an edit of any weights of a CLIP by zero-shot accuracy on the probe images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from muwa.layer_search.choice import kept_error, kept_rate
from muwa.layer_search.evaluators.zero_shot import EARLIER, rates, sets_of
from muwa.models.clip.embeddings import Features, Tower, class_features, image_features
from muwa.models.clip.layers import tower_of
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Split
from muwa.types.edit import Edit
from muwa.types.search import ALL_WEIGHTS, BOTH_TOWERS, NOTHING_EDITED, Candidate, Evaluation

WHOLE_MODEL = Candidate({"": ALL_WEIGHTS}, BOTH_TOWERS)


class EditEvaluator:
    """Evaluates edits of one CLIP on a probe split. An edit may change any of its weights.

    Args:
        features: The decoded images and the embeddings of the unedited model.
        probe: Images that neither give gradients nor enter the report.
        criterion, target: An edit is feasible if its forget accuracy by `criterion` ("top5" | "top1") is at
            most `target`.
        step_unit: The unit of a step, for the record: "learning rate", "strength", ...
    """

    def __init__(self, features: Features, probe: Split, *, criterion: str, target: float, step_unit: str):
        self.features, self._criterion, self._target, self._step_unit = features, criterion, target, step_unit
        self._images = sets_of(probe)
        self._earlier = 1.0  # the most that earlier names may be recognised
        self._classes: dict[str, Classes] = {
            some.classes.fingerprint: some.classes for some in self._images.values()
        }
        self._pixels: dict[str, Tensor] = {}
        self._model_norm = norm(features.model.weights)
        self._counts = len(probe.retain), len(probe.utility)

    @property
    def largest_error(self) -> float:
        """The largest standard error that a kept rate can have on this split: that of two rates of 0.5."""
        return kept_error(0.5, 0.5, self._counts)

    def before(self) -> Evaluation:
        """Evaluate the unedited model."""
        first = self({}, 0, 0.0, NOTHING_EDITED)
        self._earlier = max(self._target, self._earlier_rate(first.metrics))
        return first

    def _earlier_rate(self, measured: Mapping[str, float]) -> float:
        """The rate at which earlier names are recognised; 0 if there are none."""
        return measured.get(f"{EARLIER}_{self._criterion}", 0.0)

    def __call__(
        self, deltas: Mapping[str, Tensor], iteration: int, step: float, candidate: Candidate = WHOLE_MODEL
    ) -> Evaluation:
        """Evaluate `theta + delta`. Embeddings of a tower without deltas are not computed again.

        Args:
            deltas: Parameter name -> fp32 change.
            iteration, step, candidate: Values to record.

        Returns:
            The evaluation. Its `relative_norm` is |delta| / |theta|, over the whole model if `candidate` is
            `WHOLE_MODEL`, else over the tensors that change.
        """
        measured = self._rates(deltas)
        if candidate in (WHOLE_MODEL, NOTHING_EDITED):
            size = self._model_norm
        else:
            size = norm({name: self.features.model.weights[name] for name in deltas})
        forgotten = measured[f"forget_{self._criterion}"]
        retain, utility = measured["retain_top1"], measured["utility_top1"]
        return Evaluation(
            candidate,
            iteration,
            step,
            self._step_unit,
            relative_norm=norm(deltas) / size if deltas else 0.0,
            feasible=forgotten <= self._target and self._earlier_rate(measured) <= self._earlier,
            forgotten=forgotten,
            kept=kept_rate(retain, utility),
            kept_error=kept_error(retain, utility, self._counts),
            closeness=measured["forget_cosine"],
            metrics=measured,
        )

    def _rates(self, deltas: Mapping[str, Tensor]) -> dict[str, float]:
        """The rates of `theta + delta` (`muwa.layer_search.evaluators.zero_shot.rates`)."""
        features = self.features
        edited = features.model.edited(Edit(deltas, ())) if deltas else features.model
        towers = {tower_of(name) for name in deltas if name != "logit_scale"}
        vision, text = Tower(edited, "vision"), Tower(edited, "text")
        if "vision" in towers:
            images = {kind: self._encode(vision, kind, some) for kind, some in self._images.items()}
        else:
            images = {kind: features.images(some) for kind, some in self._images.items()}
        if "text" in towers:
            prompts = {key: class_features(text, some, run=Run()) for key, some in self._classes.items()}
        else:
            prompts = {key: features.classes(some) for key, some in self._classes.items()}
        return rates(self._images, images, prompts)

    def _encode(self, tower: Tower, kind: str, images: LabelledImages) -> Tensor:
        """The embeddings of one set of images by an edited tower. Pixels are decoded once, for all edits."""
        if not len(images):
            return self.features.images(images)
        if kind not in self._pixels:
            self._pixels[kind] = self.features.pixels(images)
        place = {digest: i for i, digest in enumerate(images.digests)}

        def pixels(images: LabelledImages) -> Tensor:
            return self._pixels[kind][[place[digest] for digest in images.digests]]

        return image_features(tower, images, pixels=pixels, run=Run())


def norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all tensors together."""
    return sum(tensor.double().square().sum().item() for tensor in tensors.values()) ** 0.5
