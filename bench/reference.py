"""Layer search and gradients in the plainest way: what muwa is measured against, and the oracle of its decisions.

Written after the behaviour of SLUG's release (sections 1.6 and 1.9 of its facts): every step copies the whole model, encodes
all pictures again, builds both zero-shot classifiers again from prompts padded to the full context, and counts. Nothing here
comes from muwa's own encoding or search.
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

Rates = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Step:
    """One evaluation of one step on one layer."""

    layer: str
    step: float
    forget_top1: float
    forget_top5: float
    forget_cosine: float
    retain_top1: float
    utility_top1: float


class Reference:
    """Full evaluation of an edited model.

    Args:
        batch: LabelledImages and prompts a forward takes. At 1 the pictures are decoded anew each time too, one name's prompts at
            a time, as the release does; above, they are decoded once, ahead and not counted.
    """

    def __init__(self, model: Clip, probe: Split, batch: int):
        self._model, self._probe, self._batch = model, probe, batch
        self._network: nn.Module = model._towers.model
        self._ready = (
            {} if batch == 1 else {id(p): self._decoded(p) for p in (probe.forget, probe.retain, probe.utility)}
        )

    def _decoded(self, pictures: LabelledImages) -> Tensor:
        return self._model.prepare.scale(torch.stack([self._model.prepare(decode(one)) for one in pictures.images]))

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, few: float = 1.0) -> Rates:
        """forget top-1, forget top-5, forget cosine, retain top-1, utility top-1; of the first share `few`."""
        forget, retain, utility = self._probe.forget, self._probe.retain, self._probe.utility
        names = self._classifier(network, forget.classes, few)
        things = self._classifier(network, utility.classes, few)
        hits = [self._hits(network, pictures, weights, few) for pictures, weights in (
            (forget, names), (retain, names), (utility, things))]  # fmt: skip
        return _rate(hits[0], 0), _rate(hits[0], 1), _rate(hits[0], 2), _rate(hits[1], 0), _rate(hits[2], 0)

    def _classifier(self, network: nn.Module, classes: Classes, few: float) -> Tensor:
        names = classes.names[: max(5, round(len(classes.names) * few))]
        if self._batch == 1:
            rows = []
            for name in names:
                tokens = self._model.tokenize([template.format(name) for template in classes.templates])
                each = F.normalize(network.encode_text(tokens.to(self._model.device)), dim=-1)
                rows.append(F.normalize(each.mean(0), dim=-1))
            return torch.stack(rows)
        tokens = self._model.tokenize([t.format(name) for name in names for t in classes.templates])
        each = [F.normalize(network.encode_text(b.to(self._model.device)), dim=-1) for b in tokens.split(self._batch)]
        return F.normalize(torch.cat(each).view(len(names), len(classes.templates), -1).mean(1), dim=-1)

    def _hits(self, network: nn.Module, pictures: LabelledImages, weights: Tensor, few: float) -> list[list[float]]:
        count = max(1, round(len(pictures) * few))
        hits = []
        for i in range(0, count, self._batch):
            some = pictures.select(range(i, min(i + self._batch, count)))
            pixels = self._decoded(some) if self._batch == 1 else self._ready[id(pictures)][i : i + self._batch]
            features = F.normalize(network.encode_image(pixels.to(self._model.device)), dim=-1)
            cosines = features @ weights.T
            best = (100 * cosines).topk(5, dim=-1).indices.tolist()
            for label, row, cosine in zip(some.labels, best, cosines.tolist(), strict=True):
                hits.append([label in row[:1], label in row, cosine[label] if label < len(cosine) else 0.0])
        return hits

    def search(
        self, gradient: Mapping[str, Tensor], layers: Sequence[Layer], evaluations: int,
        each: Callable[[nn.Module], Rates] | None = None,
    ) -> list[Step]:  # fmt: skip
        """The release's bisection on each layer: from 0.1 |theta| / |g|, doubled until top-5 is 0, then the midpoint."""
        trace = []
        for layer in layers:
            (name,) = {part.name for part in layer.edited}
            theta, g = self._model.weights[name], gradient[name].to(self._model.device)
            low, high, step = 0.0, None, 0.1 * (theta.double().norm() / g.double().norm()).item()
            for _ in range(evaluations):
                edited = copy.deepcopy(self._network)
                with torch.no_grad():
                    edited.get_parameter(name).copy_(theta + step * g)
                one, five, cosine, kept, other = (each or self.evaluate)(edited)
                trace.append(Step(layer.name, step, one, five, cosine, kept, other))
                if five == 0:
                    high = step
                    step = (low + high) / 2
                else:
                    low = step
                    step = 2 * step if high is None else (low + high) / 2
        return trace


def _rate(hits: Sequence[Sequence[float]], column: int) -> float:
    return sum(row[column] for row in hits) / len(hits)


def choose(trace: Sequence[Step], retained: int, others: int) -> Step | None:
    """Of the steps that forget, those within one standard error of what is kept most; of these the lowest cosine."""
    feasible = [row for row in trace if row.forget_top5 == 0]
    if not feasible:
        return None
    most = max(feasible, key=lambda row: row.retain_top1 + row.utility_top1)
    a, b = most.retain_top1, most.utility_top1
    error = (a * (1 - a) / retained + b * (1 - b) / others) ** 0.5
    near = [row for row in feasible if row.retain_top1 + row.utility_top1 >= a + b - error - 1e-9]
    return min(near, key=lambda row: row.forget_cosine)


def encode_text_cut(network: nn.Module, tokens: Tensor) -> Tensor:
    """open_clip's own modules on prompts cut after the longest: what a bare loop could do at best."""
    length = int(tokens.argmax(-1).max()) + 1
    x = network.token_embedding(tokens[:, :length]) + network.positional_embedding[:length]
    x = network.ln_final(network.transformer(x, attn_mask=network.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ network.text_projection


def bare_loop(
    model: Clip, batches: Sequence[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, cut: bool,
    precision: str = "fp32",
) -> dict[str, Tensor]:  # fmt: skip
    """Forward and backward on ready tensors, summed in `.grad`: no decoding, no cache, no progress bar."""
    network = model._towers.model.requires_grad_(True)
    network.zero_grad(set_to_none=True)
    for pixels, tokens in batches:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            images = network.encode_image(pixels)
            texts = encode_text_cut(network, tokens) if cut else network.encode_text(tokens)
        v, t = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        (len(pixels) * loss(v, t, network.logit_scale.exp())).backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.requires_grad_(False).zero_grad(set_to_none=True)
    return found
