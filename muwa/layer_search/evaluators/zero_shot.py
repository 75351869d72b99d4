"""Evaluate steps on one layer of a CLIP by zero-shot accuracy on the probe images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.eval.clip.ranks import own_cosine, top_k
from muwa.layer_search.choice import Acceptance, kept_error, kept_rate
from muwa.layer_search.evaluators.margins import Margins, margins_of
from muwa.layer_search.remaining_layers import RemainingLayers
from muwa.layer_search.steps import candidate_of, ratio, relative_size, step_deltas
from muwa.models.clip.embeddings import Features, ensemble, image_batch, token_batches
from muwa.types.data import Classes, LabelledImages, Split
from muwa.types.search import LAMBDA, NOTHING_EDITED, Candidate, Evaluation, Layer

if TYPE_CHECKING:
    from muwa.types.gradients import Gradients


EARLIER = "earlier"  # the start of the keys of sets with names that the model has forgotten already


def sets_of(probe: Split) -> dict[str, LabelledImages]:
    """The sets of a split that rates are measured on, by name; each kind of earlier names is a set."""
    sets = {"forget": probe.forget, "retain": probe.retain, "utility": probe.utility}
    return sets | {f"{EARLIER}{i}": some for i, some in enumerate(probe.earlier)}


def earlier_limit(before: Mapping[str, float], acceptance: Acceptance) -> tuple[str, float]:
    """(A rate of earlier names, the most that it may be): the target, or what it is before the step."""
    key = f"{EARLIER}_{acceptance.criterion}"
    return key, max(acceptance.target, before[key])


def stays_forgotten(rates: Mapping[str, float], limit: tuple[str, float] | None) -> bool:
    """Whether a step keeps the earlier names forgotten (`earlier_limit`); None: there are none."""
    return limit is None or rates[limit[0]] <= limit[1]


class StepEvaluator:
    """Tries steps along the forget gradient, one layer at a time, and collects the evaluations.

    Args:
        features: The embeddings of the unedited model. Every evaluation is logged to their run, as the event
            "evaluation".
        gradients: The gradients of that model.
        probe: Images that neither give gradients nor enter the report.
        layers: The layers that will be tried, in that order. From input to output is fastest: each tower is
            then passed through once.
        concept: The name to forget, for the log.
        acceptance: Says which steps are feasible.

    Attributes:
        trace: All evaluations so far.
    """

    def __init__(
        self,
        features: Features,
        gradients: Gradients,
        probe: Split,
        layers: Sequence[Layer],
        *,
        concept: str,
        acceptance: Acceptance,
    ):
        self._clip, self._gradients, self._run = features.model, gradients, features.run
        self._zero_shot = ZeroShotEvaluator(features, probe, layers)
        self._concept, self._acceptance = concept, acceptance
        self._counts = len(probe.retain), len(probe.utility)
        self._margins = self._zero_shot.margins() if acceptance.rule == "margin" else None
        self._earlier = earlier_limit(self._zero_shot(), acceptance) if probe.earlier else None
        self._current: tuple[Layer, Callable[[float], Tensor]] | None = None
        self.trace: list[Evaluation] = []

    def ratio(self, layer: Layer) -> float:
        """|theta| / |g_f| of a layer (`muwa.layer_search.steps.ratio`)."""
        return ratio(self._clip, self._gradients, layer)

    def before(self) -> Evaluation:
        """Evaluate the unedited model on the probe images."""
        return self._evaluation(self._zero_shot(), NOTHING_EDITED, 0.0, 0.0, self._margins)

    def __call__(self, layer: Layer, step: float) -> Evaluation:
        """Evaluate `theta + step * g_f` on one layer. It is also logged and added to the trace."""
        if self._current is None or self._current[0] != layer:
            deltas = partial(step_deltas, self._clip, self._gradients, layer)
            embed = self._zero_shot.remaining_layers(layer.tower)(layer, deltas, self.ratio(layer))
            self._current = layer, embed
        size = relative_size(self._clip, layer, step_deltas(self._clip, self._gradients, layer, step))
        edited = layer.tower, self._current[1](step)
        margins = None if self._margins is None else self._zero_shot.margins(*edited)
        row = self._evaluation(self._zero_shot(*edited), candidate_of({"": layer}), step, size, margins)
        self.trace.append(row)
        self._run.log("evaluation", {"concept": self._concept, **row.record()})
        return row

    def _evaluation(
        self,
        rates: Mapping[str, float],
        candidate: Candidate,
        step: float,
        size: float,
        margins: Margins | None,
    ) -> Evaluation:
        edited = candidate is not NOTHING_EDITED
        forgotten = rates[f"forget_{self._acceptance.criterion}"]
        first = self._margins or margins
        bounds = margins.forget_bounds(first, self._acceptance.stranger) if margins and first else {}
        clear = self._acceptance.target > 0 or all(bound <= 0 for bound in bounds.values())
        retain, utility = rates["retain_top1"], rates["utility_top1"]
        return Evaluation(
            candidate=candidate,
            iteration=1 + sum(row.candidate == candidate for row in self.trace) if edited else 0,
            step=step,
            step_unit=LAMBDA,
            relative_norm=size,
            feasible=forgotten <= self._acceptance.target and clear and stays_forgotten(rates, self._earlier),
            forgotten=forgotten,
            kept=kept_rate(retain, utility),
            kept_error=kept_error(retain, utility, self._counts),
            closeness=rates["forget_cosine"],
            metrics=rates,
            kept_margin=margins.kept_change(first) if margins and first else None,
            forget_bounds=bounds,
        )


class ZeroShotEvaluator:
    """Zero-shot rates on a probe split, for a model and edits of it that change one tower each.

    Args:
        features: The embeddings and decoded images of the unedited model.
        probe: Images that neither give gradients nor enter the report.
        layers: The layers that will be edited. A tower without any of them is encoded at most once: its
            embeddings may be in the cache.
    """

    def __init__(self, features: Features, probe: Split, layers: Sequence[Layer]):
        self._clip, self._features, self._layers = features.model, features, layers
        self._probe = sets_of(probe)
        self._classes: dict[str, Classes] = {
            some.classes.fingerprint: some.classes for some in self._probe.values()
        }
        self._remaining = {tower: self._inputs(tower) for tower in ("vision", "text") if self._edited(tower)}
        vision, text = self._remaining.get("vision"), self._remaining.get("text")
        if vision:
            self._images = self._by_set(vision.base)
        else:
            self._images = {name: features.images(images) for name, images in self._probe.items()}
        if text:
            self._prompts = self._by_classes(text.base)
        else:
            self._prompts = {key: features.classes(classes) for key, classes in self._classes.items()}

    def remaining_layers(self, tower: str) -> RemainingLayers:
        """The part of an edited tower that is computed again for each step."""
        return self._remaining[tower]

    def __call__(self, tower: str = "", embeddings: Tensor | None = None) -> dict[str, float]:
        """The rates of an edit of one tower (see `rates`); without arguments those of the unedited model.

        Args:
            tower: The edited tower: "vision" | "text".
            embeddings: What `remaining_layers(tower)` gives for the edit: (n, d), of length 1.
        """
        return rates(self._probe, *self._embeddings(tower, embeddings))

    def margins(self, tower: str = "", embeddings: Tensor | None = None) -> Margins:
        """The cosines and margins of all images, for the same edits as in `__call__`."""
        return margins_of(self._probe, *self._embeddings(tower, embeddings))

    def _embeddings(
        self, tower: str, embeddings: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Set -> embeddings of its images; fingerprint of classes -> embeddings of their names."""
        images, prompts = self._images, self._prompts
        if embeddings is not None and tower == "vision":
            images = self._by_set(embeddings)
        if embeddings is not None and tower == "text":
            prompts = self._by_classes(embeddings)
        return images, prompts

    def _edited(self, tower: str) -> list[Layer]:
        return [layer for layer in self._layers if layer.tower == tower]

    def _inputs(self, tower: str) -> RemainingLayers:
        if tower == "vision":
            pixels = [self._features.pixels(images) for images in self._probe.values() if len(images)]
            batches = list(torch.cat(pixels).split(image_batch(self._clip)))
        else:
            prompts = [prompt for classes in self._classes.values() for prompt in classes.prompts()]
            batches, self._order = token_batches(self._clip, self._clip.tokenize(prompts))
        return RemainingLayers(self._clip, tower, batches, self._edited(tower))

    def _by_set(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._probe, images.split([len(some) for some in self._probe.values()]), strict=True))

    def _by_classes(self, prompts: Tensor) -> dict[str, Tensor]:
        sizes = [len(classes.names) * len(classes.templates) for classes in self._classes.values()]
        parts = zip(self._classes.items(), prompts[self._order].split(sizes), strict=True)
        return {key: ensemble(part, len(classes.templates)) for (key, classes), part in parts}


