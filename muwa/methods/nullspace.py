"""Null space: remove the text directions of a name from the last visual projection, in closed form.

Source: Mishra et al., "Erasing CLIP Memories", arXiv 2512.14137.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from muwa.data.prompts import prompts_with
from muwa.methods._checks import refuse_gradient_file
from muwa.methods._edits import Deltas, edit_of
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import SelectionSettings, cached_trace, evaluate_each, search_of
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.ranges import Count, Share, Templates
from muwa.types.search import Candidate

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Split, Task
    from muwa.types.edit import Edit

RIGHT = ("visual.proj",)  # a projection of shape (width, d): embeddings are x W
LEFT = (  # projections of shape (d, width): embeddings are W x
    "visual_projection.weight",
    "visual.head.proj.weight",
    "visual.attnpool.c_proj.weight",
)


@dataclass(frozen=True)
class NullSpace(SelectionSettings, Method):
    """W' = W (I - s U U^T) for the projection W that gives image embeddings x W.

    The columns of U (d, r) are an orthonormal basis of the embeddings of the prompts that contain a name to
    forget. At s = 1 and full rank, the cosine of any image with each of these prompts is 0. The method uses
    no training pairs, only the probe images. In the record, `Move.step` holds s.

    Args:
        templates: Prompts, with {} in place of the name; None takes the zero-shot prompts of the probe images
            and the task's prompts.
        rank: Number of columns of U, taken in descending order of the singular values of the prompts'
            embeddings; None takes all.
        strengths: The values of s to try, in this order, in (0, 1].
        rule, criterion, target: Which strength becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no strength is feasible. One sweep serves both rules.

    Source: only the abstract of the paper was available. It says: an orthonormal basis of the target's text
    embeddings is projected out of the final projection layer, and a partial projection balances forgetting
    and retaining. Our choice: the prompts, singular vectors as the basis, and s by `rule`. What the paper
    does with the texts of retained classes is not implemented.
    """

    observes: ClassVar[type[Observer]] = Features

    templates: Templates | None
    rank: Count | None
    strengths: Annotated[Sequence[Share], MinLen(1)]

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=nullspace", self.observes, model)
        refuse_gradient_file("nullspace", run)
        _ = self.selection  # raises for a setting that is out of range
        projection(model.clips[""])
        if self.templates is not None and not (
            self.templates and all("{}" in text for text in self.templates)
        ):
            raise ValueError(
                f"method.templates: got {list(self.templates)}, want texts with {{}} where the name stands"
            )
        if not self.strengths or not all(0 < s <= 1 for s in self.strengths):
            raise ValueError(f"method.strengths: got {list(self.strengths)}, want some in (0, 1]")
        prompts = len(self._prompts(task))
        if self.rank is not None and not 1 <= self.rank <= prompts:
            raise ValueError(f"method.rank: got {self.rank}, want 1 to {prompts} (prompts), or null for all")

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """The edit of the projection, and of its bias if it has one."""
        basis = directions(model, self._prompts(task), self.rank)
        strengths = tuple(self.strengths)
        found = cached_trace(
            run, try_strengths, model, basis, task.probe, strengths, self.target, self.criterion, task=task
        )
        search = search_of(task, self.selection, found, "strengths", granularity="tensor")
        chosen = search.chosen
        deltas = (
            {} if chosen is None else projected(model.weights, projection(model), basis, strengths[chosen])
        )
        return edit_of(task, search, deltas, samples=0)

    def _prompts(self, task: Task) -> tuple[str, ...]:
        """The prompts that contain a name to forget, without repetition."""
        if self.templates is not None:
            prompts = [template.format(name) for name in task.names for template in self.templates]
        else:
            templates = task.probe.forget.classes.templates
            prompts = []
            for name in task.names:
                prompts += [template.format(name) for template in templates] + list(
                    prompts_with(task, name)[1:]
                )
        return tuple(dict.fromkeys(prompts))


def projection(model: Clip) -> str:
    """The name of the weight that maps the last hidden state of the vision tower to image embeddings.

    Raises:
        ValueError: The model has no weight with a name in `RIGHT` or `LEFT`.
    """
    for name in (*RIGHT, *LEFT):
        if name in model.weights:
            return name
    raise ValueError(
        f"method=nullspace: {model.source} has none of {', '.join((*RIGHT, *LEFT))}: no projection to edit"
    )


@torch.no_grad()
def directions(model: Clip, prompts: Sequence[str], rank: int | None) -> Tensor:
    """An orthonormal basis of the prompts' embeddings: their first right singular vectors.

    Args:
        rank: Largest number of directions; None takes all.

    Returns:
        (d, r) fp64 on the CPU. Directions whose singular value is at most 1e-4 of the largest are left out:
        they come from prompts with almost equal embeddings.
    """
    embeddings = model.encode("text", model.tokenize(list(prompts))).double().cpu()
    _, sizes, rows = torch.linalg.svd(embeddings, full_matrices=False)
    count = int((sizes > 1e-4 * sizes[0]).sum())
    return rows[: min(count, rank or count)].T.contiguous()


def projected(weights: Mapping[str, Tensor], name: str, basis: Tensor, strength: float) -> Deltas:
    """The deltas of the edit: `-s W U U^T`, or `-s U U^T W`.

    The first is for weights of shape (width, d), the second for weights of shape (d, width) and their bias.

    Args:
        name: Name of the weight to edit (`projection`).
        basis: U, (d, r) fp64.
        strength: s.

    >>> u = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    >>> projected({"visual.proj": torch.tensor([[3.0, 4.0]])}, "visual.proj", u, 0.5)["visual.proj"].tolist()
    [[-1.5, -0.0]]
    """
    span = basis @ basis.T
    theta = weights[name].double().cpu()
    deltas = {name: theta @ span if name in RIGHT else span @ theta}
    bias = name.removesuffix("weight") + "bias"
    if name in LEFT and bias in weights:
        deltas[bias] = span @ weights[bias].double().cpu()
    return {key: (-strength * delta).float().to(weights[key].device) for key, delta in deltas.items()}


def try_strengths(
    model: Clip,
    basis: Tensor,
    probe: Split,
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
    name = projection(model)
    edits = ((s, projected(model.weights, name, basis, s)) for s in strengths)
    return evaluate_each(evaluator, edits, len(strengths), "projecting", Candidate({"": name}, "vision"))
