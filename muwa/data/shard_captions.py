"""The captions of one shard, read without its images where that is possible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from muwa.data import parquet, tars
from muwa.data.addresses import is_remote, local_path, shard_name
from muwa.data.caption_key import FIELD, Fault, caption_key
from muwa.data.shard_rows import Row, local_rows, stream_rows
from muwa.types.data import DAMAGED_SHARD, EMPTY_CAPTION, Broken

NOWHERE = -1  # the first byte of an image whose place is not known
NO_PLACE = (NOWHERE, 0)
BESIDE = {"key", "caption", "status"}  # the columns of img2dataset's parquet that are read, all of them texts


@dataclass
class Captions:
    """The samples of a shard, in order.

    Attributes:
        keys, captions: Of each sample.
        faults_of: (Kind, why) a sample cannot be used, or None.
        places: Of its image in the tar, or `NO_PLACE`.
        faults: What is wrong with the shard as a whole.
        final: Whether another reading would give the same. A remote shard that broke off may be sound later.
    """

    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    faults_of: list[Fault | None] = field(default_factory=list)
    places: list[tars.Place] = field(default_factory=list)
    faults: list[Broken] = field(default_factory=list)
    final: bool = True

    def add(self, key: str, caption: str, fault: Fault | None, place: tars.Place) -> None:
        """Add one sample."""
        self.keys.append(key)
        self.captions.append(caption)
        self.faults_of.append(fault)
        self.places.append(place)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of keys and captions, in order."""
        pairs = zip(self.keys, self.captions, strict=True)
        rows = (f"{len(key)} {len(caption)} {key}{caption}" for key, caption in pairs)
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def captions_of(url: str, setting: str | None) -> Captions:
    """The captions of a shard: by the parquet beside it or a pass over the tar; a remote one is read through.

    Args:
        setting: Where captions stand (`dataset.caption_key`). The parquet has img2dataset's own captions, so
            it is read only if these are asked for.

    Raises:
        OSError: The shard cannot be opened.
        ValueError: None of its samples has a caption. The message lists the kinds of files found.
    """
    if is_remote(url) or not tars.is_plain(local_path(url)):
        return _by_stream(url, setting)
    key = caption_key(setting)
    found = _by_parquet(beside(local_path(url))) if "txt" in key.endings or key.field == FIELD else None
    return found or by_tar(local_path(url), setting)


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
        captions.add(key, text, None if text else (EMPTY_CAPTION, "empty caption"), NO_PLACE)
    return captions


def by_tar(path: Path, setting: str | None) -> Captions:
    """The samples of a local tar: headers and captions are read, images are skipped."""
    faults: list[str] = []
    captions, last = Captions(), "the start"
    for row in local_rows(path, setting, faults):
        last = row.key
        captions.add(row.key, row.caption, row.fault, row.image or NO_PLACE)
    captions.faults += [Broken(f"{path.name}: after {last}", why, DAMAGED_SHARD) for why in faults]
    return captions


def _by_stream(url: str, setting: str | None) -> Captions:
    """The samples of a remote or compressed shard, which is read through. No image is held."""
    faults: list[str] = []
    captions, last = Captions(), "the start"
    for row in stream_rows(url, setting, faults, lambda name: False):
        last = row.key
        captions.add(row.key, row.caption, row.fault, NO_PLACE)
    captions.faults += [Broken(f"{shard_name(url)}: after {last}", why, DAMAGED_SHARD) for why in faults]
    captions.final = not faults
    return captions


def places_of(path: Path, setting: str | None) -> Iterator[Row[tars.Place]]:
    """The rows of the sound samples of a local tar, as far as it can be read."""
    return (row for row in local_rows(path, setting, []) if row.fault is None)
