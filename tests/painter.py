"""Fakes: a model that paints its prompt in colours, a classifier of colours, and tasks for both."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace

import tiny
import torch

from muwa.data.samples import match_names
from muwa.fingerprint import digest
from muwa.models.diffusion.image_classifier import ImageClassifier
from muwa.types.data import Classes, LabelledImages, Pairs, Split, Task

CLASSES = ("Ada Fox", "Bo Hill", "Cy Reed", "star", "ring", "heart")
STYLES = ("neon", "sepia", "mosaic")
STEP = 40  # difference between the colour values of two labels


class Painter:
    """A fake pipeline: red encodes the class, green the style.

    `swap(text, seed)` gives another text to paint in place of the prompt, or None.
    """

    batch, source = 7, "the painter"

    def __init__(self, swap: Callable[[str, int], str | None] = lambda text, seed: None):
        self.swap, self.asked = swap, []
        self.pipeline = SimpleNamespace(
            tokenizer=lambda texts, truncation: {"input_ids": [list(text.lower().encode()) for text in texts]}
        )

    def generate(self, prompts):
        rows = []
        for text, seed in zip(prompts.texts, prompts.seeds, strict=True):
            self.asked.append((text, seed))
            shown = self.swap(text, seed) or text
            red, green = (match_names(shown, names)[:1] for names in (CLASSES, STYLES))
            values = [
                STEP * CLASSES.index(red[0]) if red else 250,
                STEP * STYLES.index(green[0]) if green else 250,
            ]
            rows.append(torch.tensor([*values, seed % 256], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))
        return torch.stack(rows)


class Colours(ImageClassifier):
    """Recognises the label whose colour value is nearest to the mean of the image."""

    labels = MappingProxyType({"class": CLASSES, "style": STYLES})

    def logits(self, images, domain):
        mean = images.float().mean((-1, -2))[:, ["class", "style"].index(domain)]
        return -(mean[:, None] - STEP * torch.arange(len(self.labels[domain]))).abs()

    @property
    def fingerprint(self):
        return digest(["colours"])


def images_of(names, *, start=0):
    images = tuple(tiny.png(100 * (start + i)) for i in range(len(names)))
    return LabelledImages(tuple(names), images, tuple(range(len(names))), Classes(tuple(names), ("{}",)))


def _task(kind, name, others, unrelated, prompts):
    pairs = Pairs(("k",), (tiny.png(0),), (name,))
    split = Split(images_of([name]), images_of([name, *others], start=10), images_of(unrelated, start=20))
    return Task(kind, (name,), {name: pairs}, pairs, (), split, split, prompts=prompts)


def identity():
    """Forget Ada Fox; keep two people; three shapes are unrelated."""
    return _task("identity", "Ada Fox", CLASSES[1:3], CLASSES[3:], ("a photo of {}", "a photo of a {}"))


def style():
    """Forget neon; keep two styles; all with three shapes."""
    return _task("style", "neon", STYLES[1:], CLASSES[3:], ("A {class} image in {style} style.",))


def kind_class():
    """Forget star; keep two shapes; all in two styles."""
    return _task("class", "star", CLASSES[4:], STYLES[1:], ("A {class} image in {style} style.",))
