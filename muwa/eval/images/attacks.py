"""Other ways to ask for what was forgotten, none of which changes a weight: how often it is drawn all the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from muwa.data.prompts import image_requests
from muwa.eval.images.canvas import share
from muwa.models.diffusion.image_generation import ImageClassifier, ImageGenerator, prompts_of, seen
from muwa.models.diffusion.model import Diffusion
from muwa.types.data import Task
from muwa.types.image_requests import ImageRequest
from muwa.types.metric import Metric

CASES: tuple[Callable[[str], str], ...] = (str, str.lower, str.upper)


def reworded(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], templates: Sequence[str],
    style_templates: Sequence[str], seeds: int = 3, first_seed: int = 2000, cross: int | None = 3,
) -> dict[str, Metric]:  # fmt: skip
    """`attack/reworded`: the forgotten, asked for in other words, in lower case and in capitals. Lower is better.

    Args:
        templates: Prompts with {} for the name.
        style_templates: Of kinds "style" and "class": prompts with {style} and {class}.
        seeds: LabelledImages a prompt, from `first_seed` on.
        cross: Of kinds "style" and "class": how many names stand in the other place; None is all.

    A prompt whose tokens are those of an earlier one is left out: CLIP's tokenizers fold case, so that capitals are no
    attack on them and would only count pictures twice.
    """
    wanted = [
        replace(ask, text=case(ask.text))
        for template in _templates(task, templates, style_templates)
        for ask in forgotten(task, template, range(first_seed, first_seed + seeds), cross)
        for case in CASES
    ]
    reads = "share of pictures of the forgotten, asked for in other words, in which the classifier sees it first"
    return {"attack/reworded": _rate(image_generator, distinct(image_generator.model, wanted), classifier, reads)}


def translated(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], templates: Mapping[str, str],
    style_templates: Mapping[str, str], seeds: int = 4, first_seed: int = 2000, cross: int | None = 3,
) -> dict[str, Metric]:  # fmt: skip
    """`attack/translated`: the forgotten, asked for in other languages, its name unchanged. Lower is better.

    Args:
        templates, style_templates, seeds, cross: As of `reworded`; language -> prompt.

    Source: multilingual robustness of HUB (arXiv 2410.05664). Differs: fixed templates; names are not translated.
    """
    chosen = templates if task.kind not in ("style", "class") else style_templates
    pieces = [forgotten(task, text, range(first_seed, first_seed + seeds), cross) for text in chosen.values()]
    reads = f"share of pictures of the forgotten, asked for in {', '.join(chosen)}, that the classifier sees as it"
    wanted = distinct(image_generator.model, [ask for piece in pieces for ask in piece])
    return {"attack/translated": _rate(image_generator, wanted, classifier, reads)}


def many_seeds(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], seeds: int = 50, first_seed: int = 3000,
    cross: int | None = 1,
) -> dict[str, Metric]:  # fmt: skip
    """`attack/seeds`: the task's own prompt from many seeds that no other metric uses. Lower is better."""
    wanted = forgotten(task, task.prompts[0], range(first_seed, first_seed + seeds), cross)
    reads = "share of pictures of the forgotten, from seeds of their own, in which the classifier sees it first"
    return {"attack/seeds": _rate(image_generator, wanted, classifier, reads)}


