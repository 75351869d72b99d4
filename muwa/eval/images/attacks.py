"""Other ways to ask for the target: how often the model still generates it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from muwa.data.prompts import image_requests
from muwa.eval.base import Measure
from muwa.eval.images.canvas import COUNTED, GONE_AT, hit_rate
from muwa.models.base import Observer
from muwa.models.diffusion.image_classifier import ClassifierLoader, recognised
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.types.data import Task
from muwa.types.image_requests import ImageRequest
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import (
    Count,
    CountOrZero,
    Seed,
    StyleTemplate,
    StyleTemplates,
    Template,
    Templates,
    Text,
)

if TYPE_CHECKING:
    from muwa.models.diffusion.model import Diffusion

CASES: tuple[Callable[[str], str], ...] = (str, str.lower, str.upper)
SECTION = "Attacks"


class PromptAttack(Measure):
    """Generates the target from other prompts or seeds and classifies the images. Lower is better.

    A subclass is a frozen record with the field `classifier`.

    Attributes:
        metric: The metric's name.
        label: The words of its verdict: "Attack (<label>)".
    """

    observes: ClassVar[type[Observer]] = ImageGenerator
    metric: ClassVar[str]
    label: ClassVar[str]
    classifier: ClassifierLoader

    @abstractmethod
    def requests(self, model: Diffusion, task: Task) -> list[ImageRequest]:
        """The images that are asked for."""

    @abstractmethod
    def text(self, task: Task) -> str:
        """How the target is asked for: a clause after "the target is asked for"."""

    def check(self, model: Any, task: Task) -> None:
        """Raise if the classifier cannot be loaded, or has no label for a concept that is asked for."""
        self.classifier(model, task).check(self.requests(model, task))

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        hits = observer.hits(self.requests(observer.model, task), self.classifier(observer.model, task))
        text = (
            f"fraction of images, generated when the target is asked for {self.text(task)}, in which the "
            "classifier's first guess is the target"
        )
        return {self.metric: hit_rate(hits, attack_reading(text, self.label))}


def attack_reading(text: str, label: str) -> Reading:
    """How to read the rate at which an attack brings back the target."""
    return Reading(
        text, better="lower", role="attack", label=label, counted=COUNTED, gone_at=GONE_AT, section=SECTION
    )


@dataclass(frozen=True)
class Reworded(PromptAttack):
    """`attack/reworded`: the target, asked for in other words, lower case and capitals. Lower is better.

    A prompt with the same tokens as an earlier one is left out. CLIP's tokenizers fold case: capitals are no
    attack on them and would only count images twice.

    Args:
        classifier: Loads the classifier.
        templates: Prompts with {} for the name.
        style_templates: For tasks of kind "style" and "class": prompts with {style} and {class}.
        seeds: Images per prompt, with seeds first_seed, first_seed + 1, ...
        first_seed: The first seed.
        cross: For tasks of kind "style" and "class": how many names of the other kind fill the prompts; None
            takes all.
    """

    metric: ClassVar[str] = "attack/reworded"
    label: ClassVar[str] = "in other words"

    classifier: ClassifierLoader
    templates: Templates
    style_templates: StyleTemplates
    seeds: Count
    first_seed: Seed
    cross: CountOrZero | None

    def requests(self, model: Diffusion, task: Task) -> list[ImageRequest]:
        """The images that are asked for."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        every = [
            replace(one, text=case(one.text))
            for template in fitting_templates(task, self.templates, self.style_templates)
            for one in forget_requests(task, template, seeds, self.cross)
            for case in CASES
        ]
        return distinct(model, every)

    def text(self, task: Task) -> str:
        """How the target is asked for."""
        return "in other words"


@dataclass(frozen=True)
class Translated(PromptAttack):
    """`attack/translated`: the target, asked for in other languages, its name unchanged. Lower is better.

    Args:
        templates, style_templates: Language -> prompt, with the fields that `Reworded` has.
        classifier, seeds, first_seed, cross: The same as in `Reworded`.

    Source: multilingual robustness of HUB (arXiv 2410.05664). Differs: fixed templates; names are not
    translated.
    """

    metric: ClassVar[str] = "attack/translated"
    label: ClassVar[str] = "in other languages"

    classifier: ClassifierLoader
    templates: Mapping[str, Template]
    style_templates: Mapping[str, StyleTemplate]
    seeds: Count
    first_seed: Seed
    cross: CountOrZero | None

    def requests(self, model: Diffusion, task: Task) -> list[ImageRequest]:
        """The images that are asked for."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        prompts = self._prompts(task).values()
        every = [one for prompt in prompts for one in forget_requests(task, prompt, seeds, self.cross)]
        return distinct(model, every)

    def text(self, task: Task) -> str:
        """How the target is asked for."""
        return f"in these languages: {', '.join(self._prompts(task))}"

    def _prompts(self, task: Task) -> Mapping[str, str]:
        return self.style_templates if task.kind in ("style", "class") else self.templates


@dataclass(frozen=True)
class ManySeeds(PromptAttack):
    """`attack/seeds`: the task's prompt from many seeds that no other metric uses. Lower is better.

    Args:
        classifier, seeds, first_seed, cross: The same as in `Reworded`.
    """

    metric: ClassVar[str] = "attack/seeds"
    label: ClassVar[str] = "from other seeds"

    classifier: ClassifierLoader
    seeds: Count
    first_seed: Seed
    cross: CountOrZero | None

    def requests(self, model: Diffusion, task: Task) -> list[ImageRequest]:
        """The images that are asked for."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return forget_requests(task, task.prompts[0], seeds, self.cross)

    def text(self, task: Task) -> str:
        """How the target is asked for."""
        return "with seeds that no other metric uses"


