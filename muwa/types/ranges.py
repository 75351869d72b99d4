"""Types and ranges of settings, for the annotations of the records and loaders that a config makes.

They are checked when a config is composed (`muwa.settings.composition`). NaN and infinity are never accepted.
Upper ends are far above what anybody uses: they keep float32 from overflowing and counts within 32 bits.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval, MinLen, MultipleOf
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from muwa.weight_files.diagnosis import is_patch


@dataclass(frozen=True)
class FieldsOf:
    """Annotates `**settings` of a function: they are the fields of a class, which it makes.

    Args:
        target: The full name of the class.
    """

    target: str


_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _text(text: str) -> str:
    """Raise if a text is empty or holds a zero byte, which no file name can."""
    if not text.strip() or "\0" in text:
        raise PydanticCustomError("text", "a text that is not empty")
    return text


def _there(source: str) -> str:
    """Raise if a text that can only be a path (/..., ./..., ../..., local-dir:...) leads to nothing.

    Raise too if it leads to a patch, which is no model.
    """
    path = source.removeprefix("local-dir:")
    if (path != source or path.startswith(("/", "./", "../"))) and not Path(path).exists():
        raise PydanticCustomError("there", "a path that leads to a file or folder: nothing is there")
    if is_patch(Path(path)):
        raise PydanticCustomError("model", "a model: this file is a muwa patch, which goes to patches=[FILE]")
    return source


def _not_bool(value: object) -> object:
    """Raise if a value is true or false, which equal 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("whole", "a whole number")
    return value


def _template(text: str) -> str:
    """Raise if a prompt has not `{}`, and nothing else in braces. It is filled by `str.format`."""
    if not {*_fields(text)} or not {*_fields(text)} <= {"", "0"}:
        raise PydanticCustomError("template", "a text with {} in it for the name, and no other braces")
    return text


def _style_template(text: str) -> str:
    """Raise if a prompt has not `{style}` and `{class}`, and nothing else in braces."""
    if {*_fields(text)} != {"style", "class"}:
        raise PydanticCustomError(
            "style_template", "a text with {style} and {class} in it, and no other braces"
        )
    return text


def _templates(text: str) -> str:
    """Raise if a text neither names a set of prompts nor is a prompt."""
    return text if text in ("simple", "openai") else _template(text)


def _fields(text: str) -> list[str]:
    """What stands in each pair of braces; [] too if a brace is not closed, or a format is asked for."""
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError:
        return []
    return [] if any(form or convert for _, _, form, convert in parts) else [str(part[1]) for part in parts]


def _device(name: str) -> str:
    """Raise if a text is not the name of a device that holds weights. Whether it is there, torch knows."""
    kind, _, number = name.partition(":")
    if kind not in _DEVICES or (name != kind and not (number.isdecimal() and len(number) < 4)):
        raise PydanticCustomError("device", "cpu, cuda, cuda:1, ...")
    return name


Share = Annotated[float, Interval(ge=0, le=1)]
PartialShare = Annotated[float, Interval(ge=0, lt=1)]  # 1 would take or accept everything
Rate = Annotated[float, Interval(gt=0, lt=1)]
Positive = Annotated[float, Interval(gt=0, le=1e6)]
NotNegative = Annotated[float, Interval(ge=0, le=1e6)]
Step = Annotated[float, Interval(gt=-1e9, lt=1e9)]  # lambda: times a gradient, it moves a layer
Factor = Annotated[float, Interval(gt=1, le=1e6)]
Scale = Annotated[float, Interval(ge=1, le=1e6)]
LearningRate = Annotated[float, Interval(gt=0, le=100)]
Seconds = Annotated[float, Interval(gt=0, le=1e7)]
Number = Annotated[float, Interval(gt=-1e9, lt=1e9)]

Count = Annotated[int, Interval(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Interval(ge=0, lt=2**31)]
TwoOrMore = Annotated[int, Interval(ge=2, lt=2**31)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
Percent = Annotated[Literal[1, 5, 10, 15], BeforeValidator(_not_bool)]  # of the people of a benchmark
Pixels = Annotated[int, Interval(ge=1, le=16384)]  # the side of an image
LatentPixels = Annotated[int, Interval(ge=8, le=16384), MultipleOf(8)]  # a VAE has one latent for 8 pixels
Fractions = Annotated[Sequence[Positive], MinLen(1)]
JpegQuality = Annotated[int, Interval(ge=1, le=95)]

Text = Annotated[str, AfterValidator(_text)]
Source = Annotated[Text, AfterValidator(_there)]  # of a model: the name of a shipped or public one, or a path
Texts = Annotated[Sequence[Text], MinLen(1)]
TextsByName = Mapping[str, Texts]
Name = Annotated[int, Gt(-1)] | Text  # 2880 is a name, too
Names = Name | Annotated[Sequence[Name], MinLen(1)]
Aliases = Mapping[Name, Sequence[Text]]  # name -> its other spellings
Files = Text | Sequence[Text]  # paths and patterns of paths
Template = Annotated[str, AfterValidator(_template)]
Templates = Annotated[Sequence[Template], MinLen(1)]
StyleTemplate = Annotated[str, AfterValidator(_style_template)]
StyleTemplates = Annotated[Sequence[StyleTemplate], MinLen(1)]
ObjectTemplates = Annotated[str, AfterValidator(_templates)]
Device = Annotated[str, AfterValidator(_device)]

Granularity = Literal["tensor", "qkv", "mlp", "head"]
Loss = Literal["cosine", "contrastive"]
Precision = Literal["fp32", "bf16"]
Dtype = Literal["fp32", "fp16", "bf16"]
Criterion = Literal["top5", "top1"]
StepRule = Literal["constrained", "margin", "paper", "deepest"]
OutputRule = Literal["constrained", "paper", "deepest"]
SelectionRule = Literal["best", "first"]
Start = Literal["clip", "ratio", "gain"]
Tower = Literal["vision", "text"]
Towers = Annotated[Sequence[Tower], MinLen(1)]
