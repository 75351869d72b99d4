"""Write the miniature world to disk, in the formats that real data comes in.

    python -m muwa.miniature.data DIR

    DIR/shards/00000.tar ..    image-text pairs as img2dataset writes them (jpg, txt, json, and a _stats.json a shard):
                               what the miniature CLIP was trained on; forget and retain sets come from here
    DIR/celeba/                CelebA's layout: img_align_celeba/, list_identity_celeba.txt, frequent_celebs.txt
    DIR/objects/               an ImageNet-style folder, one folder a class
    DIR/canvas/                UnlearnCanvas' layout: <Style>/<Class>/1.jpg ..; classes are the shapes, in all colours
    DIR/vqa/                   questions and answers in GQA's and POPE's formats (`muwa.miniature.question_files`)

The pictures under celeba/, objects/, canvas/ and vqa/ are held out: none of them is in a shard.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, get_start_method, set_start_method
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from muwa.miniature import draw, population, question_files

VERSION = "3"  # written to version.txt; raise it when a picture or a caption changes, and old worlds are drawn anew
SHARDS = 12
PER_PERSON, PER_OBJECT = 72, 80  # training pictures
HELD_OUT_PERSON, HELD_OUT_OBJECT = 16, 16
CANVAS_STYLES = (*(style.capitalize() for style in population.STYLES), "Seed_Images")
CANVAS_PICTURES = 20  # of each style and class, as in the benchmark
PARTS = SHARDS + 3 + len(CANVAS_STYLES)
_STYLED, _HATTED = 0.2, 0.2


@dataclass(frozen=True)
class Picture:
    """Number `index` among the pictures of one name; `split` keeps training and held-out pictures apart."""

    name: str
    kind: str  # "face" | "object"
    index: int
    split: int  # 0 training, 1 held out

    def render(self) -> tuple[np.ndarray, str, str | None, bool]:
        """Returns the picture (64, 64, 3) uint8, its caption, its style or None, and whether a hat is worn."""
        names = [p.name for p in population.people()] if self.kind == "face" else list(population.OBJECTS)
        number = names.index(self.name)
        rng = np.random.default_rng([population.SEED, 2, self.split, self.kind == "face", number, self.index])
        hat = self.kind == "face" and rng.random() < _HATTED
        styled = self.split == 0 and rng.random() < _STYLED
        style = str(rng.choice(population.STYLES)) if styled else None
        rgb = draw.face(population.people()[number], rng, hat) if self.kind == "face" else draw.thing(self.name, rng)
        if style:
            rgb = draw.stylise(rgb, style)
        caption = population.caption(self.name, self.kind, style, hat, rng)
        return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8), caption, style, hat


def _jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def training_pictures() -> list[Picture]:
    """Every training picture in shard order: a fixed shuffle of all people and objects."""
    pictures = [Picture(p.name, "face", i, 0) for p in population.people() for i in range(PER_PERSON)]
    pictures += [Picture(name, "object", i, 0) for name in population.OBJECTS for i in range(PER_OBJECT)]
    order = np.random.default_rng([population.SEED, 3]).permutation(len(pictures))
    return [pictures[i] for i in order]


def _write_shard(folder: Path, number: int) -> None:
    """One tar as img2dataset writes it, with its `_stats.json`; each key is shard number + place in the shard."""
    pictures = training_pictures()[number::SHARDS]
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for place, picture in enumerate(pictures):
            rgb, caption, style, hat = picture.render()
            data = _jpeg(rgb)
            key = f"{number:05d}{place:04d}"
            meta = {
                "caption": caption, "url": f"miniature://{key}", "key": key, "status": "success",
                "error_message": None, "width": draw.SIZE, "height": draw.SIZE, "original_width": draw.SIZE,
                "original_height": draw.SIZE, "exif": "{}", "sha256": hashlib.sha256(data).hexdigest(),
                "name": picture.name, "kind": picture.kind, "style": style, "hat": hat,
            }  # fmt: skip
            for ending, content in (("jpg", data), ("json", json.dumps(meta).encode()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    stats = {"count": len(pictures), "successes": len(pictures), "failed_to_download": 0, "failed_to_resize": 0}
    (folder / f"{number:05d}_stats.json").write_text(json.dumps(stats, indent=4))


def _write_celeba(folder: Path) -> None:
    """Held-out faces as CelebA lays them out, numbered from 000001.jpg in a fixed shuffle."""
    (folder / "img_align_celeba").mkdir(parents=True)
    pictures = [Picture(p.name, "face", i, 1) for p in population.people() for i in range(HELD_OUT_PERSON)]
    order = np.random.default_rng([population.SEED, 4]).permutation(len(pictures))
    rows = []
    for number, index in enumerate(order, 1):
        (folder / "img_align_celeba" / f"{number:06d}.jpg").write_bytes(_jpeg(pictures[index].render()[0]))
        rows.append(f"{number:06d}.jpg {pictures[index].name.replace(' ', '_')}")
    (folder / "list_identity_celeba.txt").write_text(
        "\n".join([str(len(rows)), "image_id identity_name", *rows]) + "\n"
    )
    names = "\n".join(p.name.replace(" ", "_") for p in population.people())
    (folder / "frequent_celebs.txt").write_text(names + "\n")


def _write_objects(folder: Path) -> None:
    """Held-out objects, one folder a class, as ImageNet's validation set is usually unpacked."""
    for name in population.OBJECTS:
        (folder / name.replace(" ", "_")).mkdir(parents=True)
        for i in range(HELD_OUT_OBJECT):
            rgb = Picture(name, "object", i, 1).render()[0]
            (folder / name.replace(" ", "_") / f"{i:03d}.jpg").write_bytes(_jpeg(rgb))


