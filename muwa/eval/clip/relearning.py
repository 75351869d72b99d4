"""How soon is the target recognised again under fine-tuning on a few of its images, or on related data?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import counts, interval
from muwa.gradients.losses import by_name
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features, Tower, class_features, image_batch, prepared
from muwa.models.clip.model import Clip
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Pairs, Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count, LearningRate, NotNegative, Seed, TwoOrMore


@dataclass(frozen=True)
class Relearning(Measure):
    """`relearn/steps_<shots>`, `relearn/steps_others`: AdamW steps until the target is back.

    Higher is better. All weights are fine-tuned. The target is back at the first step at which at least half
    as many of its eval images are recognised (top 1 among all names) as by the unedited model. If that never
    happens, the value is `steps` and is marked as capped. An unedited model needs 0 steps.

    Two kinds of fine-tuning:

    - shots: on `shots` forget pairs of each name; full-batch if they fit in `batch_size`. The loss is
      mean(1 - cosine).
    - others: on batches of retain pairs that do not mention the target. The loss is CLIP's contrastive loss.

    The interval comes from resampling the eval images; the fine-tuning is not repeated. The interval ends at
    `steps` at most.

    Args:
        shots: Numbers of forget pairs per name, one fine-tuning for each. A name with fewer pairs gives all
            it has.
        others: Whether to fine-tune on retain pairs as well (the second kind above).
        steps: The largest number of steps of one fine-tuning.
        every: Steps between evaluations; each evaluation re-encodes the eval images and all names.
        learning_rate, weight_decay: Settings of AdamW.
        batch_size: Pairs per step, or all pairs if there are fewer.
        seed: Seed for the choice and order of pairs.

    Raises:
        ValueError: Raised by `check`: a setting is out of range, or `others` is set and fewer than two retain
            pairs are left that do not mention the target. Raised by the call: the loss is no longer finite.

    Sources: relearning time as a test of unlearning: Tarun et al. (arXiv 2111.08947); relearning on related
    data: Hu et al. (arXiv 2406.13356). Differs: steps are counted, not epochs.
    """

    observes: ClassVar[type[Observer]] = Features

    shots: Sequence[Count]
    others: bool
    steps: Count
    every: Count
    learning_rate: LearningRate
    weight_decay: NotNegative
    batch_size: TwoOrMore
    seed: Seed

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range, or too few retain pairs are left for `others`."""
        for key, value, least in (
            ("steps", self.steps, 1),
            ("every", self.every, 1),
            ("batch_size", self.batch_size, 2),
            ("shots", min(self.shots, default=1), 1),
        ):
            if value < least:
                raise ValueError(f"eval.relearning.{key}: got {value}, want at least {least}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"eval.relearning.learning_rate: got {self.learning_rate}, want a number above 0"
            )
        n = len(task.retain_pairs())
        if self.others and n < 2:  # a contrastive loss compares pairs
            raise ValueError(
                f"eval.relearning.others: got {n} retain pairs that do not mention the target, want at "
                "least 2; set eval.relearning.others=false"
            )

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        model, run, images = features.model, features.run, task.eval.forget
        known = recognised(Features(model.unedited, run), images)
        trials = {str(shots): (sample_pairs(task, shots, self.seed), "cosine") for shots in self.shots}
        if self.others:
            trials["others"] = (task.retain_pairs(), "contrastive")
        metrics: dict[str, Metric] = {}
        for name, (pairs, loss) in trials.items():
            tuning = TuningSettings(
                loss=loss,
                enough=int(known.sum()),
                steps=self.steps,
                every=self.every,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            hits = run.cached("relearning", relearn, model, pairs, images, tuning, _free={"run": run})
            metrics[f"relearn/steps_{name}"] = steps_until_back(
                hits, known, self.steps, self.every, reading(name, len(pairs), self.steps)
            )
        return metrics


@dataclass(frozen=True)
class TuningSettings:
    """Settings of one fine-tuning.

    Args:
        loss: "cosine" | "contrastive" (`muwa.gradients.losses`).
        enough: Stop early once this many images are recognised. The full number that the unedited model
            recognised (not half of it) is used, so that almost every bootstrap resample reaches its own
            threshold before the stop.
        steps, every, learning_rate, weight_decay, batch_size: The settings of `Relearning`.
        seed: Seed for the order of the pairs.
    """

    loss: str
    enough: int
    steps: int
    every: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int


def relearn(model: Clip, pairs: Pairs, images: LabelledImages, tuning: TuningSettings, *, run: Run) -> Tensor:
    """Fine-tune a copy of `model` on `pairs`, and evaluate it on `images` every few steps.

    Returns:
        (1 + evaluations, images) bool: whether each image's own name ranks first among all names, before the
        first step and at each evaluation.

    Raises:
        ValueError: The loss is no longer finite.
    """
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in model.weights.items()}
    optimiser = torch.optim.AdamW(leaves.values(), lr=tuning.learning_rate, weight_decay=tuning.weight_decay)
    tokens, pixels = model.tokenize(list(pairs.captions)), prepared(model.prepare, images)
    batches = _batches(len(pairs), tuning)
    hits = [_recognised_with(model, leaves, pixels, images)]
    for step in run.track(range(tuning.steps), "relearning", tuning.steps):
        if int(hits[-1].sum()) >= tuning.enough:
            break
        rows = next(batches)
        batch = prepared(model.prepare, _unlabelled(pairs.select(rows)))
        with torch.enable_grad():
            v = model.encode("vision", model.prepare.scale(batch.to(model.device)), leaves)
            t = model.encode("text", tokens[rows], leaves)
            value = by_name(tuning.loss)(v, t, leaves["logit_scale"].exp())
            optimiser.zero_grad(set_to_none=True)
            value.backward()
        if not torch.isfinite(value):
            raise ValueError(
                f"eval.relearning.learning_rate: the loss is {value.item()} at step {step + 1}; use a "
                "lower learning rate"
            )
        optimiser.step()
        if (step + 1) % tuning.every == 0 or step + 1 == tuning.steps:
            hits.append(_recognised_with(model, leaves, pixels, images))
    return torch.stack(hits)


