"""RAZOR: edit several layers and heads along one fused gradient; their set grows round by round.

Source: Ranjan et al., "RAZOR: Ratio-Aware Layer Editing for Targeted Unlearning", CVPR 2026 Findings, arXiv
2603.14819.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from muwa.gradients.accumulation import Job, accumulate
from muwa.gradients.base import Recipe
from muwa.gradients.mean import MeanGradientSettings, shuffled_batches
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.scores import layer_scores
from muwa.methods._checks import check_above_zero, check_at_least, check_granularity, refuse_gradient_file
from muwa.methods._edits import Deltas, edit_of, retain_pairs
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import Checkpoints, SelectionSettings, cached_trace, deltas_of, search_of
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features, pixel_batches
from muwa.types.edit import Edit
from muwa.types.ranges import Count, Granularity, NotNegative, Positive, Share
from muwa.types.search import BOTH_TOWERS, Candidate
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Pairs, Task
    from muwa.types.search import Evaluation, Layer, LayerScore


@dataclass(frozen=True)
class RAZOR(SelectionSettings, MeanGradientSettings, Method):
    """Step along one fused gradient on the layers and heads that score best; add one until a step forgets.

        direction(l) = f g_f - g_r - m g_m
        score(l) = |g_f| / |theta| (1 - cos(g_f, g_r))^alpha

    g_f, g_r and g_m are the gradients of the forget loss, the retain loss and the mismatch
    (`mismatch_gradient`), at the weights of the round. Several names are forgotten together: g_f is the mean
    over all their pairs. In the record, `Move.step` holds the step relative to the norm of each layer, and
    `Move.layer` the round.

    Args:
        granularity: What is scored: "head", attention heads and all other weight tensors; or another value of
            `muwa.models.clip.layers.GRANULARITIES`.
        alpha: Exponent that weights the angle between the gradients in the score, in [0, 1].
        threshold: The first round takes all layers and heads that score at least this fraction of the best
            score, in [0, 1].
        forget_weight: f, the weight of the forget gradient, above 0. The retain gradient has weight 1.
        mismatch_weight: m, the weight of the mismatch gradient, at least 0.
        rounds: Largest number of rounds. Each later round adds one more layer or head, until some step
            forgets.
        first_step: The first step of a round's bisection (`muwa.layer_search.bisection.bisection`): each
            layer moves by this fraction of its norm.
        max_evals: Steps tried per round.
        forget_loss, retain_loss: "cosine" | "contrastive".
        batch_size: Pairs per batch. It sets the number of negatives in the contrastive loss.
        rule, criterion, target: Which step becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no step is feasible. One search serves both rules.
        seed: Seed for the order of the pairs.

    Source: two public notes on the paper, because its text and code were not available. They give the score,
    the loss of three parts, the bisected step and at most 6 rounds. What they leave open is our choice:

    - The threshold is relative to the best score.
    - Each gradient is scaled to length 1 in each layer, so that its weight means the same in every layer. The
      paper weights raw gradients, by values that we do not know.
    - All layers of a round have the same relative step. The paper searches for one step per layer.
    - Round 1 has no mismatch gradient, because nothing has changed yet.
    """

    observes: ClassVar[type[Observer]] = Features

    granularity: Granularity
    alpha: Share
    threshold: Share
    forget_weight: Positive
    mismatch_weight: NotNegative
    rounds: Count
    first_step: Positive
    max_evals: Count

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=razor", self.observes, model)
        refuse_gradient_file("razor", run)
        _ = self.selection, self.recipe  # these records raise for a setting that is out of range
        check_granularity(self.granularity)
        check_at_least({"rounds": (self.rounds, 1), "max_evals": (self.max_evals, 1)})
        check_at_least({"mismatch_weight": (self.mismatch_weight, 0)})
        check_above_zero({"first_step": self.first_step, "forget_weight": self.forget_weight})
        for key, value in (("alpha", self.alpha), ("threshold", self.threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"method.{key}: got {value}, want a number in [0, 1]")
        retain_pairs(task)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        settings = replace(self, rule="best")  # both rules select from the same trace: one cache entry
        found = cached_trace(run, search_rounds, model, task, settings, task=task)
        search = search_of(task, self.selection, found, "steps", granularity=self.granularity)
        return edit_of(task, search, deltas_of(search, found), found["samples"])


def score(importance: float, cosine: float, alpha: float) -> float:
    """`importance (1 - cosine)^alpha`: high for a large forget gradient that differs in direction from g_r.

    Args:
        importance: |g_f| / |theta|.
        cosine: Cosine between g_f and g_r, with its sign. At 1, a step up g_f (which forgets) also raises the
            retain loss the most. At -1, the same step lowers it the most.

    >>> score(2.0, -1.0, 0.5) == 2 * 2**0.5, score(2.0, 1.0, 0.5)
    (True, 0.0)
    """
    return importance * (1 - cosine) ** alpha


def _rank(of_layer: LayerScore, alpha: float) -> float:
    """`score` of a layer."""
    assert of_layer.cosine is not None  # RAZOR takes both gradients
    return score(of_layer.importance, of_layer.cosine, alpha)


@dataclass(frozen=True)
class RoundGradients:
    """The gradients of one round: parameter name -> mean over pairs, with the sign of its loss.

    Args:
        mismatch: Empty in round 1, because nothing has changed yet, and if `mismatch_weight` is 0.
        samples: Number of pairs that gave the gradients.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]
    mismatch: Mapping[str, Tensor]
    samples: int

    __repr__ = short_repr


