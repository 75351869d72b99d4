"""An index of the captions of shards: each shard is read once, then names are found by a query.

A shard's captions are taken from the parquet that img2dataset writes beside it (00000.parquet beside
00000.tar), if it is there; else from one pass over the tar that reads headers and captions and skips images.
They are kept as one parquet per shard, with a JSON beside it that marks it as complete. DuckDB searches all
of them in one query.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from muwa.data import tars
from muwa.data.samples import fold, match_names
from muwa.data.shards import CLOSED, IMAGES, is_remote, iter_samples, local_path, no_captions
from muwa.fingerprint import digest, stamp
from muwa.runtime.progress import track
from muwa.types.data import Broken

MEMORY = "160MB"  # what DuckDB may use for a query
BESIDE = ("key", "caption", "status")  # the columns of img2dataset's parquet that are read
NOWHERE = -1  # the place of an image that is not known yet


@dataclass(frozen=True)
class IndexedShard:
    """One shard and what its index says of it.

    Args:
        url: The shard.
        file: The parquet of its captions: columns key, caption, folded, fault, first, size. `fault` says why
            a sample cannot be used; `first` and `size` are the place of its image in the tar.
        captions: SHA-256 of its keys and captions, in order.
        faults: What is wrong with the shard as a whole.
    """

    url: str
    file: Path
    captions: str
    faults: tuple[Broken, ...]

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Match:
    """A caption that contains a name.

    Args:
        shard: The position of its shard in the index.
        key, caption: Of the sample.
        place: Of its image in the tar; `NOWHERE` as its first byte if it is not known.
    """

    shard: int
    key: str
    caption: str
    place: tars.Place


@dataclass(frozen=True)
class CaptionIndex:
    """The captions of some shards.

    Args:
        shards: In the order in which their matches are given.
    """

    shards: tuple[IndexedShard, ...]

    def matches(self, spellings: Mapping[str, Sequence[str]]) -> dict[str, list[Match]]:
        """Name -> the captions that contain it (`muwa.data.samples.match_names`), in the order of the shards.

        All names are found in one pass over the captions.

        Args:
            spellings: Name -> its spellings.
        """
        words = sorted({f" {fold(one)} " for some in spellings.values() for one in some if fold(one)})
        found: dict[str, list[Match]] = {name: [] for name in spellings}
        if not words:
            return found
        condition = " or ".join(["contains(folded, ?)"] * len(words))
        rows = self._rows(
            f"select filename, key, caption, first, size from captions where fault is null and ({condition}) "
            "order by filename, file_row_number",
            words,
        )
        positions = {str(shard.file): i for i, shard in enumerate(self.shards)}
        for file, key, caption, first, size in sorted(rows, key=lambda row: positions[row[0]]):
            match = Match(positions[file], key, caption, (first, size))
            for name, some in spellings.items():
                if match_names(caption, some):
                    found[name].append(match)
        return found

    def count(self) -> tuple[int, list[Broken]]:
        """(The number of captions searched; the samples and shards that cannot be used)."""
        (searched,) = self._rows("select count(*) from captions where fault is null")[0]
        names = {str(shard.file): shard.name for shard in self.shards}
        rows = self._rows(
            "select filename, key, fault from captions where fault is not null "
            "order by filename, file_row_number"
        )
        broken = [Broken(f"{names[file]}:{key}", fault) for file, key, fault in rows]
        return searched, [*broken, *(fault for shard in self.shards for fault in shard.faults)]

    def near(self, words: Sequence[str]) -> dict[str, int]:
        """Word -> the number of captions in which it occurs; words in none are left out."""
        rows = {
            word: self._rows("select count(*) from captions where contains(folded, ?)", [f" {word} "])[0][0]
            for word in dict.fromkeys(words)
        }
        return {word: count for word, count in rows.items() if count}

    def images(self, matches: Sequence[Match]) -> Iterator[tuple[Match, bytes | None]]:
        """Each match with its encoded image, in order; None if the shard does not hold it.

        Only these images are read, one shard at a time. A remote shard is read through.
        """
        for position, shard in enumerate(self.shards):
            wanted = [match for match in matches if match.shard == position]
            if wanted:
                images = _images(shard, wanted)
                yield from ((match, images.get(match.key)) for match in wanted)

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query over `captions`, the captions of all shards."""
        files = ", ".join("'" + str(shard.file).replace("'", "''") + "'" for shard in self.shards)
        source = f"read_parquet([{files}], filename = true, file_row_number = true)"
        with duckdb.connect(config={"memory_limit": MEMORY}) as database:
            return database.execute(f"with captions as (from {source}) {query}", list(values)).fetchall()


