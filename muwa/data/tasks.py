"""From a data set and a name to a task: the pairs that give gradients and two disjoint sets of pictures to judge on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from muwa.data.celeba import CelebA, read_celeba
from muwa.data.curate import Curated, curate, load_forget, mentions
from muwa.data.imagenet import read_folder, verified
from muwa.data.samples import check_broken, find_name, fold
from muwa.data.shards import read_pairs
from muwa.types.data import Broken, Classes, LabelledImages, Pairs, Split, Task


@dataclass(frozen=True)
class Dataset:
    """Where samples come from. Nothing is read before a task asks for it.

    Args:
        name: For messages and reports.
        shards: Tars that forget sets are curated from (brace patterns, URLs, lists).
        retain: Tars of the retain set.
        curated: Folder that curated forget sets are written to and read from.
        forget: A folder written by an earlier `stages=[curate]`, used as it is, without scanning any shard; or None.
        celeba: Folder in CelebA's layout.
        identities, frequent: Its identity and frequency files, when they are not where CelebA has them.
        images: ImageNet-style folder, one folder a class.
        canvas: UnlearnCanvas-like folder, one folder a style with one folder a class in it; or None.
        utility: Share of the unrelated pictures to report on, in (0, 1): 0.05 of ImageNet's 50,000 is the paper's 2,500.
        utility_probe: Share of them for the search; disjoint from the former.
        max_broken: Share of broken samples that stops a run, in [0, 1].
    """

    shards: str | Sequence[str]
    retain: str | Sequence[str]
    curated: str
    celeba: str
    images: str
    name: str = ""
    forget: str | None = None
    canvas: str | None = None
    identities: str | None = None
    frequent: str | None = None
    utility: float = 0.05
    utility_probe: float = 0.01
    max_broken: float = 0.01

    @property
    def utility_taken(self) -> float:
        """Share of the unrelated pictures that are used at all."""
        return min(1.0, self.utility + self.utility_probe)


@dataclass(frozen=True)
class Limits:
    """How many samples a task takes. None takes all there are."""

    forget_pairs: int | None = None
    retain_pairs: int | None = None
    probe_share: float = 0.5  # of each name's pictures, in (0, 1); the rest is for eval
    probe_retain: int | None = 1  # probe pictures of each retained name, at most
    eval_retain: int | None = None  # eval pictures of each retained name, at most


NONE: Mapping[str, Any] = MappingProxyType({})


def celeba(
    dataset: Dataset, *, identity: str | Sequence[str], aliases: Mapping[str, Sequence[str]] = NONE, template: str = "{}.",
    utility_templates: str = "simple", bare_captions: bool = False, prompt: str = "a photo of {}",
    utility_prompt: str = "a photo of a {}", limits: Mapping[str, float | None] = NONE, seed: int = 0,
    progress: bool = False,
) -> Task:  # fmt: skip
    """Forget one identity or several: faces named as CelebA names them, everything else judged on `dataset.images`.

    Args:
        identity: A name, or several at once; `_` for a space will do.
        aliases: Name -> other ways captions spell it.
        template: The prompt of a name, with {}: "{}." is the paper's.
        utility_templates: "simple" (open_clip's 7, the paper's choice) or "openai" (80).
        bare_captions: Replace forget captions by the bare name, as the paper does for OpenAI's CLIPs.
        prompt, utility_prompt: How a picture of such a name, and of an unrelated one, is asked for, with {} (of models
            that draw).
        limits: See `Limits`.

    Raises:
        ValueError: An unknown identity (names the nearest), an empty forget set, too few pictures.
        FileNotFoundError: A folder or shard is missing; says what was looked for.
    """
    take = Limits(**limits)  # type: ignore[arg-type]
    people = read_celeba(Path(dataset.celeba), identities=dataset.identities, frequent=dataset.frequent)
    names = list(dict.fromkeys(find_name(name, people.names, f"{dataset.celeba}") for name in _listed(identity)))
    missing = _missing(people, dataset)
    others = [name for name in people.frequent if name not in names]
    classes = Classes(people.names, (template,))
    parts = _named(people.files, classes, names, others, take, seed)
    shown, broken = read_folder(
        Path(dataset.images), templates=templates(utility_templates), fraction=dataset.utility_taken,
        seed=seed, max_broken=dataset.max_broken,
    )  # fmt: skip
    utility = _in_two(shown, dataset, seed)
    found = _task(
        "identity", dataset, names, aliases, parts, utility, take, bare_captions, [*missing, *broken], progress
    )
    return replace(found, prompts=(prompt, utility_prompt))


def objects(
    dataset: Dataset, *, object: str | Sequence[str], aliases: Mapping[str, Sequence[str]] = NONE, template: str = "simple",
    utility_template: str = "{}.", bare_captions: bool = False, prompt: str = "a photo of a {}",
    utility_prompt: str = "a photo of {}", limits: Mapping[str, float | None] = NONE, seed: int = 0,
    progress: bool = False,
) -> Task:  # fmt: skip
    """Forget one object or several: classes of `dataset.images`; utility is naming the people of `dataset.celeba`.

    Args:
        object: A class, or several at once.
        template: "simple", "openai", or one prompt with {}.
        utility_template: The prompt of a person's name, with {}.
        Others: as in `celeba`.

    Raises:
        ValueError, FileNotFoundError: as in `celeba`.
    """
    take = Limits(**limits)  # type: ignore[arg-type]
    shown, broken = read_folder(
        Path(dataset.images), templates=templates(template), fraction=1.0, seed=seed,
        max_broken=dataset.max_broken,
    )  # fmt: skip
    classes = shown.classes
    names = list(dict.fromkeys(find_name(one, classes.names, f"{dataset.images}") for one in _listed(object)))
    files: dict[str, list[bytes | Path]] = {}
    for image, label in zip(shown.images, shown.labels, strict=True):
        files.setdefault(classes.names[label], []).append(image)
    others = [other for other in dict.fromkeys(classes.names) if other not in names]
    parts = _named(files, classes, names, others, take, seed)
    people = read_celeba(Path(dataset.celeba), identities=dataset.identities, frequent=dataset.frequent)
    faces = _pictures(
        people.files, Classes(people.names, (utility_template,)), people.frequent, lambda images, _: images
    )
    count = round(len(faces) * dataset.utility_taken)
    chosen = sorted(np.random.default_rng(seed).permutation(len(faces))[:count].tolist())
    sound, bad = verified(faces.select(chosen))
    check_broken(bad, len(chosen), dataset.max_broken, f"pictures of {dataset.celeba}")
    broken = [*_missing(people, dataset), *broken, *bad]
    utility = _in_two(sound, dataset, seed)
    found = _task("object", dataset, names, aliases, parts, utility, take, bare_captions, broken, progress)
    return replace(found, prompts=(prompt, utility_prompt))


def _missing(people: CelebA, dataset: Dataset) -> list[Broken]:
    """Faces that are listed and not on disk; too many of them stop the run."""
    missing = list(people.broken)
    check_broken(missing, sum(map(len, people.files.values())) + len(missing), dataset.max_broken, dataset.celeba)
    return missing


def templates(which: str) -> tuple[str, ...]:
    """Prompt templates with {}: open_clip's "simple" 7 or "openai" 80, or `which` itself when it holds {}.

    Raises:
        ValueError: It is none of these.
    """
    if "{}" in which:
        return (which,)
    sets = {"simple": SIMPLE_IMAGENET_TEMPLATES, "openai": OPENAI_IMAGENET_TEMPLATES}
    if which not in sets:
        raise ValueError(f"templates: got {which!r}, want simple, openai, or a prompt with {{}} in it")
    return tuple(template("{}") for template in sets[which])


def _listed(names: str | Sequence[str]) -> list[str]:
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise ValueError("task: no name to forget was given")
    return list(dict.fromkeys(listed))


def _shuffled(images: Sequence[bytes | Path], name: str, seed: int) -> list[bytes | Path]:
    """A name's pictures in an order that depends on `seed` and the name only."""
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(images))
    return [images[i] for i in order]