def search_rounds(model: Clip, task: Task, settings: RAZOR, *, run: Run) -> dict[str, Any]:
    """All rounds: see `RAZOR`.

    A round in which some step is feasible is the last one. Otherwise the next round starts from the edit that
    forgets most, and among equals from the one that keeps most.

    Returns:
        See `muwa.methods._selection.Checkpoints.result`; "samples" counts the pairs whose gradient was
        computed.
    """
    evaluator = EditEvaluator(
        model.observe(run),
        task.probe,
        criterion=settings.criterion,
        target=settings.target,
        step_unit="|theta|",
    )
    checkpoints = Checkpoints(evaluator)
    layers = {layer.name: layer for layer in model.layers(settings.granularity)}
    chosen: list[str] = []
    deltas: Deltas = {}
    samples = 0
    for turn in range(settings.rounds):
        now = model.edited(Edit(deltas, ())) if deltas else model
        gradients = round_gradients(model, now, task, settings, run)
        samples += gradients.samples
        scores = layer_scores(now.weights, gradients.forget, gradients.retain, list(layers.values()))
        ranks = {name: _rank(one, settings.alpha) for name, one in scores.items()}
        chosen = _grow(chosen, ranks, settings.threshold)
        direction = fused([layers[name] for name in chosen], now.weights, gradients, settings)
        where = f"round {turn + 1}, {len(chosen)} layers and heads"
        tried = _try_steps(checkpoints, deltas, direction, settings, Candidate({"": where}, BOTH_TOWERS))
        if any(row.feasible for row, _ in tried):
            break
        deltas = min(tried, key=lambda one: (one[0].forgotten, -one[0].kept))[1]
    return checkpoints.result(samples=samples)


def _grow(chosen: Sequence[str], ranks: Mapping[str, float], threshold: float) -> list[str]:
    """The names of the layers of a round.

    In round 1, all layers scoring at least `threshold` times the best; later, `chosen` plus the best-scoring
    layer not yet in it.
    """
    if not chosen:
        return [name for name, value in ranks.items() if value >= threshold * max(ranks.values())]
    others = [name for name in ranks if name not in chosen]
    return [*chosen, max(others, key=lambda name: ranks[name])] if others else list(chosen)


def round_gradients(model: Clip, now: Clip, task: Task, settings: RAZOR, run: Run) -> RoundGradients:
    """The gradients at the weights of a round.

    Args:
        model: The unedited model.
        now: The model of the round; `model` itself in round 1.
    """
    forget: dict[str, Tensor] = {}
    retain: Mapping[str, Tensor] = {}
    n_forget = n_retain = 0
    for name in task.names:
        of_name = settings.gradients(now, task, name, settings.recipe, run)
        assert of_name is not None  # this is the main rank
        found = of_name[""]
        for key, g in found.forget.items():
            forget[key] = forget[key] + found.n_forget * g if key in forget else found.n_forget * g
        retain, n_forget, n_retain = found.retain, n_forget + found.n_forget, found.n_retain
    mean = {key: g / n_forget for key, g in forget.items()}
    if now is model or not settings.mismatch_weight:
        return RoundGradients(mean, retain, {}, n_forget + n_retain)
    pairs = retain_pairs(task)
    mismatch = mismatch_gradient(model, now, pairs, settings.recipe, run)
    return RoundGradients(mean, retain, mismatch, n_forget + n_retain + len(pairs))


