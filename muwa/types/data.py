"""Samples and tasks: image-text pairs, labelled images, splits, and the names to forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from muwa.fingerprint import Content, EncodedImage, FileSlice, digest, image_digest, read_image
from muwa.types.short import short_repr

PROMPTS = "prompts"  # the kind of a task that has prompts and no images

# Kinds of broken samples. Counts in messages and reports are by kind.
EMPTY_CAPTION = "empty caption"  # the web's normal state: has a limit of its own, dataset.max_empty
NO_CAPTION = "no caption"  # no file and no field holds one
BAD_CAPTION = "caption that cannot be read"
NO_IMAGE = "no image"
SEVERAL_IMAGES = "several images"  # under one key
REPEATED_FILE = "repeated file"  # two files of one name
BAD_IMAGE = "image that cannot be decoded"
TOO_LARGE = "file that is too large"
DAMAGED_SHARD = "damaged shard"
LOST = "not in its shard"  # though an index or parquet says so
MISSING_FILE = "missing file"
OTHER = "other"


@dataclass(frozen=True)
class Broken:
    """A sample that cannot be used.

    Attributes:
        where: Its shard and key, or its file.
        why: What is wrong with it.
        kind: One of the constants of this module, such as `BAD_IMAGE`.
    """

    where: str
    why: str
    kind: str = OTHER


@dataclass(frozen=True)
class Pairs(Content):
    """Image-text pairs. Gradients are computed on them.

    Attributes:
        keys: A name for each pair, for messages and manifests.
        images: Encoded images (jpg, png or webp), in memory or in their tars.
        captions: One text for each image.
    """

    keys: tuple[str, ...]
    images: tuple[bytes | FileSlice, ...]
    captions: tuple[str, ...]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int]) -> Pairs:
        """The pairs at `indices`, in that order."""
        keys, images, captions = self.keys, self.images, self.captions
        return Pairs(
            tuple(keys[i] for i in indices),
            tuple(images[i] for i in indices),
            tuple(captions[i] for i in indices),
        )

    def with_caption(self, caption: str) -> Pairs:
        """The same images, each with `caption` (SLUG takes the bare name for OpenAI's CLIPs)."""
        return replace(self, captions=(caption,) * len(self))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all images and captions, in order; keys are left out."""
        pairs = zip(self.images, self.captions, strict=True)
        return digest(part for image, caption in pairs for part in (read_image(image), caption))


@dataclass(frozen=True)
class Classes(Content):
    """Labels of a zero-shot classifier.

    Attributes:
        names: The labels.
        templates: Prompts with `{}` for the name. The embedding of a name is the mean over its prompts.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]

    __repr__ = short_repr

    def prompts(self) -> list[str]:
        """All prompts of the first name, then of the second, and so on: `len(names) * len(templates)`."""
        return [template.format(name) for name in self.names for template in self.templates]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of names and templates, in order."""
        return digest([*self.names, "\0", *self.templates])


@dataclass(frozen=True)
class LabelledImages(Content):
    """Images with labels. Accuracies are measured on them.

    Attributes:
        keys: A name for each image, for messages.
        images: Encoded bytes, or a file that is read when the image is needed.
        labels: `labels[i]` is the index in `classes.names` of what image i shows.
        classes: All labels that a classifier chooses from.
    """

    keys: tuple[str, ...]
    images: tuple[EncodedImage, ...]
    labels: tuple[int, ...]
    classes: Classes

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int]) -> LabelledImages:
        """The images at `indices`, in that order."""
        return replace(
            self,
            keys=tuple(self.keys[i] for i in indices),
            images=tuple(self.images[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each image's bytes: the cache key of its pixels and of its embedding."""
        return tuple(map(image_digest, self.images))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of images, labels, names and templates."""
        return digest([*self.digests, *map(str, self.labels), self.classes.fingerprint])


@dataclass(frozen=True)
class PromptRow(Content):
    """A row of a prompt file, and what a task does with it.

    Args:
        text: The prompt.
        concepts: The concepts that it is about; a prompt that is kept may have none.
        role: "forget", "retain", or "earlier" (about a concept that the model has forgotten already).
        seed: The seed that the file gives; None: whoever generates chooses one.
        guidance: The weight of classifier-free guidance that the file gives; None is the model's own.
    """

    text: str
    concepts: tuple[str, ...]
    role: str
    seed: int | None = None
    guidance: float | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all fields."""
        return digest([self.text, *self.concepts, "\0", self.role, repr(self.seed), repr(self.guidance)])


