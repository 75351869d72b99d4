"""Write the miniature to disk in the formats of real data.

    python -m muwa.miniature.data DIR

    DIR/shards/00000.tar ..  image-text pairs as img2dataset writes them: jpg, txt, json, and one _stats.json
                             per shard. The miniature CLIP was trained on them. Forget and retain sets come
                             from them.
    DIR/celeba/              CelebA's layout: img_align_celeba/, list_identity_celeba.txt, frequent_celebs.txt
    DIR/objects/             ImageNet's layout: one folder per class
    DIR/canvas/              UnlearnCanvas' layout: <Style>/<Class>/1.jpg ..; the classes are the shapes
    DIR/vqa/                 questions in GQA's and POPE's formats (`muwa.miniature.question_files`)

The images under celeba/, objects/, canvas/ and vqa/ are held out: no shard contains them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import (
    active_children,
    get_all_start_methods,
    get_context,
    get_start_method,
    resource_tracker,
    set_start_method,
)
from pathlib import Path

from muwa.cli.parser import OneLineParser
from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.miniature.data")  # during the imports below, which take a moment

import numpy as np
from filelock import FileLock

from muwa.drafts import SUFFIX, draft_of, remove
from muwa.miniature import draw, population, question_files
from muwa.miniature.images import NumberedImage, Rendered, canvas_image, jpeg, training_images

VERSION = "3"  # in version.txt; raise it if an image or caption changes, so that everything is drawn again
SHARDS = 12
HELD_OUT_PERSON, HELD_OUT_OBJECT = 16, 16  # held-out images per person and per object
CANVAS_STYLES = (*(style.capitalize() for style in population.STYLES), "Seed_Images")
CANVAS_IMAGES = 20  # per style and class, as in UnlearnCanvas
WORLD_HELP = "a folder that muwa.miniature.data wrote; without it, the images are drawn and deleted again"
Content = Callable[[NumberedImage], bytes]  # what the file of an image holds
PARTS = SHARDS + 3 + len(CANVAS_STYLES)


def _drawn(image: NumberedImage) -> bytes:
    """An image as a JPEG file."""
    return jpeg(image.render().rgb)


def _write_shard(folder: Path, number: int) -> None:
    """Write one tar as img2dataset does, with its `_stats.json`. A key has the shard number and the place."""
    images = training_images()[number::SHARDS]
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for place, image in enumerate(images):
            rendered = image.render()
            data = jpeg(rendered.rgb)
            key = f"{number:05d}{place:04d}"
            meta = json.dumps(_metadata(key, image, rendered, data)).encode()
            for ending, content in (("jpg", data), ("json", meta), ("txt", rendered.caption.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    stats = {"count": len(images), "successes": len(images), "failed_to_download": 0, "failed_to_resize": 0}
    (folder / f"{number:05d}_stats.json").write_text(json.dumps(stats, indent=4))


def _metadata(key: str, image: NumberedImage, rendered: Rendered, data: bytes) -> dict[str, object]:
    """The JSON of a sample: img2dataset's keys, then what the image shows."""
    return {
        "caption": rendered.caption,
        "url": f"miniature://{key}",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": draw.SIZE,
        "height": draw.SIZE,
        "original_width": draw.SIZE,
        "original_height": draw.SIZE,
        "exif": "{}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "name": image.name,
        "kind": image.kind,
        "style": rendered.style,
        "hat": rendered.hat,
    }


def _write_celeba(folder: Path, content: Content) -> None:
    """Write held-out faces in CelebA's layout, numbered from 000001.jpg in a fixed shuffled order."""
    (folder / "img_align_celeba").mkdir(parents=True)
    people = population.people()
    images = [NumberedImage(person.name, "face", i, 1) for person in people for i in range(HELD_OUT_PERSON)]
    order = np.random.default_rng([population.SEED, 4]).permutation(len(images))
    rows = []
    for number, index in enumerate(order, 1):
        image = images[index]
        (folder / "img_align_celeba" / f"{number:06d}.jpg").write_bytes(content(image))
        rows.append(f"{number:06d}.jpg {images[index].name.replace(' ', '_')}")
    lines = [str(len(rows)), "image_id identity_name", *rows]
    (folder / "list_identity_celeba.txt").write_text("\n".join(lines) + "\n")
    names = "\n".join(person.name.replace(" ", "_") for person in people)
    (folder / "frequent_celebs.txt").write_text(names + "\n")


