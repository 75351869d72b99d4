"""UnlearnCanvas: one folder a style, in it one folder a class; tasks that forget a style or a class of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from muwa.data.curate import mentions
from muwa.data.imagenet import verified
from muwa.data.samples import check_broken, find_name
from muwa.data.shards import read_pairs
from muwa.data.tasks import NONE, Dataset
from muwa.fingerprint import read_image
from muwa.types.data import Broken, Classes, LabelledImages, Pairs, Split, Task

PHOTOS, PLAIN = "Seed_Images", "photo"  # the folder of pictures without a style, and how prompts call that
PROMPT = "A {class} image in {style} style."
LAYOUT = "<style>/<class>/<picture>.jpg, photographs under Seed_Images/, as UnlearnCanvas lays them out"
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
KINDS = ("style", "class")


@dataclass(frozen=True)
class Canvas:
    """What is there: names as prompts say them ("van gogh"), and the pictures of each (style, class)."""

    styles: tuple[str, ...]
    classes: tuple[str, ...]
    files: Mapping[tuple[str, str], tuple[Path, ...]]


@dataclass(frozen=True)
class CanvasLimits:
    """How many samples a task takes. None takes all there are.

    Args:
        judged: Share of the concept's pictures that it is judged on, half by the search and half by the report; the rest
            gives gradients. In (0, 1).
        probe_retain, eval_retain: LabelledImages of each other name of its kind.
        probe_utility, eval_utility: LabelledImages of each name of the other kind.
    """

    forget_pairs: int | None = None
    retain_pairs: int | None = None
    judged: float = 0.4
    probe_retain: int = 4
    eval_retain: int = 12
    probe_utility: int = 8
    eval_utility: int = 24


def read_canvas(root: Path) -> Canvas:
    """Read the folder's layout; no picture is opened.

    Raises:
        FileNotFoundError: No such folder, or nothing in it: says what was found and the layout.
        ValueError: A style lacks a class that another has.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []
    found: dict[tuple[str, str], tuple[Path, ...]] = {}
    for folder in folders:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            pictures = sorted(
                (p for p in inner.iterdir() if p.suffix.lower() in _ENDINGS), key=lambda p: (len(p.name), p.name)
            )
            if pictures:
                found[_name(folder.name), _name(inner.name)] = tuple(pictures)
    if not found:
        there = sorted(path.name for path in root.iterdir())[:6] if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"dataset.canvas={root}: found {there}; want {LAYOUT}")
    styles = tuple(dict.fromkeys(style for style, _ in found))
    classes = tuple(sorted({one for _, one in found}))
    if missing := [f"{style}/{one}" for style in styles for one in classes if (style, one) not in found]:
        raise ValueError(
            f"dataset.canvas={root}: no pictures in {', '.join(missing[:4])} ({len(missing)} missing); want {LAYOUT}"
        )
    return Canvas(styles, classes, found)


def _name(folder: str) -> str:
    return PLAIN if folder == PHOTOS else folder.replace("_", " ").lower()