def index_captions(urls: Sequence[str], folder: Path, *, progress: bool) -> CaptionIndex:
    """The index of some shards. A shard is read only if it is not indexed yet, or changed since.

    Args:
        urls: The shards (`muwa.data.shards.expand`).
        folder: Where indices are kept.

    Raises:
        OSError: A shard cannot be opened.
        ValueError: No sample of a shard has a caption. The message lists the kinds of files found.
    """
    shards = [_indexed(url, folder) for url in track(urls, "indexing captions", len(urls), show=progress)]
    return CaptionIndex(tuple(shards))


def _indexed(url: str, folder: Path) -> IndexedShard:
    """The index of one shard, read or made."""
    beside = _beside(url)
    files = [*([] if is_remote(url) else [local_path(url)]), *([beside] if beside else [])]
    identity = [str(value) for file in files for value in stamp(file)] or ["remote", url]
    path = folder / f"{Path(url.rsplit('/', 1)[-1]).stem[:64]}-{digest(identity)[:32]}"
    about = path.with_name(f"{path.name}.json")
    file = path.with_name(f"{path.name}.parquet")
    if not about.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        captions = _Captions()
        faults: list[Broken] = []
        if beside:
            captions.from_parquet(beside)
        elif not is_remote(url) and tars.is_plain(local_path(url)):
            captions.from_tar(local_path(url), faults)
        else:
            captions.from_stream(url, faults)
        captions.write(file)
        record = {"captions": captions.digest(), "faults": [[one.where, one.why] for one in faults]}
        draft = about.with_name(f"{about.name}.draft")
        draft.write_text(json.dumps(record))
        os.replace(draft, about)
    record = json.loads(about.read_text())
    return IndexedShard(url, file, record["captions"], tuple(Broken(*one) for one in record["faults"]))


def _beside(url: str) -> Path | None:
    """The parquet of img2dataset beside a local tar, if it is there and has the columns `BESIDE`."""
    if is_remote(url) or not (path := local_path(url).with_suffix(".parquet")).is_file():
        return None
    try:
        columns = {row[0] for row in duckdb.execute("describe from read_parquet(?)", [str(path)]).fetchall()}
    except duckdb.Error:
        return None
    return path if columns.issuperset(BESIDE) else None


