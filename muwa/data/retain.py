"""Read the retain set: once for all runs of a process, and in memory only as far as it fits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from muwa.data import tars
from muwa.data.addresses import is_remote, local_path
from muwa.data.samples import ShardRules, check_samples, decode
from muwa.data.shard_captions import by_tar
from muwa.data.shards import expand, read_pairs
from muwa.fingerprint import FileSlice, Stamp, stamp
from muwa.runtime.progress import track
from muwa.types.data import BAD_IMAGE, Broken, Pairs

IN_MEMORY = 2_000_000_000  # bytes of shards; of larger retain sets only keys, captions and places are held


def read_retain(
    urls: str | Sequence[str], rules: ShardRules, *, limit: int | None, progress: bool
) -> tuple[Pairs, list[Broken]]:
    """The pairs of the retain set, as `muwa.data.shards.read_pairs` gives them.

    The last result is kept and returned as long as no shard changed: all runs of a sweep in one process share
    it. Images of shards over `IN_MEMORY` bytes in all stay in their tars and are read when they are needed.
    Remote and compressed shards have no such places: they are held in memory, and remote ones are read again.

    Arguments and errors are those of `read_pairs`.
    """
    shards = expand(urls, "dataset.retain")
    if any(map(is_remote, shards)):
        return read_pairs(shards, rules, limit=limit, progress=progress)
    return _read_local(tuple(stamp(local_path(one)) for one in shards), rules, limit, progress)


@functools.lru_cache(maxsize=1)
def _read_local(
    stamps: tuple[Stamp, ...], rules: ShardRules, limit: int | None, progress: bool
) -> tuple[Pairs, list[Broken]]:
    paths = [Path(name) for name, _, _ in stamps]
    if sum(size for _, size, _ in stamps) > IN_MEMORY and all(map(tars.is_plain, paths)):
        return _read_in_place(paths, rules, limit, progress)
    return read_pairs([str(path) for path in paths], rules, limit=limit, progress=progress)


def _read_in_place(
    paths: Sequence[Path], rules: ShardRules, limit: int | None, progress: bool
) -> tuple[Pairs, list[Broken]]:
    """The pairs with images that stay in their tars. Each is decoded once, to find the broken ones."""
    rows: list[tuple[str, FileSlice, str]] = []
    broken: list[Broken] = []
    for path in track(paths, "reading shards", len(paths), show=progress):
        shard = by_tar(path, rules.caption_key)
        broken += shard.faults
        columns = (shard.keys, shard.captions, shard.faults_of, shard.places)
        for key, caption, fault, place in zip(*columns, strict=True):
            if len(rows) == limit:
                break
            image = FileSlice(path, *place)
            fault = fault or _fault(image)
            if fault:
                broken.append(Broken(f"{path.name}:{key}", fault[1], fault[0]))
            else:
                rows.append((key, image, caption))
    check_samples(broken, len(rows) + len(broken), rules, ", ".join(map(str, paths)))
    keys, images, captions = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(keys, images, captions), broken


def _fault(image: FileSlice) -> tuple[str, str] | None:
    try:
        decode(image)
    except ValueError as error:
        return BAD_IMAGE, f"bad image: {error}"
    return None
