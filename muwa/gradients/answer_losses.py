"""Losses of the answers of a vision-language model, and their gradients and moments in its vision tower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muwa.fingerprint import Content, digest
from muwa.gradients.mean import GradientSum, shuffled_batches
from muwa.gradients.moments import Sums, WeightProducts, adder
from muwa.gradients.towers import gradients_by_clip
from muwa.models.clip.layers import matrices
from muwa.patch import names
from muwa.types.data import Pairs
from muwa.types.questions import Questions
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from muwa.models.vlm.model import Vlm
    from muwa.run import Run


@dataclass(frozen=True)
class Dialogues(Content):
    """Questions about images, and their right answers.

    Args:
        pairs: The images. Each caption is the right answer to the question about its image.
        questions: One question per image.
    """

    pairs: Pairs
    questions: tuple[str, ...]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, indices: Sequence[int]) -> Dialogues:
        """The dialogues at `indices`, in that order."""
        return Dialogues(self.pairs.select(indices), tuple(self.questions[i] for i in indices))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of images, questions and answers, in order."""
        return digest([self.pairs.fingerprint, *self.questions])


def in_wordings(pairs: Pairs, wordings: Sequence[str]) -> Dialogues:
    """Every image asked about in every wording, with its caption as the answer."""
    again = pairs.select([i for _ in wordings for i in range(len(pairs))])
    return Dialogues(again, tuple(text for text in wordings for _ in range(len(pairs))))


def mean_negative_log_probabilities(logits: Tensor, targets: Tensor, in_answer: Tensor) -> Tensor:
    """(n,): the mean over the tokens of each answer of -log p.

    Args:
        logits: (n, tokens, vocabulary).
        targets: The tokens, (n, tokens).
        in_answer: (n, tokens) bool: which tokens belong to the answer.
    """
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (losses * in_answer).sum(1) / in_answer.sum(1)


def negative_log_odds(logits: Tensor, targets: Tensor, in_answer: Tensor) -> Tensor:
    """(n,): log(1 - P) - log P, where P is the probability of the whole answer.

    For an answer of one token it is the logsumexp of the other tokens' logits minus the token's own logit.
    It does not saturate: where P is near 1, the gradient of -log P vanishes and this one does not.
    Each token counts by its share of 1 - P: the tokens that the model is least sure of count most.

    Args:
        logits, targets, in_answer: As in `mean_negative_log_probabilities`.
    """
    own = logits.gather(-1, targets[..., None])
    others = logits.scatter(-1, targets[..., None], -torch.inf)
    # -log p = softplus(log(1 - p) - log p) is exact where p rounds to 1.
    minus_log = (F.softplus(others.logsumexp(-1) - own[..., 0]) * in_answer).double().sum(1)
    return (torch.log(-torch.expm1(-minus_log)) + minus_log).float()


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "log_probability": mean_negative_log_probabilities,
    "margin": negative_log_odds,
}


def answer_losses(model: Vlm, dialogues: Dialogues, loss: str) -> Tensor:
    """(n,) losses of the right answers; an answer ends with the end marker.

    Args:
        loss: A key of `LOSSES`.
    """
    pairs = dialogues.pairs
    asked = Questions(dialogues.questions, tuple((image,) for image in pairs.images))
    prompts, answered = model.inputs(asked), model.inputs(asked, pairs.captions)
    lengths = answered["attention_mask"].sum(1) - prompts["attention_mask"].sum(1)
    logits = model.model(**answered).logits[:, :-1].float()
    targets = answered["input_ids"][:, 1:]
    from_end = torch.arange(targets.shape[1], device=targets.device).flip(0)  # padding is on the left
    return LOSSES[loss](logits, targets, from_end[None] < lengths[:, None])