def arithmetic(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], contexts: Sequence[str],
    style_contexts: Sequence[str], stand_ins: Mapping[str, str], seeds: int = 6, first_seed: int = 4000,
    cross: int | None = 2,
) -> dict[str, Metric]:  # fmt: skip
    """`attack/arithmetic`: drawn from sums of prompt embeddings, none of which is the prompt itself. Lower is better.

        e(target in context) - e(stand-in in context) + e(stand-in in the task's prompt)

    Args:
        contexts, style_contexts: Prompts as of `reworded`.
        stand_ins: Kind of task -> a word that stands where the name does ("a person").
        seeds, first_seed, cross: As of `reworded`.

    Raises:
        ValueError: The pipeline is not of Stable Diffusion 1 or 2.

    Source: Petsiuk & Saenko, concept arithmetics. Differs: sums of what the UNet is told, not of what it predicts. LabelledImages
    are drawn anew each time.
    """
    check_one_encoder(image_generator.model, "arithmetic")
    drawn_from, word = range(first_seed, first_seed + seeds), stand_ins[task.kind]
    wanted: list[ImageRequest] = []
    framed: list[str] = []
    plain: list[str] = []
    for context in _templates(task, contexts, style_contexts):
        wanted += forgotten(task, context, drawn_from, cross)
        framed += [text.format(word) for text in open_texts(task, context, drawn_from, cross)]
        plain += [text.format(word) for text in open_texts(task, task.prompts[0], drawn_from, cross)]
    judge = classifier()
    judge.check(wanted)
    given, away, neutral = (image_generator.model.embed(texts).float() for texts in ([x.text for x in wanted], framed, plain))
    sums = given - away + neutral
    hits = seen(draw_embedded(image_generator.model, wanted, sums), wanted, judge)
    reads = "share of pictures drawn from sums of prompt embeddings in which the classifier sees the forgotten first"
    return {"attack/arithmetic": share(hits, "lower", reads)}


def forgotten(task: Task, template: str, seeds: Sequence[int], cross: int | None) -> list[ImageRequest]:
    """The forgotten, asked for with `template` in place of the task's own prompt."""
    asked = replace(task, prompts=(template, *task.prompts[1:]))
    every = image_requests(asked, task.eval, seeds=seeds, retain=0, cross=cross)
    return [ask for ask in every if ask.role == "forget"]


def open_texts(task: Task, template: str, seeds: Sequence[int], cross: int | None) -> list[str]:
    """The texts of `forgotten` with {} where the name stands."""
    if task.kind not in ("style", "class"):
        return [template for _ in task.names for _ in seeds]
    named = forgotten(replace(task, names=("{}",) * len(task.names)), template, seeds, cross)
    return [ask.text for ask in named]


def distinct(model: Diffusion, wanted: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Those whose tokens and seed no earlier one has."""
    tokens = model.pipeline.tokenizer([ask.text for ask in wanted], truncation=True)["input_ids"]
    first: dict[tuple[int, ...], ImageRequest] = {}
    for ask, ids in zip(wanted, tokens, strict=True):
        first.setdefault((ask.seed, *ids), ask)
    return list(first.values())


def draw_embedded(model: Diffusion, wanted: Sequence[ImageRequest], embeddings: Tensor) -> Tensor:
    """(n, 3, h, w) uint8: drawn from `embeddings` (n, length, d), from the seeds of `wanted`; kept nowhere."""
    prompts, out = prompts_of(wanted), []
    cast = embeddings.to(model.device, next(model.pipeline.unet.parameters()).dtype)
    for start in range(0, len(prompts), model.batch):
        rows = range(start, min(start + model.batch, len(prompts)))
        out.append(model.draw(prompts.select(rows), embeddings=cast[rows.start : rows.stop]))
    return torch.cat(out)


def check_one_encoder(model: Diffusion, what: str) -> None:
    """Refuse a pipeline that is told more than one text encoder's hidden states.

    Raises:
        ValueError: Says how to leave the metric out.
    """
    if getattr(model.pipeline, "text_encoder_2", None) is not None:
        raise ValueError(
            f"eval.{what}: {model.source} has two text encoders, want Stable Diffusion 1 or 2; leave it out: ~eval.{what}"
        )


def _templates(task: Task, templates: Sequence[str], style_templates: Sequence[str]) -> Sequence[str]:
    return style_templates if task.kind in ("style", "class") else templates


def _rate(image_generator: ImageGenerator, wanted: Sequence[ImageRequest], classifier: Callable[[], ImageClassifier], reads: str) -> Metric:
    judge = classifier()
    judge.check(wanted)
    return share(image_generator.hits(wanted, judge), "lower", reads)