def _write_canvas(folder: Path, number: int) -> None:
    """One style of UnlearnCanvas' layout: 20 pictures of each shape, two of each colour."""
    style = CANVAS_STYLES[number]
    for shape in population.SHAPES:
        where = folder / style / shape.capitalize()
        where.mkdir(parents=True)
        for i in range(CANVAS_PICTURES):
            name = f"{population.COLOURS[i % len(population.COLOURS)]} {shape}"
            rng = np.random.default_rng([population.SEED, 6, number, population.OBJECTS.index(name), i])
            rgb = draw.thing(name, rng)
            if style.lower() in population.STYLES:
                rgb = draw.stylise(rgb, style.lower())
            picture = (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
            (where / f"{i + 1}.jpg").write_bytes(_jpeg(picture))


def _write_part(part: tuple[str, Path, int]) -> str:
    kind, folder, number = part
    if kind == "shard":
        _write_shard(folder, number)
    elif kind == "celeba":
        _write_celeba(folder)
    elif kind == "canvas":
        _write_canvas(folder, number)
    elif kind == "vqa":
        question_files.write(folder, _jpeg)
    else:
        _write_objects(folder)
    return kind


def is_written(root: Path) -> bool:
    """Whether a whole world of this version lies at `root`."""
    version = root / "version.txt"
    return version.is_file() and version.read_text() == VERSION


def write(root: Path | str, *, workers: int | None = None) -> Iterator[tuple[int, int]]:
    """Write the whole world under `root`; yields (parts done, parts in all). Nothing appears until all is written.

    Safe to call from several processes at once, and again: a world of this version that is there is left alone.
    """
    root = Path(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{root}.lock"):
        if is_written(root):
            return
        draft = root.with_name(f"{root.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "shards").mkdir(parents=True)
        parts = [("celeba", draft / "celeba", 0), ("objects", draft / "objects", 0), ("vqa", draft / "vqa", 0)]
        parts += [("shard", draft / "shards", i) for i in range(SHARDS)]
        parts += [("canvas", draft / "canvas", i) for i in range(len(CANVAS_STYLES))]
        if get_start_method() not in get_all_start_methods():  # joblib's own: unknown to the processes started here
            set_start_method("spawn", force=True)
        with ProcessPoolExecutor(workers or min(os.cpu_count() or 1, 8), mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(_write_part, parts), 1):
                yield done, len(parts)
        (draft / "version.txt").write_text(VERSION)
        shutil.rmtree(root, ignore_errors=True)
        os.replace(draft, root)


def main() -> None:
    """Command line: write the world to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    for done, total in write(parser.parse_args().root):
        print(f"\r{done}/{total} parts", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