def answer_gradient_sum(
    model: Vlm, dialogues: Dialogues, *, loss: str, batch_size: int, seed: int, run: Run
) -> GradientSum:
    """The gradient of the answer loss with respect to the CLIP of the vision tower, summed over dialogues.

    Args:
        loss: The loss of one answer, a key of `LOSSES`.
        batch_size: Number of dialogues per batch. It changes the result by rounding only.
        seed: Seed for the order of the dialogues.
        run: Shows the progress.

    Returns:
        The sum, by the parameter names of the CLIP, as fp32 on the CPU; and the number of dialogues. Weights
        that the model does not read have zeros; among them is the whole text tower.

    Raises:
        ValueError: There are no dialogues, or a sum is not finite.
    """
    if not len(dialogues):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    parameters = {name: model.parameters[name] for name in model.tower}
    total = {name: torch.zeros(p.shape, dtype=torch.float32) for name, p in parameters.items()}
    batches = shuffled_batches(len(dialogues), batch_size, seed)
    with _with_gradients(parameters.values()):
        for batch in run.track(batches, "answer gradient", len(dialogues), sizes=map(len, batches)):
            with model.loaded(), torch.enable_grad():
                answer_losses(model, dialogues.select(batch), loss).sum().backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    total[name] += parameter.grad.float().cpu()
                    parameter.grad = None
    _check_finite(total, "gradient")
    return {"sum": gradients_by_clip(model.clip, total), "n": len(dialogues)}


def answer_moment_sums(
    model: Vlm, dialogues: Dialogues, *, loss: str | None, batch_size: int, run: Run
) -> Sums:
    """The second moments of the weights of the vision tower while the model is asked about images.

    Args:
        loss: None gives the sum of x x^T over the inputs x of each weight. A key of `LOSSES` gives the sum of
            d d^T over the gradients d of this loss of an answer at the outputs of each weight. Both are sums
            over all patches and tokens of the tower, also those that the language model does not read.
        batch_size: Number of dialogues per batch. It changes the result by rounding only.
        run: Shows the progress.

    Returns:
        The sums, by the parameter names of the tower, as fp32 on the CPU. Weights that the model does not
        read have none.

    Raises:
        ValueError: A sum is not finite.

    Source: the factors of K-FAC (arXiv 1503.05671), with the labels of the data.
    """
    weights = _read_matrices(model)
    parameters = {name: model.parameters[name] for name in model.tower} if loss else {}
    sizes = {name: weight.flatten(1).shape[0 if loss else 1] for name, weight in weights.items()}
    sums = {name: torch.zeros(size, size, device=model.device) for name, size in sizes.items()}
    record = (None, adder(sums)) if loss else (adder(sums), None)
    n = len(dialogues)
    batches = [range(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
    what = f"{'output' if loss else 'input'} moments of answers"
    with _with_gradients(parameters.values()), torch.set_grad_enabled(loss is not None):
        for batch in run.track(batches, what, n, sizes=map(len, batches)):
            with model.loaded(), WeightProducts(weights, *record):
                losses = answer_losses(model, dialogues.select(batch), loss or "log_probability")
                if loss:
                    losses.sum().backward()
            for parameter in parameters.values():
                parameter.grad = None
    _check_finite(sums, "output moment" if loss else "input moment")
    return {name: total.cpu() for name, total in sums.items() if total.any()}


def _read_matrices(model: Vlm) -> dict[str, Tensor]:
    """The weight matrices of the vision tower that the model reads and that may be edited."""
    read = {part.name for layer in model.clip.layers("tensor") for part in layer.edited}
    weights = {name: weight for name, weight in model.clip.weights.items() if name in read}
    tower = model.tower
    places = [names.parts_in_target(name, weights[name], tower) for name in matrices(weights)]
    return {place: tower[place] for some in places for place in some}


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise if an entry of a sum is not finite.

    Raises:
        ValueError: Names the tensor.
    """
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"gradient_source=answer: the {what} of {bad[0]} is not finite, in the model's own precision; "
            "take model.dtype=bf16 or fp32, whose range is wider than that of fp16"
        )


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
