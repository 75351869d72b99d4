"""Fine-tuning a whole CLIP, epoch by epoch: AdamW, judged on the probe pictures, resumed after the last whole epoch.

Eval mode, no augmentation, fp32, order by seed: the same inputs give the same bytes, stopped and resumed or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.losses import by_name
from muwa.gradients.mean import plan
from muwa.layer_search.steps import Log
from muwa.methods._selection import (
    Deltas,
    EditEvaluator,
    Tell,
    check_choice,
    difference,
    edit_of,
    keep,
    remembered,
    search_of,
    untold,
)
from muwa.methods._training_state import resume, save
from muwa.methods._unet import check_above_zero, check_at_least
from muwa.models.clip.embeddings import Features, pixel_batches
from muwa.models.clip.model import Clip
from muwa.runtime.progress import track
from muwa.types.data import Pairs, Split, Task
from muwa.types.edit import Edit

HOTTEST = math.log(100)  # what CLIP's logit scale is kept below in training (arXiv 2103.00020, section 2.5)


@dataclass(frozen=True)
class Section:
    """A part of an epoch: pairs gone through once in batches, each a step down `sign * loss` (-1 is gradient ascent)."""

    pairs: Pairs
    loss: str
    sign: int = 1


@dataclass(frozen=True)
class Schedule:
    """How weights are fine-tuned: `AdamW` with torch's betas, the learning rate falling to 0 along half a cosine.

    `weight_decay` is of tensors of two dimensions or more, as open_clip trains; biases, norms and the logit scale have none.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int

    def __post_init__(self) -> None:
        check_at_least({"epochs": (self.epochs, 1), "batch_size": (self.batch_size, 1),
                        "weight_decay": (self.weight_decay, 0)})  # fmt: skip
        check_above_zero({"learning_rate": self.learning_rate})


@dataclass(frozen=True)
class Stops:
    """When weights are judged, and when a training ends early.

    A step is feasible when forget accuracy by `criterion` ("top5" | "top1") is at or below `target`; `patience` epochs after
    the first feasible one the training ends (None: never); `evals_per_epoch` judgements an epoch, evenly spread.
    """

    target: float
    criterion: str
    patience: int | None
    evals_per_epoch: int = 1

    def __post_init__(self) -> None:
        check_choice("best", self.criterion, self.target)
        check_at_least({"evals_per_epoch": (self.evals_per_epoch, 1)})
        if self.patience is not None:
            check_at_least({"patience": (self.patience, 0)})


