"""Samples and tasks: image-text pairs, labelled images, splits, and one request to forget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from muwa.fingerprint import Content, digest, read_image


@dataclass(frozen=True)
class Broken:
    """A sample that could not be used: where it is (shard and key, or file) and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Pairs(Content):
    """Image-text pairs, images still encoded (jpg, png, webp). `keys` name them in messages and manifests."""

    keys: tuple[str, ...]
    images: tuple[bytes, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int]) -> Pairs:
        """The pairs at `indices`, in that order."""
        keys, images, captions = self.keys, self.images, self.captions
        return Pairs(
            tuple(keys[i] for i in indices), tuple(images[i] for i in indices), tuple(captions[i] for i in indices)
        )

    def with_caption(self, caption: str) -> Pairs:
        """The same pictures, every caption replaced (the paper does so with the bare name for OpenAI's CLIPs)."""
        return replace(self, captions=(caption,) * len(self))

    @cached_property
    def fingerprint(self) -> str:
        """Of pictures and captions in order; keys do not enter."""
        return digest([part for pair in zip(self.images, self.captions, strict=True) for part in pair])


@dataclass(frozen=True)
class Classes(Content):
    """The names a zero-shot classifier chooses from, and the templates (with `{}`) that make prompts of a name."""

    names: tuple[str, ...]
    templates: tuple[str, ...]

    def prompts(self) -> list[str]:
        """All prompts, name by name: `len(names) * len(templates)` strings."""
        return [template.format(name) for name in self.names for template in self.templates]

    @cached_property
    def fingerprint(self) -> str:
        """Of names and templates, in order."""
        return digest([*self.names, "\0", *self.templates])


@dataclass(frozen=True)
class LabelledImages(Content):
    """Labelled pictures (encoded bytes, or files read when needed); `labels[i]` is an index into `classes.names`."""

    keys: tuple[str, ...]
    images: tuple[bytes | Path, ...]
    labels: tuple[int, ...]
    classes: Classes

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int]) -> LabelledImages:
        """The pictures at `indices`, in that order."""
        return replace(
            self,
            keys=tuple(self.keys[i] for i in indices),
            images=tuple(self.images[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each picture's bytes: the key of its pixels and of its embedding."""
        return tuple(hashlib.sha256(read_image(image)).hexdigest() for image in self.images)

    @cached_property
    def fingerprint(self) -> str:
        """Of pictures, labels, names and templates."""
        return digest([*self.digests, *map(str, self.labels), self.classes.fingerprint])


@dataclass(frozen=True)
class Split(Content):
    """LabelledImages to judge on: of what is to be forgotten, of what is to be kept nearby, of everything else."""

    forget: LabelledImages
    retain: LabelledImages
    utility: LabelledImages

    @cached_property
    def fingerprint(self) -> str:
        """Of its three parts."""
        return digest([self.forget.fingerprint, self.retain.fingerprint, self.utility.fingerprint])


@dataclass(frozen=True)
class Task(Content):
    """One request to forget: which names, the pairs that give gradients, and two disjoint sets of pictures to judge on.
    `forget` maps each name to its pairs. `retain` is shared by every request on the same data, so that its gradient is
    computed once; `mentions` are the places in `retain` whose caption names something forgotten: they are left out.
    `probe` is what the layer search sees, `eval` is what is reported; no picture is in both, or in a gradient set.
    `prompts` ask for a picture of such a name and of an unrelated one ({}); of a style or class: one, {style} and {class}.
    """

    kind: str
    names: tuple[str, ...]
    forget: Mapping[str, Pairs]
    retain: Pairs
    mentions: tuple[int, ...]
    probe: Split
    eval: Split
    broken: tuple[Broken, ...] = ()
    prompts: tuple[str, ...] = ("a photo of {}", "a photo of a {}")

    @cached_property
    def fingerprint(self) -> str:
        """Of all data; what was broken does not enter."""
        pairs = [self.forget[name].fingerprint for name in self.names]
        mentions = ",".join(map(str, self.mentions))
        parts = [self.kind, *self.names, *pairs, self.retain.fingerprint, mentions, *self.prompts]
        return digest([*parts, self.probe.fingerprint, self.eval.fingerprint])

    def only(self, name: str) -> Task:
        """The same task for one of its names: its pairs, and of the forget pictures only its own."""
        label = self.probe.forget.classes.names.index(name)

        def own(split: Split) -> Split:
            mine = [i for i, other in enumerate(split.forget.labels) if other == label]
            return replace(split, forget=split.forget.select(mine))

        mine = {name: self.forget[name]}
        return replace(self, names=(name,), forget=mine, probe=own(self.probe), eval=own(self.eval))
