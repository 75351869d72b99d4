"""SSD: dampen weights that are far more important for the forget pairs than for the retain pairs.

Source: Foster et al., "Selective Synaptic Dampening", AAAI 2024, arXiv 2308.07707.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from muwa.gradients.accumulation import Job, accumulate, full_batch_jobs, leave_out_jobs
from muwa.gradients.base import BatchLoss, Recipe
from muwa.gradients.losses import by_name
from muwa.gradients.mean import shuffled_batches
from muwa.methods._checks import check_above_zero, check_each_above_zero, refuse_gradient_file
from muwa.methods._edits import Deltas, edit_of, forget_pairs, nonzero, retain_pairs
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import SelectionSettings, cached_trace, evaluate_each, search_of
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.edit import Edit
from muwa.types.ranges import Count, Fractions, Loss, Positive, Seed
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Pairs, Split, Task

STRENGTHS = tuple(0.1 + i * (5 - 0.1) / 9 for i in range(10))  # linspace(0.1, 5, 10), as in SLUG's release


@dataclass(frozen=True)
class SSD(SelectionSettings, Method):
    """theta' = theta * min(1, c F_r / F_f) where F_f > alpha F_r; elsewhere theta. There is no training.

    F_f and F_r are the diagonal Fisher importances for the forget and the retain pairs: `importance_sum`
    divided by the number of pairs. Several names are forgotten together, their pairs joined. In the record,
    `Move.step` holds c.

    Args:
        alpha: A weight is dampened only if it is more than this many times as important for the forget pairs
            as for the retain pairs.
        strengths: The values of c to try, in this order; None for the 10 values from 0.1 to 5 of SLUG's
            release. A smaller c dampens more.
        forget_loss, retain_loss: "cosine" | "contrastive". The method is meant to use the training loss for
            both. But in a batch whose pairs all show one name, every caption fits every image, so the
            contrastive forget loss gives every weight a large importance.
        batch_size: Pairs per batch. The mean gradient of each batch is squared, so the batch size affects the
            result.
        rule, criterion, target: Which strength becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no strength is feasible. One sweep serves both rules.
        seed: Seed for the order of the pairs.

    Source: the paper's selection and dampening. SLUG (arXiv 2407.11867) uses it as a baseline; its release
    has alpha 10, sweeps c, and caps the factor with min(1, .). The paper computes importances from single
    samples; its code squares the mean gradient of each batch, and so do we. We weight batches by their number
    of pairs, so that a short last batch does not count as a full one. We differ from the paper: F_r is
    computed on the retain pairs, not on all training pairs.
    """

    observes: ClassVar[type[Observer]] = Features
    uses_workers: ClassVar[bool] = True

    alpha: Positive
    strengths: Fractions | None
    forget_loss: Loss
    retain_loss: Loss
    batch_size: Count
    seed: Seed

    @property
    def recipe(self) -> Recipe:
        """How the gradients that get squared are computed."""
        return Recipe(self.forget_loss, self.retain_loss, self.batch_size, self.seed, "fp32")

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=ssd", self.observes, model)
        refuse_gradient_file("ssd", run)
        _ = self.selection, self.recipe  # these records raise for a setting that is out of range
        check_above_zero({"alpha": self.alpha})
        check_each_above_zero("strengths", _strengths(self))
        forget_pairs(task)
        retain_pairs(task)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`. All ranks compute the importances together."""
        joined = forget_pairs(task)
        forget = importances("forget", model, joined, self.recipe.forget, run=run)
        retain = importances("retain", model, task.retain, self.recipe.retain, without=task.mentions, run=run)
        if not run.is_main:
            return Edit({}, ())
        both, strengths = Importances(forget, retain), _strengths(self)
        found = cached_trace(
            run, sweep, model, both, task.probe, self.alpha, strengths, self.target, self.criterion, task=task
        )
        search = search_of(task, self.selection, found, "strengths")
        chosen = search.chosen
        deltas = {} if chosen is None else dampened(model.weights, both, self.alpha, strengths[chosen])
        return edit_of(task, search, deltas, len(joined) + len(retain_pairs(task)))


@dataclass(frozen=True)
class Importances:
    """F_f and F_r: parameter name -> importance of each weight, >= 0, of the parameter's shape."""

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]

    __repr__ = short_repr