def steps_until_back(hits: Tensor, known: Tensor, cap: int, every: int, reading: Reading) -> Metric:
    """The first step at which at least half as many images are recognised as were `known`, or `cap`.

    Args:
        hits: (1 + evaluations, n) bool of `relearn`, `every` steps apart.
        known: (n,) bool: which images the unedited model recognises.
        cap: The number of steps of the fine-tuning.
        every: Steps between evaluations.

    Returns:
        The metric; n is the number of images. It is capped if the target never came back. If nothing was
        known, nothing can come back: the value is `cap`, capped, without an interval.
    """
    seen, was = hits.double().numpy(), known.double().numpy()
    if not was.sum():
        unknown = replace(reading, text=f"{reading.text}; the unedited model recognised none")
        return Metric(float(cap), len(was), reading=unknown, capped=True)

    def is_back(weights: np.ndarray) -> np.ndarray:
        """(resamples, 1 + evaluations) bool: whether the target is back at each evaluation."""
        return weights @ seen.T >= np.maximum((weights @ was)[:, None] / 2, 1e-9)

    def first_step(back: np.ndarray) -> np.ndarray:
        """(resamples,) the first step at which the target is back."""
        return np.where(back.any(1), np.minimum(back.argmax(1) * every, cap), cap)

    every_image = is_back(np.ones((1, len(was))))
    value, capped = float(first_step(every_image)[0]), not every_image.any()
    return Metric(value, len(was), *interval(first_step(is_back(counts(len(was))))), reading, capped)


def recognised(features: Features, images: LabelledImages) -> Tensor:
    """(n,) bool: whether each image's own name ranks first among all names."""
    labels = torch.tensor(images.labels, dtype=torch.long)
    return top_k(features.images(images), features.classes(images.classes), labels, 1)


def sample_pairs(task: Task, shots: int, seed: int) -> Pairs:
    """`shots` random forget pairs of each name; a smaller sample is a subset of a larger one."""
    parts = []
    for name in task.names:
        pairs = task.forget[name]
        parts.append(pairs.select(np.random.default_rng(seed).permutation(len(pairs))[:shots].tolist()))
    fields = ([x for part in parts for x in getattr(part, field)] for field in ("keys", "images", "captions"))
    keys, images, captions = map(tuple, fields)
    return Pairs(keys, images, captions)


def reading(name: str, n: int, cap: int) -> Reading:
    """How to read `relearn/steps_<name>`, measured on `n` pairs and at most `cap` steps."""
    what = "retain pairs that do not mention the target" if name == "others" else f"{n} forget pairs"
    return Reading(
        f"steps of fine-tuning on {what} until at least half as many held-out images are recognised as by "
        f"the unedited model; > {cap} means not within {cap} steps",
        unit="steps",
        section="Relearning",
    )


def _batches(n: int, tuning: TuningSettings) -> Iterator[list[int]]:
    """Indices of the pairs of each step, in random order; reshuffled once less than a batch is left."""
    rng, order = np.random.default_rng(tuning.seed), np.zeros(0, int)
    while True:
        if len(order) < min(tuning.batch_size, n):
            order = rng.permutation(n)
        batch, order = order[: tuning.batch_size], order[tuning.batch_size :]
        yield batch.tolist()


def _unlabelled(pairs: Pairs) -> LabelledImages:
    """The images of `pairs`, with the placeholder label 0."""
    return LabelledImages(pairs.keys, pairs.images, (0,) * len(pairs), Classes(("",), ("{}",)))


@torch.inference_mode()
def _recognised_with(
    model: Clip, leaves: Mapping[str, Tensor], pixels: Tensor, images: LabelledImages
) -> Tensor:
    """(n,) bool: which of the images `model` recognises with the weights `leaves`.

    Args:
        pixels: (n, 3, h, w) uint8 of `images`.
    """
    tuned = model.with_weights({name: leaf.detach() for name, leaf in leaves.items()})
    batches = (tuned.prepare.scale(batch.to(tuned.device)) for batch in pixels.split(image_batch(tuned)))
    embeddings = torch.cat([tuned.encode("vision", batch).cpu() for batch in batches])
    names = class_features(Tower(tuned, "text"), images.classes, run=Run())
    return top_k(embeddings, names, torch.tensor(images.labels, dtype=torch.long), 1)