@dataclass(frozen=True)
class Arithmetic(Measure):
    """`attack/arithmetic`: images from sums of prompt embeddings. Lower is better.

    No prompt has these embeddings:

        e(name in a context) - e(stand-in in that context) + e(stand-in in the task's prompt)

    Args:
        classifier: Loads the classifier.
        contexts, style_contexts: Prompts, like `templates` and `style_templates` of `Reworded`.
        stand_ins: Kind of task -> a word that takes the place of the name ("someone").
        seeds, first_seed, cross: The same as in `Reworded`.

    Raises:
        ValueError: The pipeline is not Stable Diffusion 1 or 2; a kind has no stand-in; the classifier has no
            label for a name to forget (`check`).

    Source: Petsiuk & Saenko, concept arithmetics. Differs: sums of the UNet's conditioning, not of its
    predictions. The images are not cached.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    classifier: ClassifierLoader
    contexts: Templates
    style_contexts: StyleTemplates
    stand_ins: Mapping[str, Text]
    seeds: Count
    first_seed: Seed
    cross: CountOrZero | None

    def check(self, model: Any, task: Task) -> None:
        """Raise if the pipeline, the stand-ins or the classifier do not fit."""
        check_one_encoder(model, "arithmetic")
        if task.kind not in self.stand_ins:
            raise ValueError(
                f"eval.arithmetic.stand_ins: got words for {', '.join(self.stand_ins)}, want one for "
                f"{task.kind}"
            )
        self.classifier(model, task).check(self._requests(task))

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        model, requests = observer.model, self._requests(task)
        sums = self._sums(model, task, [one.text for one in requests])
        images = generate_embedded(model, requests, sums)
        hits = recognised(images, requests, self.classifier(model, task))
        text = (
            "fraction of images, generated from sums of prompt embeddings, whose first classifier guess is "
            "the target"
        )
        return {"attack/arithmetic": hit_rate(hits, attack_reading(text, "by sums of prompt embeddings"))}

    @property
    def _seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def _contexts(self, task: Task) -> Sequence[str]:
        return fitting_templates(task, self.contexts, self.style_contexts)

    def _requests(self, task: Task) -> list[ImageRequest]:
        every = (forget_requests(task, context, self._seeds, self.cross) for context in self._contexts(task))
        return [one for requests in every for one in requests]

    def _sums(self, model: Diffusion, task: Task, prompts: Sequence[str]) -> Tensor:
        """(n, length, d) fp32: the sum that `Arithmetic` defines, for each of the n prompts."""
        word = self.stand_ins[task.kind]
        in_context, plain = [], []
        for context in self._contexts(task):
            in_context += [text.format(word) for text in open_texts(task, context, self._seeds, self.cross)]
            plain += [
                text.format(word) for text in open_texts(task, task.prompts[0], self._seeds, self.cross)
            ]
        given, away, neutral = (model.embed(texts).float() for texts in (prompts, in_context, plain))
        return given - away + neutral


def forget_requests(task: Task, template: str, seeds: Sequence[int], cross: int | None) -> list[ImageRequest]:
    """The requests for the names to forget, with `template` in place of the task's prompt."""
    asked = replace(task, prompts=(template, *task.prompts[1:]))
    every = image_requests(asked, task.eval, seeds=seeds, retain=0, cross=cross)
    return [one for one in every if one.role == "forget"]


def open_texts(task: Task, template: str, seeds: Sequence[int], cross: int | None) -> list[str]:
    """The texts of `forget_requests` with {} in place of the name."""
    if task.kind not in ("style", "class"):
        return [template for _ in task.names for _ in seeds]
    requests = forget_requests(replace(task, names=("{}",) * len(task.names)), template, seeds, cross)
    return [one.text for one in requests]


def fitting_templates(task: Task, templates: Sequence[str], style_templates: Sequence[str]) -> Sequence[str]:
    """`style_templates` for tasks of kind "style" and "class", `templates` for the others."""
    return style_templates if task.kind in ("style", "class") else templates


def distinct(model: Diffusion, requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """The requests without those that have the tokens and the seed of an earlier one."""
    tokens = model.pipeline.tokenizer([one.text for one in requests], truncation=True)["input_ids"]
    first: dict[tuple[int, ...], ImageRequest] = {}
    for one, ids in zip(requests, tokens, strict=True):
        first.setdefault((one.seed, *ids), one)
    return list(first.values())


def generate_embedded(model: Diffusion, requests: Sequence[ImageRequest], embeddings: Tensor) -> Tensor:
    """Generate from prompt embeddings (n, length, d) and the seeds of `requests`; nothing is cached.

    Returns:
        (n, 3, h, w) uint8 on the CPU.
    """
    prompts, pieces = prompts_of(requests), []
    cast = embeddings.to(model.device, next(model.pipeline.unet.parameters()).dtype)
    for start in range(0, len(prompts), model.batch):
        rows = range(start, min(start + model.batch, len(prompts)))
        pieces.append(model.generate(prompts.select(rows), embeddings=cast[rows.start : rows.stop]))
    return torch.cat(pieces)


def check_one_encoder(model: Diffusion, measure: str) -> None:
    """Raise if the UNet is conditioned on the hidden states of more than one text encoder.

    Args:
        measure: Its name in the config, for the message.

    Raises:
        ValueError: Says how to leave the measure out.
    """
    if getattr(model.pipeline, "text_encoder_2", None) is not None:
        raise ValueError(
            f"eval.{measure}: {model.source} has two text encoders, want Stable Diffusion 1 or 2; leave it "
            f"out: ~eval.{measure}"
        )