def _strengths(method: SSD) -> tuple[float, ...]:
    return STRENGTHS if method.strengths is None else tuple(method.strengths)


def importances(
    side: str, model: Clip, pairs: Pairs, loss: BatchLoss, *, without: tuple[int, ...] = (), run: Run
) -> dict[str, Tensor]:
    """Parameter name -> importance of each weight; {} on worker ranks. The sums are cached.

    All tasks on the same data share the sum over all retain pairs. Leaving out the pairs `without` takes one
    pass over the batches that contain them.

    Args:
        side: "forget" | "retain": the folder in the cache.
        without: Indices of the pairs to leave out.
    """
    free = {"run": run}
    total = run.cached(f"importances/{side}", importance_sum, model, pairs, loss, _free=free, _together=True)
    change = None
    if without:
        change = run.cached(
            "importances/mentions",
            importance_sum,
            model,
            pairs,
            loss,
            without=without,
            _free=free,
            _together=True,
        )
    if not run.is_main:
        return {}
    n = len(pairs) - len(set(without))
    if change is not None:
        total = {
            name: (f + change[name]).clamp_(min=0) for name, f in total.items()
        }  # below 0 by rounding only
    return {name: f / n for name, f in total.items()}


def importance_sum(
    model: Clip, pairs: Pairs, loss: BatchLoss, *, without: tuple[int, ...] = (), run: Run
) -> dict[str, Tensor]:
    """`sum_b n_b (grad of the batch-mean loss_b)^2`, element by element, over batches b of n_b pairs.

    Args:
        without: If given, return the change in that sum when the pairs with these indices are left out of
            their batches.
        run: Its processes share each batch, so all of them must call this function.

    Returns:
        Parameter name -> fp32 tensor of its shape, on the CPU.
    """
    batches = shuffled_batches(len(pairs), loss.batch_size, loss.seed)
    jobs = leave_out_jobs(batches, without)[0] if without else full_batch_jobs(batches)
    total = {
        name: torch.zeros_like(w, dtype=torch.float32, device="cpu") for name, w in model.weights.items()
    }
    sizes = [len(job.pairs) for job in jobs]
    silent = replace(run, progress=False)  # one bar for all batches
    for job in run.track(jobs, f"{loss.name} importances", sum(sizes), sizes=sizes):
        for weight, places in job.terms:
            some = pairs.select([job.pairs[place] for place in places])
            one = Job(range(len(some)), [(1.0, range(len(some)))])
            gradient = accumulate(model, some, [one], by_name(loss.name), loss.name, run=silent)
            for name, g in gradient.items():
                total[name].addcmul_(g, g, value=weight)
    return total


def dampened(weights: Mapping[str, Tensor], importances: Importances, alpha: float, c: float) -> Deltas:
    """The deltas of dampening: `theta (min(1, c F_r / F_f) - 1)` where F_f > alpha F_r, else 0.

    >>> theta = torch.tensor([4.0, 4.0, -8.0])
    >>> f, r = torch.tensor([32.0, 32.0, 1.0]), torch.tensor([2.0, 8.0, 0.0])
    >>> dampened({"w": theta}, Importances({"w": f}, {"w": r}), 10.0, 4.0)["w"].tolist()
    [-3.0, 0.0, 8.0]
    """
    deltas = {}
    for name, theta in weights.items():
        f, r = importances.forget[name].to(theta.device), importances.retain[name].to(theta.device)
        ratio = (c * r / f.clamp(min=torch.finfo(f.dtype).tiny)).clamp(max=1.0)
        factor = torch.where(f > alpha * r, ratio, torch.ones_like(f))
        deltas[name] = theta.float() * (factor - 1)
    return deltas


def sweep(
    model: Clip,
    importances: Importances,
    probe: Split,
    alpha: float,
    strengths: Sequence[float],
    target: float,
    criterion: str,
    *,
    run: Run,
) -> dict[str, Any]:
    """Evaluate each strength in turn: see `muwa.methods._selection.evaluate_each`."""
    evaluator = EditEvaluator(
        model.observe(run), probe, criterion=criterion, target=target, step_unit="strength"
    )
    edits = ((c, nonzero(dampened(model.weights, importances, alpha, c))) for c in strengths)
    return evaluate_each(evaluator, edits, len(strengths), "dampening")