def canvas(
    dataset: Dataset, *, concept: str | Sequence[str], style_template: str = "a picture in {} style",
    class_template: str = "a photo of a {}", prompt: str = PROMPT, bare_captions: bool = False,
    limits: Mapping[str, Any] = NONE, seed: int = 0, progress: bool = False,
) -> Task:  # fmt: skip
    """Forget a style or a class of `dataset.canvas`, whichever `concept` is; the other kind is what is to stay as well.

    Args:
        concept: A name, or several of one kind at once.
        style_template, class_template: Zero-shot prompts of a name, with {}.
        prompt: How a picture is asked for, and captioned, with {class} and {style}: UnlearnCanvas' own.
        bare_captions: Replace forget captions by the bare name, as SLUG's release does on this benchmark.
        limits: See `CanvasLimits`.

    Raises:
        ValueError: An unknown name (says the nearest), names of both kinds, no canvas in the data set, too few pictures.
        FileNotFoundError: The folder or a shard is missing.

    Source: UnlearnCanvas (arXiv 2402.11846). Differs: the benchmark's 20 pictures of a style and class all give gradients
    in SLUG's release; here some are kept to judge on.
    """
    if dataset.canvas is None:
        raise ValueError(f"dataset {dataset.name!r} has no canvas: give dataset.canvas=FOLDER; want {LAYOUT}")
    take = CanvasLimits(**limits)
    there = read_canvas(Path(dataset.canvas))
    kind, names = _known(concept, there, dataset.canvas)
    own, other = (there.styles, there.classes) if kind == "style" else (there.classes, there.styles)
    other_kind = KINDS[kind == "style"]
    decks = {name: _deck(there, kind, name, other, seed) for name in own}
    own_classes = Classes(own, (style_template if kind == "style" else class_template,))
    other_classes = Classes(other, (class_template if kind == "style" else style_template,))
    broken: list[Broken] = []

    def sound(rows: list[tuple[Path, str]], classes: Classes) -> LabelledImages:
        labels = tuple(classes.names.index(name) for _, name in rows)
        keys = tuple("/".join(path.parts[-3:]) for path, _ in rows)
        pictures, bad = verified(LabelledImages(keys, tuple(path for path, _ in rows), labels, classes))
        check_broken(bad, len(rows), dataset.max_broken, f"pictures of {dataset.canvas}")
        broken.extend(bad)
        return pictures

    forget, judged = {}, {}
    for name in names:
        count = len(decks[name])
        half = max(1, round(take.judged * count / 2))
        if count < 2 * half + 1:
            raise ValueError(
                f"{name}: {count} pictures in {dataset.canvas}; at least 3 are needed: gradient, search, report"
            )
        # sorted, so that search and report each get every second picture of each name of the other kind
        judged[name] = [(path, name) for path, _ in sorted(decks[name][: 2 * half], key=lambda row: row[1])]
        shown = sound(decks[name][2 * half :][: take.forget_pairs], other_classes)
        pairs = Pairs(shown.keys, tuple(map(read_image, shown.images)), tuple(
            prompt.format(**{kind: name, other_kind: other[label]}) for label in shown.labels
        ))  # fmt: skip
        forget[name] = pairs.with_caption(name) if bare_captions else pairs
    others = [name for name in own if name not in names]
    splits = {}
    for when, place, first, count in (
        ("probe", 0, 0, take.probe_retain),
        ("eval", 1, take.probe_retain, take.eval_retain),
    ):
        mine = [row for name in names for row in judged[name][place::2]]
        retained = [(path, name) for name in others for path, _ in decks[name][first : first + count]]
        splits[when] = Split(
            sound(mine, own_classes), sound(retained, own_classes),
            sound(_unrelated(decks, others, other, take, when), other_classes),
        )  # fmt: skip
    retain, bad = read_pairs(dataset.retain, limit=take.retain_pairs, max_broken=dataset.max_broken, progress=progress)
    return Task(
        kind=kind, names=names, forget=forget, retain=retain, mentions=mentions(retain, names, {}), probe=splits["probe"],
        eval=splits["eval"], broken=(*broken, *bad), prompts=(prompt,),
    )  # fmt: skip


def _known(concept: str | Sequence[str], there: Canvas, where: str) -> tuple[str, tuple[str, ...]]:
    """(kind, names): which kind the concepts are of."""
    asked = [concept] if isinstance(concept, str) else list(concept)
    if not asked:
        raise ValueError("task.concept: no name to forget was given")
    styles = tuple(style for style in there.styles if style != PLAIN)
    names = list(dict.fromkeys(find_name(one, (*styles, *there.classes), where) for one in asked))
    kinds = {"style" if name in styles else "class" for name in names}
    if len(kinds) > 1:
        raise ValueError(
            f"task.concept={names}: styles and classes together; forget them in two runs and add their patches"
        )
    return kinds.pop(), tuple(names)


def _deck(there: Canvas, kind: str, name: str, other: Sequence[str], seed: int) -> list[tuple[Path, str]]:
    """All pictures of a name with their name of the other kind, shuffled by `seed`, going round the other kind.

    Each name goes round in an order of its own: the few pictures taken of each show, together, all of the other kind.
    """

    def shuffled(one: str) -> list[Path]:
        key = (name, one) if kind == "style" else (one, name)
        order = np.random.default_rng([seed, zlib.crc32("/".join(key).encode())]).permutation(len(there.files[key]))
        return [there.files[key][i] for i in order]

    decks = {one: shuffled(one) for one in other}
    longest = max(map(len, decks.values()))
    order = [other[i] for i in np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(other))]
    return [(decks[one][i], one) for i in range(longest) for one in order if i < len(decks[one])]


def _unrelated(
    decks: Mapping[str, list[tuple[Path, str]]],
    others: Sequence[str],
    names: Sequence[str],
    take: CanvasLimits,
    when: str,
) -> list[tuple[Path, str]]:
    """LabelledImages labelled by the other kind, from the ends of the decks of retained names, where no retained picture lies."""

    def rows(wanted: str) -> Iterator[tuple[Path, str]]:
        free = [
            [row for row in decks[name][take.probe_retain + take.eval_retain :] if row[1] == wanted] for name in others
        ]
        for i in range(max(map(len, free), default=0)):
            yield from (mine[i] for mine in free if i < len(mine))

    found = []
    for name in names:
        all_of_it = list(rows(name))
        share = take.probe_utility / (take.probe_utility + take.eval_utility)
        cut = min(take.probe_utility, round(share * len(all_of_it)))
        found += all_of_it[:cut] if when == "probe" else all_of_it[cut : cut + take.eval_utility]
    return found
