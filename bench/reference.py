"""Layer search and gradients in the plainest way: what muwa's speed and decisions are held against.

The search follows the behaviour of SLUG's release (docs/method.md). For every step it copies the whole model,
encodes all images again, builds both zero-shot classifiers again from prompts padded to the full context, and
counts. Nothing here uses muwa's own encoding or search.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muwa.data.samples import decode
from muwa.models.clip.model import Clip
from muwa.types.data import Classes, LabelledImages, Split
from muwa.types.search import Layer


@dataclass(frozen=True)
class Rates:
    """What one full evaluation gives; all but the cosine are in [0, 1]."""

    forget_top1: float
    forget_top5: float
    forget_cosine: float
    retain_top1: float
    utility_top1: float


@dataclass(frozen=True)
class Step:
    """One evaluation of one step on one layer."""

    layer: str
    step: float
    rates: Rates


class Reference:
    """Full evaluation of an edited model.

    Args:
        batch: How many images and prompts a forward pass takes. With 1, images are decoded anew each time and
            prompts are encoded one name at a time, as in the release. With more, images are decoded once,
            before the timing.
    """

    def __init__(self, model: Clip, probe: Split, batch: int):
        self._model, self._probe, self._batch = model, probe, batch
        self._network: nn.Module = model._towers.model
        sets = (probe.forget, probe.retain, probe.utility) if batch > 1 else ()
        self._decoded_once = {id(images): self._decoded(images) for images in sets}

    def _decoded(self, images: LabelledImages) -> Tensor:
        return self._model.prepare.scale(
            torch.stack([self._model.prepare(decode(one)) for one in images.images])
        )

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, part: float = 1.0) -> Rates:
        """All rates, on the first images and names only where `part` is below 1."""
        forget, retain, utility = self._probe.forget, self._probe.retain, self._probe.utility
        names = self._classifier(network, forget.classes, part)
        things = self._classifier(network, utility.classes, part)
        hits = [
            self._hits(network, images, classifier, part)
            for images, classifier in ((forget, names), (retain, names), (utility, things))
        ]
        return Rates(*(_mean(hits[0], column) for column in range(3)), _mean(hits[1], 0), _mean(hits[2], 0))

    def _classifier(self, network: nn.Module, classes: Classes, part: float) -> Tensor:
        names = classes.names[: max(5, round(len(classes.names) * part))]
        if self._batch == 1:
            rows = []
            for name in names:
                tokens = self._model.tokenize([template.format(name) for template in classes.templates])
                each = F.normalize(network.encode_text(tokens.to(self._model.device)), dim=-1)
                rows.append(F.normalize(each.mean(0), dim=-1))
            return torch.stack(rows)
        tokens = self._model.tokenize([t.format(name) for name in names for t in classes.templates])
        batches = tokens.split(self._batch)
        each = [F.normalize(network.encode_text(batch.to(self._model.device)), dim=-1) for batch in batches]
        return F.normalize(torch.cat(each).view(len(names), len(classes.templates), -1).mean(1), dim=-1)

    def _hits(
        self, network: nn.Module, images: LabelledImages, classifier: Tensor, part: float
    ) -> list[list[float]]:
        """For each image: whether its name is the first guess, whether it is among five, and its cosine."""
        count = max(1, round(len(images) * part))
        hits = []
        for i in range(0, count, self._batch):
            some = images.select(range(i, min(i + self._batch, count)))
            once = self._decoded_once.get(id(images))
            pixels = self._decoded(some) if once is None else once[i : i + self._batch]
            features = F.normalize(network.encode_image(pixels.to(self._model.device)), dim=-1)
            cosines = features @ classifier.T
            best = (100 * cosines).topk(5, dim=-1).indices.tolist()
            for label, row, cosine in zip(some.labels, best, cosines.tolist(), strict=True):
                hits.append([label in row[:1], label in row, cosine[label] if label < len(cosine) else 0.0])
        return hits

    def search(
        self,
        gradient: Mapping[str, Tensor],
        layers: Sequence[Layer],
        evaluations: int,
        evaluate: Callable[[nn.Module], Rates] | None = None,
    ) -> list[Step]:
        """The release's bisection of each layer, from 0.1 |theta| / |g|: doubled, then midpoints.

        Args:
            gradient: Of the forget loss.
            layers: Layers that are one whole tensor each.
            evaluate: In place of `self.evaluate`.
        """
        trace = []
        for layer in layers:
            (name,) = {part.name for part in layer.edited}
            theta, g = self._model.weights[name], gradient[name].to(self._model.device)
            low, high, step = 0.0, None, 0.1 * (theta.double().norm() / g.double().norm()).item()
            for _ in range(evaluations):
                edited = copy.deepcopy(self._network)
                with torch.no_grad():
                    edited.get_parameter(name).copy_(theta + step * g)
                rates = (evaluate or self.evaluate)(edited)
                trace.append(Step(layer.name, step, rates))
                if rates.forget_top5 == 0:
                    high = step
                    step = (low + high) / 2
                else:
                    low = step
                    step = 2 * step if high is None else (low + high) / 2
        return trace


def _mean(hits: Sequence[Sequence[float]], column: int) -> float:
    return sum(row[column] for row in hits) / len(hits)


def choose(trace: Sequence[Step], retain: int, utility: int) -> Step | None:
    """The lowest cosine among the steps that forget and keep, within one standard error, as much as the best.

    Args:
        retain, utility: How many images the two rates are of.
    """
    feasible = [row for row in trace if row.rates.forget_top5 == 0]
    if not feasible:
        return None
    kept = [row.rates.retain_top1 + row.rates.utility_top1 for row in feasible]
    most = feasible[kept.index(max(kept))].rates
    a, b = most.retain_top1, most.utility_top1
    error = (a * (1 - a) / retain + b * (1 - b) / utility) ** 0.5
    near = [row for row, rate in zip(feasible, kept, strict=True) if rate >= a + b - error - 1e-9]
    return min(near, key=lambda row: row.rates.forget_cosine)


def encode_text_cut(network: nn.Module, tokens: Tensor) -> Tensor:
    """open_clip's own modules on prompts cut after the longest: the best that a bare loop can do."""
    length = int(tokens.argmax(-1).max()) + 1
    x = network.token_embedding(tokens[:, :length]) + network.positional_embedding[:length]
    x = network.ln_final(network.transformer(x, attn_mask=network.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ network.text_projection


def bare_loop(
    model: Clip,
    batches: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    cut: bool,
    precision: str = "fp32",
) -> dict[str, Tensor]:
    """Forward and backward on ready tensors, summed in `.grad`: no decoding, no cache, no progress bar.

    Args:
        batches: (pixels, tokens) each.
        cut: Whether prompts are cut after the longest (`encode_text_cut`).
    """
    network = model._towers.model.requires_grad_(True)
    network.zero_grad(set_to_none=True)
    for pixels, tokens in batches:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            images = network.encode_image(pixels)
            texts = encode_text_cut(network, tokens) if cut else network.encode_text(tokens)
        v, t = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        (len(pixels) * loss(v, t, network.logit_scale.exp())).backward()
    total = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.requires_grad_(False).zero_grad(set_to_none=True)
    return total
