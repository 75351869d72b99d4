"""The captions of one shard, read without its images where that is possible."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from muwa.data import parquet, tars
from muwa.data.shards import CLOSED, IMAGES, is_remote, iter_samples, local_path, no_captions
from muwa.types.data import Broken

NOWHERE = -1  # the first byte of an image whose place is not known
NO_PLACE = (NOWHERE, 0)
BESIDE = {"key", "caption", "status"}  # the columns of img2dataset's parquet that are read, all of them texts


@dataclass
class Captions:
    """The samples of a shard, in order.

    Attributes:
        keys, captions: Of each sample.
        why: Why a sample cannot be used, or None.
        places: Of its image in the tar, or `NO_PLACE`.
        faults: What is wrong with the shard as a whole.
        final: Whether another reading would give the same. A remote shard that broke off may be sound later.
    """

    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    why: list[str | None] = field(default_factory=list)
    places: list[tars.Place] = field(default_factory=list)
    faults: list[Broken] = field(default_factory=list)
    final: bool = True

    def add(self, key: str, caption: str, why: str | None, place: tars.Place) -> None:
        """Add one sample."""
        self.keys.append(key)
        self.captions.append(caption)
        self.why.append(why)
        self.places.append(place)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of keys and captions, in order."""
        pairs = zip(self.keys, self.captions, strict=True)
        rows = (f"{len(key)} {len(caption)} {key}{caption}" for key, caption in pairs)
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def captions_of(url: str) -> Captions:
    """The captions of a shard: by the parquet beside it or a pass over the tar; a remote one is read through.

    Raises:
        OSError: The shard cannot be opened.
        ValueError: None of its samples has a caption. The message lists the kinds of files found.
    """
    if is_remote(url) or not tars.is_plain(local_path(url)):
        return _by_stream(url)
    return _by_parquet(beside(local_path(url))) or by_tar(local_path(url))


def beside(tar: Path) -> Path:
    """Where img2dataset writes the parquet of a tar."""
    return tar.with_suffix(".parquet")


def _by_parquet(path: Path) -> Captions | None:
    """The samples that img2dataset says it downloaded; None if the file is not there or is another one."""
    if not path.is_file():
        return None
    try:
        columns = parquet.rows(f"describe from {parquet.source([path])}")
        if not {name for name, kind, *_ in columns if kind == "VARCHAR"} >= BESIDE:
            return None
        found = parquet.rows(
            f"select key, caption from {parquet.source([path])} "
            "where status = 'success' and key is not null order by file_row_number"
        )
    except parquet.Error:
        return None
    captions = Captions()
    for key, caption in found:
        text = (caption or "").strip()
        captions.add(key, text, None if text else "no caption", NO_PLACE)
    return captions


def by_tar(path: Path) -> Captions:
    """The samples of a local tar: headers and captions are read, images are skipped."""
    captions, last = Captions(), "the start"
    endings: set[str] = set()
    with path.open("rb") as file:
        try:
            for sample in tars.samples(path):
                last = sample.key
                endings |= sample.files.keys()
                _add_sample(captions, sample, file)
        except (tarfile.TarError, EOFError) as error:
            captions.faults.append(Broken(f"{path.name}: after {last}", str(error)))
    if not captions.faults and not tars.is_closed(path):
        captions.faults.append(Broken(f"{path.name}: after {last}", CLOSED))
    if captions.keys and "txt" not in endings:
        raise ValueError(no_captions(str(path), len(captions.keys), endings))
    return captions


def _add_sample(captions: Captions, sample: tars.Sample, file: BinaryIO) -> None:
    images = [place for ending, place in sample.files.items() if ending in IMAGES]
    text = _text(file, sample.files["txt"]) if "txt" in sample.files else ""
    why = None if text else "no caption"
    if len(images) != 1:
        why = "no image" if not images else f"{len(images)} images under one key"
    if sample.repeated:
        why = f"two files .{sample.repeated} under one key"
    captions.add(sample.key, text, why, images[0] if len(images) == 1 else NO_PLACE)


def _text(file: BinaryIO, place: tars.Place) -> str:
    file.seek(place[0])
    return file.read(place[1]).decode("utf-8", "replace").strip()


def _by_stream(url: str) -> Captions:
    """The samples of a remote or compressed shard, which is read through."""
    captions = Captions()
    known: list[Broken] = []
    for key, _, caption in iter_samples(url, known, verify=False):
        captions.add(key, caption, None, NO_PLACE)
    name = url.rsplit("/", 1)[-1]
    for one in known:
        if one.where.startswith(f"{name}: after"):
            captions.faults.append(one)
        else:
            captions.add(one.where.removeprefix(f"{name}:"), "", one.why, NO_PLACE)
    captions.final = not captions.faults
    return captions


def places_of(path: Path) -> Iterator[tuple[str, tars.Place, str]]:
    """(Key, place of its image, caption) of the samples of a local tar, as far as it can be read."""
    with path.open("rb") as file:
        try:
            for sample in tars.samples(path):
                images = [place for ending, place in sample.files.items() if ending in IMAGES]
                if len(images) == 1 and not sample.repeated and "txt" in sample.files:
                    yield sample.key, images[0], _text(file, sample.files["txt"])
        except (tarfile.TarError, EOFError):
            return