def _write_objects(folder: Path, content: Content) -> None:
    """Write held-out objects, one folder per class, as ImageNet's validation set is usually unpacked."""
    for name in population.OBJECTS:
        where = folder / name.replace(" ", "_")
        where.mkdir(parents=True)
        for i in range(HELD_OUT_OBJECT):
            (where / f"{i:03d}.jpg").write_bytes(content(NumberedImage(name, "object", i, 1)))


def _write_canvas(folder: Path, style: int, *, drawn: bool) -> None:
    """Write one style in UnlearnCanvas' layout: 20 images per shape, two in each colour."""
    for shape in population.SHAPES:
        where = folder / CANVAS_STYLES[style] / shape.capitalize()
        where.mkdir(parents=True)
        for i in range(CANVAS_IMAGES):
            (where / f"{i + 1}.jpg").write_bytes(jpeg(canvas_image(style, shape, i)) if drawn else b"")


def _write_part(part: tuple[str, Path, int]) -> str:
    """Write one of the parts that are drawn in parallel; returns its kind."""
    kind, folder, number = part
    if kind == "shard":
        _write_shard(folder, number)
    elif kind == "celeba":
        _write_celeba(folder, _drawn)
    elif kind == "canvas":
        _write_canvas(folder, number, drawn=True)
    elif kind == "vqa":
        question_files.write(folder)
    else:
        _write_objects(folder, _drawn)
    return kind


def write_outline(root: Path) -> None:
    """Write the folders of the miniature with the names of all files, the images and shards of them empty.

    It takes less than a second. What a task checks before it opens an image can be checked on it.
    """
    (root / "shards").mkdir(parents=True)
    for number in range(SHARDS):
        (root / "shards" / f"{number:05d}.tar").touch()
    _write_celeba(root / "celeba", lambda image: b"")
    _write_objects(root / "objects", lambda image: b"")
    for style in range(len(CANVAS_STYLES)):
        _write_canvas(root / "canvas", style, drawn=False)


def is_written(root: Path) -> bool:
    """Whether `root` holds the complete miniature of this version."""
    version = root / "version.txt"
    return version.is_file() and version.read_text() == VERSION


def write(root: Path | str, *, workers: int | None = None) -> Iterator[tuple[int, int]]:
    """Write the whole miniature to `root`; yields (parts done, all parts).

    Nothing appears at `root` until everything is written. Several processes may call this at once. An
    existing miniature of this version is not written again.

    Args:
        workers: Number of processes that draw; None: one per core, at most 8.
    """
    root = Path(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{root}.lock"):
        if is_written(root):
            return
        for left in root.parent.glob(f"{root.name}.*{SUFFIX}"):
            remove(left)  # of a process that was killed: this one holds the lock
        draft = draft_of(root)
        try:
            yield from _written(draft, workers or min(os.cpu_count() or 1, 8))
            (draft / "version.txt").write_text(VERSION)
            remove(root)
            os.replace(draft, root)
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # there is one only if something failed


def _written(draft: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Write the parts of the miniature; yields (parts done, all parts)."""
    (draft / "shards").mkdir(parents=True)
    parts = [("celeba", draft / "celeba", 0), ("objects", draft / "objects", 0), ("vqa", draft / "vqa", 0)]
    parts += [("shard", draft / "shards", i) for i in range(SHARDS)]
    parts += [("canvas", draft / "canvas", i) for i in range(len(CANVAS_STYLES))]
    if get_start_method() not in get_all_start_methods():  # joblib's own, which new processes do not know
        set_start_method("spawn", force=True)
    resource_tracker.ensure_running()  # at its start it lets in what `deaf_children` holds back
    others = active_children()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            with stopping.deaf_children():
                drawn = pool.map(_write_part, parts)
            for done, _ in enumerate(drawn, 1):
                yield done, len(parts)
        except BaseException:
            for process in active_children():
                if process not in others:
                    process.terminate()
            raise


def main() -> None:
    """Command line: write the miniature to a folder."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    for done, total in write(parser.parse_args().root):
        print(f"\r{done}/{total} parts", end="", flush=True)
    print()


if __name__ == "__main__":
    with stopping.one_line("muwa.miniature.data", "Nothing was written: type the same command again."):
        main()
