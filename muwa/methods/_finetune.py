"""Fine-tune all weights of a CLIP with AdamW, and evaluate them on the probe images along the way.

The model is in eval mode, there is no augmentation, weights are fp32, and the order of the pairs is seeded.
So the same inputs give the same bytes. An interrupted training resumes after its last complete epoch, and
gives the same bytes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muwa.gradients.losses import by_name
from muwa.gradients.mean import shuffled_batches
from muwa.methods._checks import check_above_zero, check_at_least
from muwa.methods._edits import Deltas, difference, edit_of, forget_pairs, retain_pairs
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import Checkpoints, SelectionSettings, cached_trace, deltas_of, search_of
from muwa.methods._training_state import resume, save
from muwa.models.clip.embeddings import pixel_batches
from muwa.run import Run
from muwa.types.data import Pairs, Split, Task
from muwa.types.edit import Edit
from muwa.types.ranges import Count, CountOrZero, LearningRate, NotNegative, Seed
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip

MAX_LOGIT_SCALE = math.log(100)  # CLIP's training clips its logit scale here (arXiv 2103.00020, section 2.5)


@dataclass(frozen=True)
class Phase:
    """A part of an epoch: one pass over some pairs, in batches.

    Args:
        pairs: The pairs of the pass.
        loss: "cosine" | "contrastive" (`muwa.gradients.losses`).
        sign: Each batch is a step down `sign * loss`; -1 is gradient ascent.
    """

    pairs: Pairs
    loss: str
    sign: int = 1

    __repr__ = short_repr


def ascent_and_descent(task: Task, forget_loss: str, retain_loss: str) -> list[Phase]:
    """The phases of GAFT: ascent on all forget pairs, then descent on the retain pairs.

    Raises:
        ValueError: There are no forget pairs, or no retain pairs.
    """
    return [Phase(forget_pairs(task), forget_loss, -1), Phase(retain_pairs(task), retain_loss)]


@dataclass(frozen=True)
class Schedule:
    """How weights are fine-tuned.

    Args:
        epochs: Number of epochs. Each goes through all phases.
        batch_size: Number of pairs per batch.
        learning_rate: AdamW learning rate at the start; it falls to 0 along half a cosine. The betas are
            torch's.
        weight_decay: AdamW weight decay of tensors with at least two dimensions, as in open_clip's training.
            Biases, norms and the logit scale have none.
        seed: Seed for the order of the pairs.

    Raises:
        ValueError: A setting is out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int

    def __post_init__(self) -> None:
        bounds = {
            "epochs": (self.epochs, 1),
            "batch_size": (self.batch_size, 1),
            "weight_decay": (self.weight_decay, 0),
        }
        check_at_least(bounds)
        check_above_zero({"learning_rate": self.learning_rate})


@dataclass(frozen=True)
class Stops:
    """When weights are evaluated, and when a training ends early.

    Args:
        target, criterion: When an evaluation is feasible (`muwa.methods._selection.Selection`).
        patience: The training ends this many epochs after the one with the first feasible evaluation; with
            None it never ends early.
        evals_per_epoch: Number of evaluations per epoch, evenly spread.

    Raises:
        ValueError: A setting is out of range.
    """

    target: float
    criterion: str
    patience: int | None
    evals_per_epoch: int

    def __post_init__(self) -> None:
        check_at_least({"evals_per_epoch": (self.evals_per_epoch, 1)})
        if self.patience is not None:
            check_at_least({"patience": (self.patience, 0)})

    def evaluated_steps(self, steps: int) -> set[int]:
        """After which steps of an epoch the weights are evaluated. Steps are numbered 1 to `steps`.

        >>> sorted(Stops(0.0, "top5", None, 2).evaluated_steps(5))
        [3, 5]
        """
        return {math.ceil((i + 1) * steps / self.evals_per_epoch) for i in range(self.evals_per_epoch)}

    def is_over(self, epoch: int, first_feasible: int | None) -> bool:
        """Whether a training ends after `epoch`.

        Args:
            first_feasible: The epoch of the first feasible evaluation; None if there was none.
        """
        return (
            self.patience is not None
            and first_feasible is not None
            and epoch - first_feasible >= self.patience
        )