@dataclass(frozen=True)
class Split(Content):
    """Images to measure on, in three sets; for a task of kind "prompts", prompts to generate them from.

    Attributes:
        forget: Images of the names to forget.
        retain: Images of other names of the same kind (other people, other styles).
        utility: Images of another kind (objects, where people are forgotten).
        prompts: Rows of a prompt file. The three sets are empty then.
        earlier: Images of names that the model has forgotten already, for each kind of name a set of its own.
            None of them is in the other sets.
    """

    forget: LabelledImages
    retain: LabelledImages
    utility: LabelledImages
    prompts: tuple[PromptRow, ...] = ()
    earlier: tuple[LabelledImages, ...] = ()

    __repr__ = short_repr

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the three sets, and of the prompts and the earlier names if there are any."""
        sets = [self.forget.fingerprint, self.retain.fingerprint, self.utility.fingerprint]
        earlier = ["earlier", *(one.fingerprint for one in self.earlier)] if self.earlier else []
        return digest([*sets, *(row.fingerprint for row in self.prompts), *earlier])

    @property
    def earlier_names(self) -> list[str]:
        """The names that have earlier images or prompts, each once."""
        images = (one.classes.names[label] for one in self.earlier for label in one.labels)
        rows = (name for row in self.prompts if row.role == "earlier" for name in row.concepts)
        return list(dict.fromkeys((*images, *rows)))


@dataclass(frozen=True)
class Task(Content):
    """The names to forget, the pairs that gradients are computed on, and the images to measure on.

    Attributes:
        kind: "identity", "object", "style", "class" or "prompts".
        names: The names to forget, as `probe.forget.classes` spells them.
        forget: Name -> its forget set.
        retain: The retain set. Every task on the same data shares it, so its gradient is computed once.
        mentions: Indices of the pairs in `retain` whose caption contains a forgotten name; they are left out.
        probe: Images for the layer search.
        eval: Images for the report. No image is both in `probe` and in `eval`, or in one of them and in a
            gradient set.
        broken: Samples that could not be used.
        prompts: Prompts for image generation. Kinds "identity" and "object" have two, with {} for the name:
            one for a name of that kind, one for a name of the utility set. "style" and "class" have one, with
            {style} and {class}. "prompts" has none: its splits have the rows of a file.
        earlier: Names that the model has forgotten already. They are not retained: `mentions` has their pairs
            too, and the splits keep their images apart. A name is listed even if there is nothing to measure
            it on.
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
    earlier: tuple[str, ...] = ()

    __repr__ = short_repr

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all data; broken samples are left out."""
        pairs = [self.forget[name].fingerprint for name in self.names]
        mentions = ",".join(map(str, self.mentions))
        parts = [self.kind, *self.names, *pairs, self.retain.fingerprint, mentions, *self.prompts]
        earlier = ["earlier", *self.earlier] if self.earlier else []
        return digest([*parts, self.probe.fingerprint, self.eval.fingerprint, *earlier])

    def retain_pairs(self) -> Pairs:
        """The retain set without the pairs that mention a forgotten name."""
        mentions = set(self.mentions)
        return self.retain.select([i for i in range(len(self.retain)) if i not in mentions])

    def only(self, name: str) -> Task:
        """The same task for one of its names: the forget set and the forget images of that name alone."""
        label = self.probe.forget.classes.names.index(name)

        def with_images_of_name(split: Split) -> Split:
            indices = [i for i, other in enumerate(split.forget.labels) if other == label]
            rows = tuple(row for row in split.prompts if row.role != "forget" or name in row.concepts)
            return replace(split, forget=split.forget.select(indices), prompts=rows)

        return replace(
            self,
            names=(name,),
            forget={name: self.forget[name]},
            probe=with_images_of_name(self.probe),
            eval=with_images_of_name(self.eval),
        )
