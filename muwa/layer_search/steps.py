"""What the searches share: trying one step of one layer, choosing among what was tried, and turning it into an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from muwa.layer_search.evaluators.zero_shot import Judge
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.types.data import Split
from muwa.types.edit import Edit, Move
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, Search

Log = Callable[[str, dict[str, object]], None]


def silent(event: str, row: dict[str, object]) -> None:
    """A log that nobody reads."""


class StepEvaluator:
    """Tries steps along the forget gradient, one layer at a time, and keeps the whole trace.

    Args:
        layers: What will be tried, in that order; best by depth, so that a tower is gone through once.
        features: Of `model`, where pictures and embeddings come from; None computes them.
    """

    def __init__(
        self, model: Clip, gradients: Gradients, probe: Split, layers: Sequence[Layer], features: Features | None, *,
        concept: str, criterion: str, target: float, log: Log,
    ):  # fmt: skip
        self._model, self._gradients = model, gradients
        self._judge = Judge(model, probe, features or Features(model), layers)
        self._concept, self._criterion, self._target, self._log = concept, criterion, target, log
        self._counts = len(probe.retain), len(probe.utility)
        self._at: tuple[Layer, Callable[[float], torch.Tensor]] | None = None
        self.trace: list[Evaluation] = []

    @property
    def counts(self) -> tuple[int, int]:
        """Retain and utility pictures that rates are of."""
        return self._counts

    def norms(self, layer: Layer) -> tuple[float, float]:
        """(|theta|, |g_f|) over the *scored* parts: their ratio is the unit of a relative step."""

        def norm(of: Mapping[str, torch.Tensor]) -> float:
            return sum(part.of(of).double().square().sum().item() for part in layer.scored) ** 0.5

        return norm(self._model.weights), norm(self._gradients.forget)

    def ratio(self, layer: Layer) -> float:
        """|theta| / |g_f|: the step that would move the layer by its own norm.

        Raises:
            ValueError: The layer's forget gradient is zero, so no step along it changes anything.
        """
        theta, gradient = self.norms(layer)
        if gradient == 0:
            raise ValueError(f"{layer.name}: its forget gradient is zero, no step along it can forget anything")
        return theta / gradient

    def before(self) -> Evaluation:
        """The unedited model on the probe pictures."""
        return self._evaluation(self._judge(), "", "", 0, 0.0, 0.0)

    def __call__(self, layer: Layer, step: float) -> Evaluation:
        """Take `theta + step * g_f` on one layer, judge it, note it in the trace and return it."""
        if self._at is None or self._at[0] != layer:
            deltas = partial(step_deltas, self._model, self._gradients, layer)
            self._at = layer, self._judge.suffix(layer.tower)(layer, deltas, self.ratio(layer))
        iteration = 1 + sum(row.layer == layer.name for row in self.trace)
        relative = relative_size(self._model, layer, step_deltas(self._model, self._gradients, layer, step))
        rates = self._judge(layer.tower, self._at[1](step))
        row = self._evaluation(rates, layer.name, layer.tower, iteration, step, relative)
        self.trace.append(row)
        self._log("evaluation", {"concept": self._concept, **asdict(row)})
        return row

    def _evaluation(
        self, rates: Mapping[str, float], layer: str, tower: str, iteration: int, step: float, relative: float
    ) -> Evaluation:
        feasible = rates[f"forget_{self._criterion}"] <= self._target
        return Evaluation(
            layer=layer, tower=tower, iteration=iteration, step=step, relative_norm=relative, feasible=feasible, **rates
        )


def step_deltas(model: Clip, gradients: Gradients, layer: Layer, step: float) -> dict[str, torch.Tensor]:
    """`step * g_f` on the edited parts of one layer: parameter name -> fp32 delta, zero outside those parts.

    The only place where a sign meets a weight: `g_f` is the gradient of the forget loss, and `step > 0` raises it.
    """
    deltas: dict[str, torch.Tensor] = {}
    for part in layer.edited:
        delta = deltas.setdefault(part.name, torch.zeros_like(model.weights[part.name], dtype=torch.float32))
        part.of({part.name: delta}).copy_(step * part.of(gradients.forget))
    return deltas


def relative_size(model: Clip, layer: Layer, deltas: Mapping[str, torch.Tensor]) -> float:
    """|delta| / |theta| over the edited parts."""
    moved = sum(part.of(deltas).double().square().sum().item() for part in layer.edited)
    size = sum(part.of(model.weights).double().square().sum().item() for part in layer.edited)
    return (moved / size) ** 0.5


def kept(row: Evaluation) -> float:
    """What an edit keeps: the mean of retain and utility top-1 on the probe pictures, in [0, 1]."""
    return (row.retain_top1 + row.utility_top1) / 2


def standard_error(row: Evaluation, counts: tuple[int, int]) -> float:
    """Of `kept`, from the binomial variances of its two rates; `counts` are the retain and utility pictures."""
    rates = (row.retain_top1, row.utility_top1)
    return 0.5 * sum(rate * (1 - rate) / max(n, 1) for rate, n in zip(rates, counts, strict=True)) ** 0.5


def choose(
    trace: Iterable[Evaluation], *, rule: str, criterion: str, tolerance: float = 0.0, counts: tuple[int, int] = (0, 0)
) -> tuple[int | None, str]:
    """Which evaluation of a trace becomes the edit, and why in one sentence.

    Args:
        rule:
            "constrained": of the feasible steps those that keep most (`kept`), up to `tolerance`, and of these the one
                whose forget pictures are farthest from their name. None when no step is feasible.
            "paper": lowest forget accuracy, then most kept, feasible or not (the paper's algorithm 1).
            "deepest": the last step that was tried (the search then tries the deepest front layer only), feasible or
                not: what the release's Stable Diffusion and VLM code ships.

        tolerance: In standard errors of what the best step keeps: smaller differences are the luck of the probe pictures,
            while a step that only just forgets on them may not forget on others. 0 takes the best as it is.
        counts: How many retain and utility pictures the rates are of.

    Returns:
        (index into `trace` or None, the reason).

    Source: the one-standard-error rule is Breiman et al. 1984, section 3.4.3 (there for pruning trees).
    """
    rows = list(trace)

    def forgot(row: Evaluation) -> float:
        return row.forget_top5 if criterion == "top5" else row.forget_top1

    if not rows:
        return None, "Nothing was tried: no layer is on the front."
    feasible = [i for i, row in enumerate(rows) if row.feasible]
    note = f"{len(feasible)} of {len(rows)} steps on {len({r.layer for r in rows})} layers were feasible"
    if rule == "constrained":
        if not feasible:
            least = min(map(forgot, rows))
            return None, f"No feasible step: the lowest forget {criterion} reached was {least:.1%}; {note}."
        most = max(feasible, key=lambda i: kept(rows[i]))
        least = (
            kept(rows[most]) - tolerance * standard_error(rows[most], counts) - 1e-9
        )  # equal but for rounding is equal
        best = min((i for i in feasible if kept(rows[i]) >= least), key=lambda i: rows[i].forget_cosine)
        return best, (
            f"Of the feasible steps that keep most ({kept(rows[most]):.1%} of retain and utility, or at most {tolerance:g} "
            f"standard errors less) the one that forgets deepest; it keeps {kept(rows[best]):.1%}; {note}."
        )
    if rule == "paper":
        best = min(range(len(rows)), key=lambda i: (forgot(rows[i]), -kept(rows[i])))
        reason = f"The lowest forget {criterion} ({forgot(rows[best]):.1%}), then most kept"
    else:
        best = len(rows) - 1
        reason = f"The last step of the deepest front layer, {rows[best].layer}"
    verdict = "feasible" if rows[best].feasible else "NOT feasible"
    return best, f"{reason}: {verdict}; {note}."


def edit_of(search: Search, model: Clip, gradients: Gradients) -> Edit:
    """The edit that a search chose; an edit without deltas when it chose none."""
    if search.chosen is None:
        return Edit({}, (), (search,))
    row = search.trace[search.chosen]
    layer = next(layer for layer in model.layers(search.granularity) if layer.name == row.layer)
    move = Move(search.concept, row.tower, row.layer, row.step, row.relative_norm)
    return Edit(step_deltas(model, gradients, layer, row.step), (move,), (search,))


def add_edits(edits: Iterable[Edit]) -> Edit:
    """Several edits found on the same original model, added up: deltas of a shared tensor are summed.

    Source: SLUG, section 1.7 of the facts (joint update, each concept its own layer).
    """
    total = Edit({}, ())
    for edit in edits:
        deltas = dict(total.deltas)
        for name, delta in edit.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        total = replace(total, deltas=deltas, moves=total.moves + edit.moves, searches=total.searches + edit.searches)
    return total