def _pictures(
    files: Mapping[str, Sequence[bytes | Path]], classes: Classes, names: Sequence[str],
    take: Callable[[list[bytes | Path], str], Sequence[bytes | Path]],
) -> LabelledImages:  # fmt: skip
    """`take(pictures of a name, name)` of each of `names`, labelled with its place in `classes`."""
    index = {name: i for i, name in enumerate(classes.names)}
    rows = [(image, index[name]) for name in names for image in take(list(files.get(name, ())), name)]
    keys = tuple(image.name if isinstance(image, Path) else str(i) for i, (image, _) in enumerate(rows))
    return LabelledImages(keys, tuple(image for image, _ in rows), tuple(label for _, label in rows), classes)


def _named(
    files: Mapping[str, Sequence[bytes | Path]], classes: Classes, names: Sequence[str], others: Sequence[str],
    take: Limits, seed: int,
) -> dict[str, LabelledImages]:  # fmt: skip
    """Probe and eval pictures of the forgotten and of the others, no picture in two of them."""
    for name in names:
        if len(files.get(name, ())) < 2:
            raise ValueError(
                f"{name}: {len(files.get(name, ()))} pictures to judge on; at least 2 are needed, one for the search "
                "(probe) and one for the report (eval)"
            )

    def cut(name: str) -> int:
        return min(max(1, round(take.probe_share * len(files[name]))), len(files[name]) - 1)

    def probe(images: list[bytes | Path], name: str) -> list[bytes | Path]:
        return _shuffled(images, name, seed)[: cut(name)] if len(images) > 1 else []

    def rest(images: list[bytes | Path], name: str) -> list[bytes | Path]:
        return _shuffled(images, name, seed)[cut(name) :] if len(images) > 1 else images

    return {
        "probe_forget": _pictures(files, classes, names, probe),
        "eval_forget": _pictures(files, classes, names, rest),
        "probe_retain": _pictures(files, classes, others, lambda x, name: probe(x, name)[: take.probe_retain]),
        "eval_retain": _pictures(files, classes, others, lambda x, name: rest(x, name)[: take.eval_retain]),
    }


