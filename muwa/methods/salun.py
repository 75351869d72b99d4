"""SalUn: GAFT on only the weights with the largest forget gradient (arXiv 2310.12508, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from muwa.gradients.base import Recipe
from muwa.gradients.files import read_gradients
from muwa.gradients.mean import MeanGradientSettings, forget_sum, origin
from muwa.methods._finetune import FineTuningSettings, ascent_and_descent, fine_tuned_edit
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.edit import Edit
from muwa.types.ranges import Share

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Task


@dataclass(frozen=True)
class SalUn(FineTuningSettings, MeanGradientSettings, Method):
    """GAFT on the fraction `share` of all weights with the largest |g_f|; all other weights stay unchanged.

    Several names are forgotten together, their pairs joined: g_f is the mean over all these pairs. It is read
    from the gradient file if the run has one. In the record, `Move.step` holds the learning rate, and
    `Edit.samples` includes the pass that gave g_f.

    Args:
        share: Fraction of the model's individual weights to train, in (0, 1].
        forget_loss, retain_loss: "cosine" | "contrastive". g_f is the gradient of the forget loss at the
            unedited weights.
        epochs: Largest number of epochs. Each is one pass over the forget pairs (ascent) and one over the
            retain pairs (descent).

    The other settings are those of `muwa.methods._finetune.FineTuningSettings`.

    Raises:
        ValueError: The loss is not finite; or the gradient file was computed from something else.

    Source: the paper's saliency mask and masked update. Its threshold is the median of |g_f|; ours follows
    from `share`. SLUG (arXiv 2407.11867) uses GAFT with this mask as a baseline. We differ: weight decay does
    not move masked weights either.
    """

    observes: ClassVar[type[Observer]] = Features
    uses_workers: ClassVar[bool] = True

    share: Share

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=salun", self.observes, model)
        self.check_fine_tuning()
        if not 0 < self.share <= 1:
            raise ValueError(f"method.share: got {self.share}, want a share of all weights in (0, 1]")
        _ = self.recipe  # this record raises for an unknown loss
        ascent_and_descent(task, self.forget_loss, self.retain_loss)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`. All ranks compute g_f together."""
        gradient = forget_gradient(model, task, self.recipe, run)
        if gradient is None:
            return Edit({}, ())
        phases = ascent_and_descent(task, self.forget_loss, self.retain_loss)
        edit = fine_tuned_edit(self, model, task, phases, run, mask=largest(gradient, self.share))
        return replace(edit, samples=edit.samples + len(phases[0].pairs))


def forget_gradient(model: Clip, task: Task, recipe: Recipe, run: Run) -> dict[str, Tensor] | None:
    """The mean gradient of the forget loss over the pairs of all names; None on worker ranks.

    The sum over the pairs of each name is read from `run.gradient_file` if there is one. Else it is read from
    the cache, or computed.

    Raises:
        ValueError: The gradient file was computed from something else.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for name in task.names:
        if run.gradient_file is None:
            one = forget_sum(model, task, name, recipe, run)
            if run.is_main:
                total, count = _add(total, one["sum"]), count + one["n"]
        elif run.is_main:
            alone = replace(recipe, retain_gradient=False)
            read = read_gradients(run.gradient_file, origin(model, task, name, alone))
            total = _add(total, {key: read.n_forget * g for key, g in read.forget.items()})
            count += read.n_forget
    return {key: g / count for key, g in total.items()} if run.is_main else None


def _add(total: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`total + more`, tensor by tensor; an empty `total` is zero."""
    return {key: total[key] + g if key in total else g for key, g in more.items()}


def largest(gradient: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """A mask of the individual weights with the largest |gradient|: exactly `round(share * all)` of them.

    They are ranked over all tensors together. Ties go to the earlier weight, in the order of the tensors in
    `gradient` and of the elements in a tensor.

    Returns:
        Name -> bool tensor of the gradient's shape.

    >>> masks = largest({"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([2.0, 1.0])}, 0.75)
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([True, True], [True, False])
    """
    sizes = torch.cat([g.detach().abs().flatten().float().cpu() for g in gradient.values()])
    k = round(share * len(sizes))
    if k == 0:
        return {name: torch.zeros_like(g, dtype=torch.bool) for name, g in gradient.items()}
    least = float(np.partition(sizes.numpy(), len(sizes) - k)[len(sizes) - k])  # the k-th largest
    taken = sizes > least
    equal = (sizes == least).nonzero().flatten()
    taken[equal[: k - int(taken.sum())]] = True
    parts = taken.split([g.numel() for g in gradient.values()])
    return {name: part.view(g.shape) for (name, g), part in zip(gradient.items(), parts, strict=True)}
