"""An index of the captions of shards: each shard is read once, then names are found by a query.

A shard's captions are taken from the parquet that img2dataset writes beside it (00000.parquet beside
00000.tar), if it is there; else from one pass over the tar that reads headers and captions and skips images.
They are kept as one parquet per shard, with a JSON beside it that marks it as complete. DuckDB searches all
of them in one query.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muwa.data import parquet, remote, tars
from muwa.data.addresses import is_remote, local_path, shard_name, shown
from muwa.data.grouping import split_name
from muwa.data.samples import fold, match_names
from muwa.data.shard_captions import NO_PLACE, NOWHERE, Captions, beside, captions_of, places_of
from muwa.data.shards import iter_samples
from muwa.drafts import write_text
from muwa.fingerprint import digest, file_digest, stamp
from muwa.runtime.progress import track
from muwa.types.data import DAMAGED_SHARD, Broken

VERSION = "3"  # of the rows and of `fold`; another one makes every index anew


@dataclass(frozen=True)
class IndexedShard:
    """One shard and what its index says of it.

    Args:
        url: The shard.
        caption_key: Where its captions stand (`dataset.caption_key`).
        file: The parquet of its captions: columns key, caption, folded, kind, why, first, size. `kind` and
            `why` say why a sample cannot be used; `first` and `size` are the place of its image in the tar.
        captions: SHA-256 of its keys and captions, in order.
        bytes: The size of a local shard; None for a remote one.
        faults: What is wrong with the shard as a whole.
    """

    url: str
    caption_key: str | None
    file: Path
    captions: str
    bytes: int | None
    faults: tuple[Broken, ...]

    @property
    def name(self) -> str:
        """Its file name, without secrets."""
        return shard_name(self.url)


@dataclass(frozen=True)
class Match:
    """A caption that contains a name.

    Args:
        shard: The position of its shard in the index.
        key, caption: Of the sample.
        place: Of its image in the tar; its first byte is `NOWHERE` if it is not known.
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

    Raises:
        ValueError: An index cannot be read. The message names the file.
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
        columns = "filename, file_row_number, key, caption, first, size"
        rows = self._rows(f"select {columns} from captions where why is null and ({condition})", words)
        positions = {str(shard.file): i for i, shard in enumerate(self.shards)}
        for file, _, key, caption, first, size in sorted(rows, key=lambda row: (positions[row[0]], row[1])):
            match = Match(positions[file], key, caption, (first, size))
            for name, some in spellings.items():
                if match_names(caption, some):
                    found[name].append(match)
        return found

    def count(self) -> tuple[int, list[Broken]]:
        """(The number of captions searched; the samples that cannot be used)."""
        ((searched,),) = self._rows("select count(*) from captions where why is null")
        names = {str(shard.file): shard.name for shard in self.shards}
        columns = "filename, file_row_number, key, why, kind"
        rows = self._rows(f"select {columns} from captions where why is not null")
        return searched, [Broken(f"{names[file]}:{key}", *why) for file, _, key, *why in sorted(rows)]

    def faults(self) -> list[Broken]:
        """What is wrong with shards as a whole."""
        return [fault for shard in self.shards for fault in shard.faults]

    def near(self, words: Sequence[str]) -> dict[str, int]:
        """Word -> the number of captions in which it occurs; words in none are left out."""
        unique = list(dict.fromkeys(words))
        if not unique:
            return {}
        sums = ", ".join(["count(*) filter (contains(folded, ?))"] * len(unique))
        (counts,) = self._rows(
            f"select {sums} from captions where why is null", [f" {word} " for word in unique]
        )
        return {word: count for word, count in zip(unique, counts, strict=True) if count}

    def images(self, matches: Sequence[Match]) -> Iterator[tuple[Match, bytes | None]]:
        """Each match with its encoded image, in order; None if the shard does not hold that caption any more.

        Only these images are read. A remote shard is read through.

        Raises:
            OSError: A remote shard broke off.
        """
        for position, shard in enumerate(self.shards):
            wanted = [match for match in matches if match.shard == position]
            if wanted:
                yield from _images(shard, wanted)

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query over `captions`, the captions of all shards."""
        captions = parquet.source([shard.file for shard in self.shards])
        try:
            return parquet.rows(f"with captions as (from {captions}) {query}", values)
        except parquet.Error as error:
            folder = self.shards[0].file.parent
            raise ValueError(
                f"{folder}: {str(error).splitlines()[0]}; remove the folder, it is made anew"
            ) from error


def index_captions(
    urls: Sequence[str], folder: Path, *, caption_key: str | None, progress: bool
) -> CaptionIndex:
    """The index of some shards. A shard is read only if it is not indexed yet, or changed since.

    A local shard changed if its size or time did; one on a web server, if its length, ETag or time did
    (`muwa.data.remote.identity`). Whether the output of a command changed is not known.

    Args:
        urls: The shards (`muwa.data.shards.expand`).
        folder: Where indices are kept.
        caption_key: Where captions stand (`dataset.caption_key`).

    Raises:
        OSError: A shard cannot be opened.
        ValueError: No sample of a shard has a caption. The message lists the kinds of files found.
    """
    tracked = track(urls, "indexing captions", len(urls), show=progress)
    return CaptionIndex(tuple(_indexed(url, folder, caption_key) for url in tracked))


def _indexed(url: str, folder: Path, caption_key: str | None) -> IndexedShard:
    """The index of one shard, read or made."""
    size = None
    if is_remote(url):
        identity = ["remote", *remote.identity(url)]
    else:
        files = [path for path in (local_path(url), beside(local_path(url))) if path.is_file()]
        identity, size = [str(value) for path in files for value in stamp(path)], files[0].stat().st_size
    parts = [VERSION, repr(caption_key), *identity]
    path = folder / f"{Path(shard_name(url)).stem[:64]}-{digest(parts)[:32]}"
    about, file = path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.parquet")
    record = _record(about, file)
    if record is None:
        folder.mkdir(parents=True, exist_ok=True)
        captions = captions_of(url, caption_key)
        _write(file, captions)
        rows = [[one.where, one.why, one.kind] for one in captions.faults]
        record = {"captions": captions.digest, "faults": rows, "file": file_digest(file)}
        if captions.final:
            write_text(about, json.dumps({**record, "sha256": _checksum(record)}))
    faults = tuple(Broken(*one) for one in record["faults"])
    return IndexedShard(url, caption_key, file, record["captions"], size, faults)


def _record(about: Path, file: Path) -> dict[str, Any] | None:
    """The JSON of a complete index; None if there is none, or one of its two files is damaged."""
    try:
        record = json.loads(about.read_text())
        whole = record.pop("sha256") == _checksum(record) and record["file"] == file_digest(file)
        return record if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, as JSON."""
    return digest([json.dumps(record, sort_keys=True)])