def _in_two(pictures: LabelledImages, dataset: Dataset, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """(probe, eval): unrelated pictures for the search at random by `seed`, and the rest, each in the original order."""
    share = dataset.utility_probe / (dataset.utility + dataset.utility_probe)
    order = np.random.default_rng([seed, 1]).permutation(len(pictures)).tolist()
    cut = round(share * len(pictures))
    return pictures.select(sorted(order[:cut])), pictures.select(sorted(order[cut:]))


def _task(
    kind: str, dataset: Dataset, names: Sequence[str], aliases: Mapping[str, Sequence[str]], parts: Mapping[str, LabelledImages],
    utility: tuple[LabelledImages, LabelledImages], take: Limits, bare: bool, broken: list[Broken], progress: bool,
) -> Task:  # fmt: skip
    """Read the pairs, verify the pictures, and put the task together."""
    sound: dict[str, LabelledImages] = {}
    for key, pictures in parts.items():
        sound[key], bad = verified(pictures)
        check_broken(bad, len(pictures), dataset.max_broken, f"pictures of {key}")
        broken += bad
    forget: dict[str, Pairs] = {}
    if dataset.forget is None:
        found = curate(
            dataset.shards, names, aliases=aliases, out=Path(dataset.curated), limit=take.forget_pairs,
            max_broken=dataset.max_broken, progress=progress,
        )  # fmt: skip
        broken += found.broken
        folders = found.folders
    else:
        folders = {name: Path(dataset.forget) / name.replace(" ", "_") for name in names}
    for name in names:
        pairs = load_forget(folders[name])
        pairs = pairs.select(range(min(len(pairs), take.forget_pairs or len(pairs))))
        forget[name] = pairs.with_caption(name) if bare else pairs
    retain, bad = read_pairs(dataset.retain, limit=take.retain_pairs, max_broken=dataset.max_broken, progress=progress)
    return Task(
        kind=kind, names=tuple(names), forget=forget, retain=retain, mentions=mentions(retain, names, aliases),
        probe=Split(sound["probe_forget"], sound["probe_retain"], utility[0]),
        eval=Split(sound["eval_forget"], sound["eval_retain"], utility[1]), broken=(*broken, *bad),
    )  # fmt: skip


def curate_only(
    dataset: Dataset, names: str | Sequence[str], aliases: Mapping[str, Sequence[str]], limit: int | None, *, progress: bool
) -> Curated:  # fmt: skip
    """The `curate` stage by itself: needs the shards and nothing else. Names are folders as typed."""
    wanted = list({fold(name): name.replace("_", " ") for name in _listed(names)}.values())
    return curate(
        dataset.shards, wanted, aliases=aliases, out=Path(dataset.curated), limit=limit, max_broken=dataset.max_broken,
        progress=progress,
    )  # fmt: skip