class _Captions:
    """The rows of one shard's index, as they are read."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._captions: list[str] = []
        self._faults: list[str | None] = []
        self._places: list[tars.Place] = []

    def add(self, key: str, caption: str, fault: str | None, place: tars.Place) -> None:
        """Add one sample."""
        self._keys.append(key)
        self._captions.append(caption)
        self._faults.append(fault)
        self._places.append(place)

    def from_parquet(self, path: Path) -> None:
        """Take the samples that img2dataset downloaded. Their places in the tar are not known yet."""
        query = "select key, caption from read_parquet(?) where status = 'success' order by file_row_number"
        query = query.replace("read_parquet(?)", "read_parquet(?, file_row_number = true)")
        for key, caption in duckdb.execute(query, [str(path)]).fetchall():
            text = (caption or "").strip()
            self.add(str(key), text, None if text else "no caption", (NOWHERE, 0))

    def from_tar(self, path: Path, faults: list[Broken]) -> None:
        """Take the samples of a local tar: headers and captions are read, images are skipped."""
        last, endings, captions = "the start", set[str](), 0
        with path.open("rb") as file:
            try:
                for sample in tars.samples(path):
                    last = sample.key
                    endings |= sample.files.keys()
                    captions += "txt" in sample.files
                    self._add_sample(sample, file)
            except (tarfile.TarError, EOFError, OSError) as error:
                faults.append(Broken(f"{path.name}: after {last}", f"{type(error).__name__}: {error}"))
        if not faults and not tars.is_closed(path):
            faults.append(Broken(f"{path.name}: after {last}", CLOSED))
        if self._keys and not captions:
            raise ValueError(no_captions(str(path), len(self._keys), endings))

    def _add_sample(self, sample: tars.Sample, file: Any) -> None:
        images = [place for ending, place in sample.files.items() if ending in IMAGES]
        text = ""
        if "txt" in sample.files:
            first, size = sample.files["txt"]
            file.seek(first)
            text = file.read(size).decode("utf-8", "replace").strip()
        fault = None if text else "no caption"
        if len(images) != 1:
            fault = "no image" if not images else f"{len(images)} images under one key"
        self.add(sample.key, text, fault, images[0] if len(images) == 1 else (NOWHERE, 0))

    def from_stream(self, url: str, faults: list[Broken]) -> None:
        """Take the samples of a shard that has to be read through: a remote or a compressed one."""
        for key, _, caption in iter_samples(url, faults, verify=False):
            self.add(key, caption, None, (NOWHERE, 0))

    def digest(self) -> str:
        """SHA-256 of the keys and captions, in order."""
        total = hashlib.sha256()
        for key, caption in zip(self._keys, self._captions, strict=True):
            total.update(f"{len(key)} {len(caption)} {key}{caption}".encode())
        return total.hexdigest()

    def write(self, path: Path) -> None:
        """Write the rows as parquet; the file appears when it is complete."""
        rows = {
            "key": np.array(self._keys, dtype=object),
            "caption": np.array(self._captions, dtype=object),
            "folded": np.array([f" {fold(caption)} " for caption in self._captions], dtype=object),
            "fault": np.array(self._faults, dtype=object),
            "first": np.array([first for first, _ in self._places], dtype=np.int64),
            "size": np.array([size for _, size in self._places], dtype=np.int64),
        }
        _write_parquet(path, rows)


def _write_parquet(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    draft = path.with_name(f"{path.name}.draft")
    types = {"first": "bigint", "size": "bigint"}
    columns = ", ".join(f"{name}::{types.get(name, 'varchar')} as {name}" for name in rows)
    with duckdb.connect() as database:
        database.register("rows", dict(rows))
        target = str(draft).replace("'", "''")
        database.execute(
            f"copy (select {columns} from rows) to '{target}' (format parquet, compression zstd)"
        )
    os.replace(draft, path)


def _images(shard: IndexedShard, wanted: Sequence[Match]) -> dict[str, bytes]:
    """Key -> encoded image, of those that the shard holds."""
    keys = {match.key for match in wanted}
    if is_remote(shard.url) or not tars.is_plain(local_path(shard.url)):
        found = ((key, image) for key, image, _ in iter_samples(shard.url, [], verify=False))
        return {key: image for key, image in found if key in keys}
    places = {match.key: match.place for match in wanted if match.place[0] != NOWHERE}
    if missing := keys - places.keys():
        places |= {key: place for key, place in _places(shard).items() if key in missing}
    return dict(tars.read(local_path(shard.url), places))


def _places(shard: IndexedShard) -> dict[str, tars.Place]:
    """Key -> the place of its image, for a tar whose captions came from a parquet. One pass, then kept."""
    file = shard.file.with_suffix(".places.parquet")
    if not file.is_file():
        found: dict[str, tars.Place] = {}
        for sample in tars.samples(local_path(shard.url)):
            images = [place for ending, place in sample.files.items() if ending in IMAGES]
            if len(images) == 1:
                found[sample.key] = images[0]
        rows = {
            "key": np.array(list(found), dtype=object),
            "first": np.array([first for first, _ in found.values()], dtype=np.int64),
            "size": np.array([size for _, size in found.values()], dtype=np.int64),
        }
        _write_parquet(file, rows)
    rows_kept = duckdb.execute("select key, first, size from read_parquet(?)", [str(file)]).fetchall()
    return {key: (first, size) for key, first, size in rows_kept}
