"""What passes between the stages: frozen dataclasses, nothing else. Every stage knows only these and its own arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from muwa.asking import Said
from muwa.content import Content, digest, read_image
from muwa.drawing import Drawn


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
class Pictures(Content):
    """Labelled pictures (encoded bytes, or files read when needed); `labels[i]` is an index into `classes.names`."""

    keys: tuple[str, ...]
    images: tuple[bytes | Path, ...]
    labels: tuple[int, ...]
    classes: Classes

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int]) -> Pictures:
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
    """Pictures to judge on: of what is to be forgotten, of what is to be kept nearby, of everything else."""

    forget: Pictures
    retain: Pictures
    utility: Pictures

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


@dataclass(frozen=True)
class Gradients(Content):
    """Mean gradients of both losses at the unedited weights: parameter name -> tensor of the parameter's shape.
    Sign: of the loss itself (a step *along* `forget` raises it). `n_*` pairs gave each mean. `origin`: their inputs.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]
    n_forget: int
    n_retain: int
    origin: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Of what they were computed from (gradients are a function of it)."""
        return digest([f"{key}={self.origin[key]}" for key in sorted(self.origin)])


@dataclass(frozen=True)
class Part:
    """A slice of one weight tensor: `length` rows (dim 0) or columns (dim 1) from `start`; the whole when length is 0."""

    name: str
    dim: int = 0
    start: int = 0
    length: int = 0

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """This slice of `weights[name]`: a view, not a copy."""
        tensor = weights[self.name]
        return tensor.narrow(self.dim, self.start, self.length) if self.length else tensor


@dataclass(frozen=True)
class Layer:
    """A candidate to edit. `scored` gives its importance and alignment; `edited` is what moves when it is chosen.

    They differ only for Hugging Face models, where the release scores one of q/k/v (or fc1/fc2) and edits all.
    `depth` is in [0, 1], from the tower's input to its output.
    """

    name: str
    tower: str  # "vision" | "text"
    depth: float
    scored: tuple[Part, ...]
    edited: tuple[Part, ...]


@dataclass(frozen=True)
class LayerScore:
    """importance = |g_f| / |theta| (>= 0); alignment = |cos(g_f, g_r)| in [0, 1]; cosine keeps its sign."""

    importance: float
    alignment: float
    cosine: float
    weight_norm: float
    forget_norm: float
    retain_norm: float
    tower: str


@dataclass(frozen=True)
class Evaluation:
    """One step of a search: what was tried and what it did to the probe pictures (rates in [0, 1])."""

    layer: str
    tower: str
    iteration: int  # 1, 2, ... within its layer
    step: float  # lambda in theta + lambda * g_f
    relative_norm: float  # |lambda * g_f| / |theta| of the edited parts
    forget_top1: float
    forget_top5: float
    forget_cosine: float
    retain_top1: float
    utility_top1: float
    feasible: bool  # the forget accuracy that decides is at or below the target


@dataclass(frozen=True)
class Search:
    """All that a layer search found for one name. `chosen` is an index into `trace`, None when nothing was feasible."""

    concept: str
    rule: str
    granularity: str
    scores: Mapping[str, LayerScore]
    front: tuple[str, ...]
    before: Evaluation
    trace: tuple[Evaluation, ...]
    chosen: int | None
    why: str  # one sentence: why this step, or why none


@dataclass(frozen=True)
class Move:
    """One layer's step for one name, part of an edit."""

    concept: str
    tower: str
    layer: str
    step: float
    relative_norm: float


@dataclass(frozen=True)
class Edit:
    """What to add to the weights: parameter name -> fp32 delta of the parameter's shape; and how it came about."""

    deltas: Mapping[str, Tensor]
    moves: tuple[Move, ...]
    searches: tuple[Search, ...] = ()
    samples: int = 0  # training pairs whose gradient was taken, each counted once a pass


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation: its value, the sample count, a 95 % interval where one is defined, how to read it."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    better: str = "higher"  # "higher" | "lower" | "neither"
    reads: str = ""


@dataclass(frozen=True)
class Report:
    """A finished run: everything `results.json` says (documented in docs/results_schema.md)."""

    name: str
    folder: Path
    objective: float
    before: Mapping[str, Metric]
    after: Mapping[str, Metric]
    edit: Edit
    task: Task
    similarity: Mapping[str, object]
    seconds: Mapping[str, float]
    cache: Mapping[str, str]
    peak_memory_bytes: int
    provenance: Mapping[str, object] = field(default_factory=dict)
    drawn: tuple[Drawn, ...] = ()
    said: tuple[Said, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)  # of the method: seconds, memory, samples, ...
