"""Gradients of the answer loss of a vision-language model with respect to the weights of its vision tower.

SLUG takes both gradients on the CLIP that the tower came from, but the model is not used for the loss of that
CLIP. Here both are gradients of the loss on the model's answers: a step along the forget gradient makes the
name an unlikely answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muwa.fingerprint import digest
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import GradientSum, shuffled_batches
from muwa.models.base import check_observer
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.patch import names
from muwa.types.gradients import Gradients
from muwa.types.questions import Questions

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.vlm.model import Vlm
    from muwa.run import Run
    from muwa.types.data import Pairs, Task

IDENTIFY, DESCRIBE = "What is the name of the person in this image?", "Describe the image."


def answer_gradient_sum(
    model: Vlm, pairs: Pairs, *, question: str, batch_size: int, seed: int, run: Run
) -> GradientSum:
    """The gradient of the answer loss with respect to the CLIP of the vision tower, summed over pairs.

        loss of a pair = mean over the tokens of its caption of -log p(token | image, question, tokens before)

    Args:
        pairs: Images, and captions that count as the right answers.
        question: The question that is asked about every image.
        batch_size: Number of pairs per batch. It changes the result by rounding only.
        seed: Seed for the order of the pairs.
        run: Shows the progress.

    Returns:
        The sum, by the parameter names of the CLIP, as fp32 on the CPU; and the number of pairs. Weights that
        the model does not read have zeros; among them is the whole text tower.

    Raises:
        ValueError: There are no pairs, or a sum is not finite.
    """
    if not len(pairs):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    parameters = {name: model.parameters[name] for name in model.tower}
    total = {name: torch.zeros(p.shape, dtype=torch.float32) for name, p in parameters.items()}
    batches = shuffled_batches(len(pairs), batch_size, seed)
    with _with_gradients(parameters.values()):
        for batch in run.track(batches, "answer gradient", len(pairs), sizes=map(len, batches)):
            with model.loaded(), torch.enable_grad():
                answer_losses(model, pairs.select(batch), question).sum().backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    total[name] += parameter.grad.float().cpu()
                    parameter.grad = None
    if bad := [name for name, tensor in total.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"gradient_source=answer: the gradient of {bad[0]} is not finite, in the model's own precision; "
            "take model.dtype=bf16 or fp32, whose range is wider than that of fp16"
        )
    return {"sum": by_clip(model, total), "n": len(pairs)}


@contextmanager
def _with_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Require gradients with respect to `parameters` inside this context. Afterwards their `grad` is None."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def answer_losses(model: Vlm, pairs: Pairs, question: str) -> Tensor:
    """(n,) losses: the mean negative log-probability of the tokens of each caption, end marker included."""
    asked = Questions((question,) * len(pairs), tuple((image,) for image in pairs.images))
    prompts, answered = model.inputs(asked), model.inputs(asked, pairs.captions)
    lengths = answered["attention_mask"].sum(1) - prompts["attention_mask"].sum(1)
    logits = model.model(**answered).logits[:, :-1].float()
    targets = answered["input_ids"][:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    from_end = torch.arange(losses.shape[1], device=losses.device).flip(0)  # padding is on the left
    in_answer = from_end[None] < lengths[:, None]
    return (losses * in_answer).sum(1) / lengths


def by_clip(model: Vlm, tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the vision tower, renamed as in its CLIP; with zeros for the other weights of that CLIP."""
    weights = model.clip.weights
    vision = {name: w for name, w in weights.items() if names.parts_in_target(name, w, tower)}
    homes = names.target_names_of(names.to_full_names(vision), tower)
    renamed = names.write_back({name: tower[home] for name, home in homes.items()}, vision)
    return {
        name: renamed[name].contiguous()
        if name in renamed
        else torch.zeros_like(w, dtype=torch.float32, device="cpu")
        for name, w in weights.items()
    }


@dataclass(frozen=True)
class AnswerGradients(GradientSource):
    """Mean gradients of the answer loss: forget images answered with the name, retain images described.

    For the forget pairs, the right answer to `IDENTIFY` is the bare name. For the retain pairs, the right
    answer to `DESCRIBE` is their caption; pairs that mention a forgotten name are left out. The losses that
    the recipe names are not used.

    Source: muwa's own. The paper takes both gradients on the CLIP.
    """

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if the model does not answer questions, or if a gradient file is given.

        Raises:
            ValueError: Says which setting does not fit.
        """
        check_observer("gradient_source=answer", QuestionAnswering, model)
        if run.gradient_file is not None:
            raise ValueError(
                f"gradients={run.gradient_file}: a file holds gradients of a CLIP, gradient_source=answer "
                "takes those of answers; leave gradients=null, or take gradient_source=clip"
            )

    def __call__(
        self, model: Vlm, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The gradients of the one encoder of `model`. Worker ranks do not help; they get None."""
        if not run.is_main:
            return None
        named, described = task.forget[name].with_caption(name), task.retain_pairs()
        forget = self._mean("forget", model, named, IDENTIFY, recipe, run)
        retain = self._mean("retain", model, described, DESCRIBE, recipe, run)
        origin = {
            "model": model.fingerprint,
            "forget_pairs": named.fingerprint,
            "retain_pairs": described.fingerprint,
            "losses": digest([IDENTIFY, DESCRIBE]),
            "batch_size": str(_pairs_at_once(recipe)),
            "seed": str(recipe.seed),
        }
        gradients = Gradients(forget, retain, len(named), len(described), origin)
        return dict.fromkeys(model.clips, gradients)

    def _mean(
        self, side: str, model: Vlm, pairs: Pairs, question: str, recipe: Recipe, run: Run
    ) -> dict[str, Tensor]:
        """The mean gradient over `pairs`; the cache stores the sum.

        Args:
            side: "forget" | "retain", for the place in the cache.
        """
        total: GradientSum = run.cached(
            f"gradients/answer_{side}",
            answer_gradient_sum,
            model,
            pairs,
            question=question,
            batch_size=_pairs_at_once(recipe),
            seed=recipe.seed,
            _free={"run": run},
        )
        return {key: tensor / total["n"] for key, tensor in total["sum"].items()}


def _pairs_at_once(recipe: Recipe) -> int:
    """Number of pairs per batch. Each pair has its own loss, so smaller batches give the same gradient."""
    return recipe.micro_batch_size or recipe.batch_size