@dataclass(frozen=True)
class FineTuningSettings(SelectionSettings):
    """The settings of a method that fine-tunes all weights and selects a checkpoint.

    Args:
        epochs, learning_rate, weight_decay, batch_size, seed: See `Schedule`.
        rule, criterion, target: Which checkpoint becomes the edit (`muwa.methods._selection.Selection`).
            "best" takes none if none is feasible; "first" is the rule of SLUG's release. One training serves
            both rules.
        patience, evals_per_epoch: See `Stops`.
    """

    epochs: Count
    learning_rate: LearningRate
    weight_decay: NotNegative
    batch_size: Count
    patience: CountOrZero | None
    evals_per_epoch: Count
    seed: Seed

    @property
    def schedule(self) -> Schedule:
        """How the weights are trained."""
        return Schedule(self.epochs, self.batch_size, self.learning_rate, self.weight_decay, self.seed)

    @property
    def stops(self) -> Stops:
        """When the weights are evaluated, and when the training ends."""
        return Stops(self.target, self.criterion, self.patience, self.evals_per_epoch)

    def check_fine_tuning(self) -> None:
        """Raise if one of these settings is out of range.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        _ = self.selection, self.schedule, self.stops  # these records refuse what is out of range


class FineTuning:
    """Fine-tunes copies of a model's weights, step by step. The model is not changed.

    Args:
        mask: Parameter name -> bool tensor of its shape. Where it is False, a weight keeps its bits: not even
            weight decay changes it.
        steps: Number of steps of the whole training, over which the learning rate falls.
    """

    def __init__(self, model: Clip, schedule: Schedule, mask: Mapping[str, Tensor] | None, steps: int):
        self._model, self._schedule, self._steps = model, schedule, steps
        self._start = {name: weight.detach().float().clone() for name, weight in model.weights.items()}
        self._mask = {name: some.to(model.device) for name, some in mask.items()} if mask else {}
        self.weights = {name: weight.clone().requires_grad_() for name, weight in self._start.items()}
        decayed = [weight for weight in self.weights.values() if weight.ndim >= 2]
        others = [weight for weight in self.weights.values() if weight.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=schedule.learning_rate
        )
        self.done = 0

    def deltas(self) -> Deltas:
        """The fp32 change of the weights so far, for the tensors that changed."""
        return difference(self.weights, self._start)

    def step(self, pixels: Tensor, tokens: Tensor, phase: Phase) -> None:
        """One step on one batch.

        Raises:
            ValueError: The loss is not finite.
        """
        rate = self._schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * self.done / self._steps))
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.zero_grad(set_to_none=True)
        with torch.enable_grad():
            images = self._model.encode("vision", pixels, self.weights)
            texts = self._model.encode("text", tokens, self.weights)
            value = phase.sign * by_name(phase.loss)(images, texts, self.weights["logit_scale"].exp())
            value.backward()
        if not torch.isfinite(value):
            raise ValueError(
                f"method.learning_rate: the loss is {value.item()} at step {self.done + 1}; use a lower "
                "learning rate"
            )
        with torch.no_grad():
            self._adam.step()
            scale = self.weights["logit_scale"]
            scale.clamp_(max=max(MAX_LOGIT_SCALE, self._start["logit_scale"].max().item()))
            for name, some in self._mask.items():
                self.weights[name].copy_(torch.where(some, self.weights[name], self._start[name]))
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """The weights and AdamW's moments, by name."""
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, moment in self._adam.state.get(weight, {}).items():
                tensors[f"{key}/{name}"] = moment
        return tensors

    def load(self, state: Mapping[str, Tensor], done: int) -> None:
        """Restore a `state()` that was taken after `done` steps."""
        self.done = done
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[f"weight/{name}"])
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in state]
                if keys:
                    moments = {key: state[f"{key}/{name}"] for key in keys}
                    placed = {key: x if key == "step" else x.to(weight.device) for key, x in moments.items()}
                    self._adam.state[weight] = placed