def mismatch_gradient(model: Clip, now: Clip, pairs: Pairs, recipe: Recipe, run: Run) -> dict[str, Tensor]:
    """The gradient of the mean mismatch at the weights of `now`; zero if `now` is `model`.

        mismatch = mean_ij (cos(v_i, t_j) - cos0(v_i, t_j))^2

    i and j run over the images and texts of a batch. cos0 is the same cosine under the unedited `model`.

    Args:
        pairs: Retain pairs.

    Source: "similarity drift" in the notes on the paper. The square, and the mean over all pairs of image and
    text, are our choice.
    """
    batches = shuffled_batches(len(pairs), recipe.batch_size, recipe.seed)
    total: dict[str, Tensor] = {}
    sizes = [len(batch) for batch in batches]
    silent = replace(run, progress=False)  # one bar for all batches
    for batch in run.track(batches, "mismatch gradient", sum(sizes), sizes=sizes):
        some = pairs.select(batch)
        with torch.no_grad():
            pixels = next(pixel_batches(model, some.images, [len(some)]))
            images = model.encode("vision", pixels)
            before = images @ model.encode("text", model.tokenize(list(some.captions))).T

        def loss(images: Tensor, texts: Tensor, scale: Tensor, before: Tensor = before) -> Tensor:
            return (images @ texts.T - before).square().mean()

        job = Job(range(len(some)), [(len(some) / len(pairs), range(len(some)))])
        for name, g in accumulate(now, some, [job], loss, "mismatch", run=silent).items():
            total[name] = total[name] + g if name in total else g
    return total


def fused(
    layers: Sequence[Layer], weights: Mapping[str, Tensor], gradients: RoundGradients, settings: RAZOR
) -> Deltas:
    """The direction of a round: up the forget loss, down the other two.

    In each layer, the three gradients are scaled to length 1 and added as `f g_f - g_r - m g_m`. The sum is
    scaled to the norm of the layer. So a step of 0.1 moves each layer by a tenth of its norm.

    Args:
        weights: Parameter name -> weights of the round.

    Returns:
        Parameter name -> fp32 tensor of the parameter's shape, zero outside the layers.
    """
    direction: Deltas = {}
    terms = (
        (settings.forget_weight, gradients.forget),
        (-1.0, gradients.retain),
        (-settings.mismatch_weight, gradients.mismatch),
    )
    for layer in layers:
        parts = layer.edited
        for part in parts:
            direction.setdefault(part.name, torch.zeros_like(weights[part.name], dtype=torch.float32))
        sizes = [_norm(part.of(gradient) for part in parts) if gradient else 0.0 for _, gradient in terms]
        weighed = [(weight / size, of) for (weight, of), size in zip(terms, sizes, strict=True) if size]
        mixed = [
            sum((w * part.of(of) for w, of in weighed), torch.zeros_like(part.of(gradients.forget)))
            for part in parts
        ]
        length, norm_of_layer = _norm(mixed), _norm(part.of(weights) for part in parts)
        for part, mix in zip(parts, mixed, strict=True):
            part.of(direction).copy_(mix * (norm_of_layer / length if length else 0.0))
    return direction


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


def _try_steps(
    checkpoints: Checkpoints, base: Deltas, direction: Deltas, settings: RAZOR, candidate: Candidate
) -> list[tuple[Evaluation, Deltas]]:
    """A round's bisection from `base`: (evaluation, deltas) of each step."""
    steps = bisection(settings.first_step, settings.max_evals)
    tried: list[tuple[Evaluation, Deltas]] = []
    step: float | None = next(steps)
    while step is not None:
        deltas = {name: step * d + base.get(name, torch.zeros(())) for name, d in direction.items()}
        deltas |= {name: d for name, d in base.items() if name not in deltas}
        row = checkpoints.evaluate(deltas, step, candidate, iteration=len(tried) + 1)
        tried.append((row, deltas))
        step = next_step(steps, row.feasible)
    return tried