class FineTuning:
    """Copies of a model's weights going down a loss, step by step.

    Args:
        mask: Parameter name -> bool tensor of its shape; where it is False a weight keeps its bits, decay or not.
        steps: In the whole training: the length of the learning rate's cosine.
    """

    def __init__(self, model: Clip, schedule: Schedule, mask: Mapping[str, Tensor] | None, steps: int):
        self._model, self._schedule, self._steps = model, schedule, steps
        self._start = {name: weight.detach().float().clone() for name, weight in model.weights.items()}
        self._mask = {name: some.to(model.device) for name, some in mask.items()} if mask else None
        self.weights = {name: weight.clone().requires_grad_() for name, weight in self._start.items()}
        decayed = [weight for weight in self.weights.values() if weight.ndim >= 2]
        others = [weight for weight in self.weights.values() if weight.ndim < 2]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([group for group in groups if group["params"]], lr=schedule.learning_rate)
        self.done = 0

    def deltas(self) -> Deltas:
        """The change so far, fp32, of tensors that changed."""
        return difference(self.weights, self._start)

    def step(self, pixels: Tensor, tokens: Tensor, section: Section) -> None:
        """One step on one batch.

        Raises:
            ValueError: The loss is no longer finite.
        """
        rate = self._schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * self.done / self._steps))
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.zero_grad(set_to_none=True)
        with torch.enable_grad():
            images = self._model.encode("vision", pixels, self.weights)
            texts = self._model.encode("text", tokens, self.weights)
            value = section.sign * by_name(section.loss)(images, texts, self.weights["logit_scale"].exp())
            value.backward()
        if not torch.isfinite(value):
            raise ValueError(f"method.learning_rate: the loss is {value.item()} at step {self.done + 1}; lower it")
        with torch.no_grad():
            self._adam.step()
            scale = self.weights["logit_scale"]
            scale.clamp_(max=max(HOTTEST, self._start["logit_scale"].max().item()))
            for name, some in (self._mask or {}).items():
                self.weights[name].copy_(torch.where(some, self.weights[name], self._start[name]))
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, by name."""
        found = {f"weight/{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, moment in self._adam.state.get(weight, {}).items():
                found[f"{key}/{name}"] = moment
        return found

    def load(self, state: Mapping[str, Tensor], done: int) -> None:
        """Go on from `state()`, `done` steps in."""
        self.done = done
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[f"weight/{name}"])
                moments = {
                    key: state[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in state
                }
                if moments:
                    placed = {
                        key: moment if key == "step" else moment.to(weight.device) for key, moment in moments.items()
                    }
                    self._adam.state[weight] = placed


def tune(
    model: Clip, sections: Sequence[Section], schedule: Schedule, stops: Stops | None, probe: Split | None, *,
    mask: Mapping[str, Tensor] | None = None, features: Features | None = None, tell: Tell = untold,
    state: Path | None = None, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune copies of all weights; each epoch goes through `sections` in turn.

    Args:
        stops, probe: When and on what weights are judged; None trains all epochs and judges nothing.
        mask: See `FineTuning`.
        features: Of `model`, where decoded probe pictures come from.
        tell: Hears of each judgement; those of an earlier, stopped run are told again.
        state: A folder for what a stopped training goes on from; None keeps nothing.

    Returns:
        {"before": the unedited model's row, "trace": one row a judgement, "kept": str(index in trace) -> deltas of the first
        checkpoint (`first_of`) and of the best (`best_of`), "samples": pairs whose gradient was taken}. Of a training that
        is not judged "trace" is empty and "kept" has "last".

    Raises:
        ValueError: The loss is no longer finite.
    """
    sizes = [-(-len(section.pairs) // schedule.batch_size) for section in sections]
    descent = FineTuning(model, schedule, mask, schedule.epochs * sum(sizes))
    edit_evaluator = EditEvaluator(model, probe, features, target=stops.target, criterion=stops.criterion) if stops and probe else None
    before = edit_evaluator.before() if edit_evaluator else None
    kept_deltas: dict[str, Deltas] = {}
    first_epoch, trace, forgot = resume(state, descent, kept_deltas)
    for row in trace:
        tell(row)
    tokens = [model.tokenize(list(section.pairs.captions)) for section in sections]
    epoch = first_epoch
    ended = forgot is not None and _over(stops, epoch - forgot)
    while epoch < schedule.epochs and not ended:
        epoch += 1
        stop_at = (
            {math.ceil((i + 1) * sum(sizes) / stops.evals_per_epoch) for i in range(stops.evals_per_epoch)}
            if stops
            else ()
        )
        what = f"epoch {epoch} of {schedule.epochs}"
        for step, (at, batch, pixels) in enumerate(_batches(model, sections, schedule, epoch, what, progress), 1):
            descent.step(pixels, tokens[at][batch], sections[at])
            if edit_evaluator and step in stop_at:
                deltas = descent.deltas()
                row = edit_evaluator(deltas, len(trace) + 1, schedule.learning_rate)
                trace.append(row)
                keep(kept_deltas, trace, deltas, edit_evaluator.counts)
                tell(row)
                forgot = epoch if forgot is None and row.feasible else forgot
        ended = forgot is not None and _over(stops, epoch - forgot)
        save(state, descent, kept_deltas, {"epoch": epoch, "forgot": forgot, "trace": [asdict(row) for row in trace]})
    if edit_evaluator is None:
        kept_deltas["last"] = descent.deltas()
    samples = epoch * sum(len(section.pairs) for section in sections)
    return {"before": before, "trace": trace, "kept": kept_deltas, "samples": samples}


def _over(stops: Stops | None, epochs: int) -> bool:
    return stops is not None and stops.patience is not None and epochs >= stops.patience


def _batches(
    model: Clip, sections: Sequence[Section], schedule: Schedule, epoch: int, what: str, progress: bool
) -> Iterator[tuple[int, list[int], Tensor]]:
    """(section, places of its pairs, pixels) of each step of an epoch; pictures are decoded ahead of the compute."""
    steps = [
        (at, batch)
        for at, section in enumerate(sections)
        for batch in plan(len(section.pairs), schedule.batch_size, (schedule.seed, epoch, at))
    ]
    images = [sections[at].pairs.images[i] for at, batch in steps for i in batch]
    sizes = [len(batch) for _, batch in steps]
    pixels = pixel_batches(model, images, sizes)
    for (at, batch), some in track(zip(steps, pixels, strict=True), what, sum(sizes), show=progress, sizes=sizes):
        yield at, batch, some


def descend(
    model: Clip, task: Task, sections: Sequence[Section], schedule: Schedule, stops: Stops, rule: str, *, store: Store,
    log: Log, mask: Mapping[str, Tensor] | None = None, progress: bool = False,
) -> Edit:  # fmt: skip
    """Fine-tune on `sections`, once for both rules, and make the chosen checkpoint an edit."""
    free = {"features": Features(model, store), "progress": progress}
    found = remembered(store, tune, model, tuple(sections), schedule, stops, task.probe, task=task, log=log, free=free,
                       resume="state", mask=mask)  # fmt: skip
    what = "epochs" if stops.evals_per_epoch == 1 else "checkpoints"
    search = search_of(task, rule, stops.criterion, found["before"], found["trace"], what)
    deltas = found["kept"][str(search.chosen)] if search.chosen is not None else {}
    return edit_of(task, search, deltas, found["samples"])