def tune(
    model: Clip,
    phases: Sequence[Phase],
    schedule: Schedule,
    stops: Stops | None,
    probe: Split | None,
    *,
    mask: Mapping[str, Tensor] | None = None,
    state: Path | None = None,
    run: Run,
) -> dict[str, Any]:
    """Fine-tune copies of all weights. Each epoch goes through `phases` in turn.

    Args:
        stops, probe: When weights are evaluated, and on which images. With None, all epochs are trained and
            nothing is evaluated.
        mask: As in `FineTuning`.
        state: The folder for the state that an interrupted training resumes from; with None it cannot resume.
        run: Gets the log of each evaluation. A training that resumes logs the earlier evaluations again.

    Returns:
        `Checkpoints.result` with "samples": the number of pairs whose gradient was taken, counted once per
        pass. If nothing is evaluated, "trace" is empty, and "deltas" has one entry, "last": the deltas at the
        end.

    Raises:
        ValueError: The loss is not finite.
    """
    steps = sum(-(-len(phase.pairs) // schedule.batch_size) for phase in phases)
    training = FineTuning(model, schedule, mask, schedule.epochs * steps)
    now = resume(state, training)
    checkpoints = None
    if stops and probe:
        evaluator = EditEvaluator(
            model.observe(run),
            probe,
            criterion=stops.criterion,
            target=stops.target,
            step_unit="learning rate",
        )
        checkpoints = Checkpoints(evaluator, now.trace, now.deltas)
    tokens = [model.tokenize(list(phase.pairs.captions)) for phase in phases]
    while now.epoch < schedule.epochs and not (stops and stops.is_over(now.epoch, now.first_feasible)):
        now.epoch += 1
        for step, (at, batch, pixels) in enumerate(_batches(model, phases, schedule, now.epoch, run), 1):
            training.step(pixels, tokens[at][batch], phases[at])
            if stops and checkpoints and step in stops.evaluated_steps(steps):
                row = checkpoints.evaluate(training.deltas(), schedule.learning_rate)
                if row.feasible and now.first_feasible is None:
                    now.first_feasible = now.epoch
        save(state, training, now)
    samples = now.epoch * sum(len(phase.pairs) for phase in phases)
    if checkpoints is None:
        return {"before": None, "trace": [], "deltas": {"last": training.deltas()}, "samples": samples}
    return checkpoints.result(samples=samples)


def _batches(
    model: Clip, phases: Sequence[Phase], schedule: Schedule, epoch: int, run: Run
) -> Iterator[tuple[int, list[int], Tensor]]:
    """For each step of an epoch: (index of its phase, indices of its pairs in the phase, their pixels)."""
    steps = [
        (at, batch)
        for at, phase in enumerate(phases)
        for batch in shuffled_batches(len(phase.pairs), schedule.batch_size, (schedule.seed, epoch, at))
    ]
    images = [phases[at].pairs.images[i] for at, batch in steps for i in batch]
    sizes = [len(batch) for _, batch in steps]
    decoded = zip(steps, pixel_batches(model, images, sizes), strict=True)
    what = f"epoch {epoch} of {schedule.epochs}"
    for (at, batch), pixels in run.track(decoded, what, sum(sizes), sizes=sizes):
        yield at, batch, pixels


def fine_tuned_edit(
    method: FineTuningSettings,
    model: Clip,
    task: Task,
    phases: Sequence[Phase],
    run: Run,
    mask: Mapping[str, Tensor] | None = None,
) -> Edit:
    """Fine-tune on `phases` with a method's settings, and make an edit of the selected checkpoint.

    Runs with rule "best" and with rule "first" share one cached training.

    Args:
        mask: As in `FineTuning`.
    """
    stops = method.stops
    result = cached_trace(
        run,
        tune,
        model,
        tuple(phases),
        method.schedule,
        stops,
        task.probe,
        task=task,
        resume="state",
        mask=mask,
    )
    what = "epochs" if stops.evals_per_epoch == 1 else "checkpoints"
    search = search_of(task, method.selection, result, what)
    return edit_of(task, search, deltas_of(search, result), result["samples"])