def _write(path: Path, captions: Captions) -> None:
    parquet.write(
        path,
        {
            "key": captions.keys,
            "caption": captions.captions,
            "folded": [f" {fold(caption)} " for caption in captions.captions],
            "kind": [fault and fault[0] for fault in captions.faults_of],
            "why": [fault and fault[1] for fault in captions.faults_of],
            "first": [first for first, _ in captions.places],
            "size": [size for _, size in captions.places],
        },
        integers=("first", "size"),
    )


def _images(shard: IndexedShard, wanted: Sequence[Match]) -> Iterator[tuple[Match, bytes | None]]:
    """The matches of one shard with their images, in order."""
    if is_remote(shard.url) or not tars.is_plain(local_path(shard.url)):
        yield from _streamed(shard, wanted)
        return
    places = [match.place for match in wanted]
    if any(first == NOWHERE for first, _ in places):
        known = _places(shard)
        places = [known.get((match.key, match.caption), match.place) for match in wanted]
    held = [place for place in places if place[0] != NOWHERE]
    images = tars.read(local_path(shard.url), held)
    for match, place in zip(wanted, places, strict=True):
        yield match, next(images) if place[0] != NOWHERE else None


def _streamed(shard: IndexedShard, wanted: Sequence[Match]) -> Iterator[tuple[Match, bytes | None]]:
    """The same for a shard that is read through. A sample with another caption than before is not taken."""
    waiting: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, match in enumerate(wanted):
        waiting[match.key, match.caption].append(i)
    keys = {_first_key(f"{match.key}.") for match in wanted}
    images: dict[int, bytes] = {}
    broken: list[Broken] = []
    samples = iter_samples(
        shard.url,
        broken,
        caption_key=shard.caption_key,
        verify=False,
        wanted=lambda name: _first_key(name) in keys,
    )
    for key, image, caption in samples:
        if waiting.get((key, caption)):
            images[waiting[key, caption].pop(0)] = image
    faults = [one for one in broken if one.kind == DAMAGED_SHARD]
    if faults and len(images) < len(wanted):
        raise OSError(
            f"{shown(shard.url)}: broke off {faults[0].where.partition(': ')[2]} ({faults[0].why}); try again"
        )
    yield from ((match, images.get(i)) for i, match in enumerate(wanted))


def _first_key(name: str) -> str:
    """The path of a file up to the first dot of its name."""
    parts = split_name(name)
    return parts[0] if parts else ""


def _places(shard: IndexedShard) -> dict[tuple[str, str], tars.Place]:
    """(Key, caption) -> the place of the image, for a tar whose captions came from a parquet.

    One pass over the tar, then kept.
    """
    file = shard.file.with_suffix(".places.parquet")
    try:
        rows = parquet.rows(f"select key, caption, first, size from {parquet.source([file])}")
    except parquet.Error:
        found = list(places_of(local_path(shard.url), shard.caption_key))
        rows = [(row.key, row.caption, *(row.image or NO_PLACE)) for row in found]
        names = ("key", "caption", "first", "size")
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        parquet.write(file, columns, integers=("first", "size"))
    return {(key, caption): (first, size) for key, caption, first, size in rows}