def rates(
    probe: Mapping[str, LabelledImages], images: Mapping[str, Tensor], prompts: Mapping[str, Tensor]
) -> dict[str, float]:
    """Zero-shot rates in [0, 1] on a forget, a retain and a utility set, from embeddings.

    The report's forget rates, on other images, are `muwa.eval.clip.accuracy.Forget`.

    Args:
        probe: The sets of images, by the keys of `sets_of`.
        images: The same keys -> (n, d) embeddings of these images.
        prompts: Fingerprint of `Classes` -> (names, d), its zero-shot classifier: one embedding per name.

    Returns:
        forget_top1, forget_top5, forget_cosine (the mean cosine of a forget image to its own name),
        retain_top1 and utility_top1. A rate of no images is 0. If there are earlier names: earlier_top1 and
        earlier_top5, over all their images.
    """
    values = {}
    earlier: dict[int, list[Tensor]] = {1: [], 5: []}
    for name, some in probe.items():
        features, classifier = images[name], prompts[some.classes.fingerprint]
        labels = torch.tensor(some.labels, dtype=torch.long)
        if name.startswith(EARLIER):
            for k, hits in earlier.items():
                hits.append(top_k(features, classifier, labels, k))
            continue
        values[f"{name}_top1"] = _mean(top_k(features, classifier, labels, 1))
        if name == "forget":
            values["forget_top5"] = _mean(top_k(features, classifier, labels, 5))
            values["forget_cosine"] = _mean(own_cosine(features, classifier, labels))
    return values | {f"{EARLIER}_top{k}": _mean(torch.cat(hits)) for k, hits in earlier.items() if hits}


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if len(values) else 0.0
