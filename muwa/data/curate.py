"""Build forget sets: the pairs, from shards, whose captions contain a name, as a tar with a manifest.

The captions of each shard are indexed once (`muwa.data.caption_index`); an interrupted run goes on with the
next shard. The manifest is written last, so a set with a manifest is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from muwa.data.caption_index import CaptionIndex, Match, index_captions
from muwa.data.samples import ShardRules, check_broken, check_samples, decode, fold
from muwa.data.shards import expand, read_pairs, write_shard
from muwa.drafts import write_text
from muwa.fingerprint import image_digest
from muwa.json_files import read_json
from muwa.types.data import BAD_IMAGE, LOST, Broken, Pairs
from muwa.types.ranges import Aliases

SCHEMA = 2
INDEX = ".index"  # the folder of caption indices in the folder of forget sets
SHOWN = 10  # captions of each name in a preview


@dataclass(frozen=True)
class Curated:
    """The result of `curate`.

    Attributes:
        folders: Name -> the folder with its `forget.tar` and `manifest.json`.
        counts: Name -> number of pairs in its set.
        scanned: Number of captions searched.
        broken: Samples that could not be used.
    """

    folders: Mapping[str, Path]
    counts: Mapping[str, int]
    scanned: int
    broken: tuple[Broken, ...]


@dataclass(frozen=True)
class Preview:
    """What `curate` would find for one name.

    Attributes:
        pairs: The number of captions that contain it.
        shards: The number of shards that they are in.
        captions: The first of them.
        near: If there is none: single words of the name -> the number of captions in which they occur.
    """

    pairs: int
    shards: int
    captions: tuple[str, ...]
    near: Mapping[str, int]


def curate(
    shards: str | Sequence[str],
    names: Sequence[str],
    *,
    aliases: Aliases,
    out: Path,
    limit: int | None,
    rules: ShardRules,
    progress: bool,
) -> Curated:
    """Write `out/<Name>/forget.tar` and `manifest.json` for each name: the pairs whose caption contains it.

    A caption contains a name if the name or one of its aliases occurs in it as whole words
    (`muwa.data.samples.fold`). A complete set for the same request is kept.

    Args:
        aliases: Name -> other spellings ("K. Lindqvar").
        limit: Keep at most this many pairs per name, the first ones; None: no limit.
        rules: Where captions stand; and the largest accepted share of empty captions, of broken samples, of
            broken shards, and of the pairs of a name that are not found again in their shards.

    Raises:
        ValueError: A name occurs in no caption (the message says how many were searched), or cannot be a
            folder's name; or too much is broken.
        FileNotFoundError, OSError: A shard is missing or cannot be opened.
    """
    urls, names = expand(shards), list(dict.fromkeys(names))
    _check(names, limit)
    folders = {name: out / name.replace(" ", "_") for name in names}
    with _locked(out):
        index = _index(urls, out, rules.caption_key, progress)
        requests = {name: _request(name, aliases, limit, index) for name in names}
        todo = [name for name in names if not _is_done(folders[name], requests[name])]
        if todo:
            check_broken(index.faults(), len(urls), rules.max_broken, f"shards searched for {todo[0]}")
            counted = index.count()
            matches = index.matches({name: requests[name]["spellings"] for name in todo})
            for name in todo:
                _write_set(index, counted, requests[name], matches[name], folders[name], rules)
    manifests = {name: read_manifest(folders[name]) for name in names}
    counts = {name: len(manifest["matches"]) for name, manifest in manifests.items()}
    broken = {Broken(**row): None for one in manifests.values() for row in one["broken"]}
    return Curated(folders, counts, manifests[names[0]]["scanned"], tuple(broken))


def preview(
    shards: str | Sequence[str],
    names: Sequence[str],
    *,
    aliases: Aliases,
    out: Path,
    caption_key: str | None,
    progress: bool,
) -> dict[str, Preview]:
    """Name -> what `curate` would find. Nothing but the index of the captions is written, under `out`."""
    urls = expand(shards)
    _check(names, None)
    with _locked(out):
        index = _index(urls, out, caption_key, progress)
    spellings = {name: [name, *_aliases_of(name, aliases)] for name in names}
    return {
        name: Preview(
            pairs=len(some),
            shards=len({one.shard for one in some}),
            captions=tuple(one.caption for one in some[:SHOWN]),
            near={} if some else index.near(fold(" ".join(spellings[name])).split()),
        )
        for name, some in index.matches(spellings).items()
    }


def _check(names: Sequence[str], limit: int | None) -> None:
    """Raise ValueError if there is no name, a name cannot be a folder's, or the limit is below 1."""
    if not names:
        raise ValueError("task: no name to forget was given")
    for name in names:
        if not fold(name) or "/" in name or "\\" in name or name.startswith("."):
            raise ValueError(
                f"task: cannot take {name!r} as a name: want letters or digits, no / or \\, and no dot at "
                "its start, as it is the name of a folder too"
            )
    if limit is not None and limit < 1:
        raise ValueError(f"task.limits.forget_pairs: got {limit}, want at least 1, or null for all pairs")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of a folder of forget sets. A folder that cannot be written needs none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"muwa: waiting for another process that works in {out}", file=sys.stderr)
            lock.acquire()
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _index(urls: Sequence[str], out: Path, caption_key: str | None, progress: bool) -> CaptionIndex:
    """The index of the shards. What is wrong with a shard as a whole is said on stderr."""
    index = index_captions(urls, out / INDEX, caption_key=caption_key, progress=progress)
    for fault in index.faults():
        print(
            f"muwa: {fault.where}: {fault.why}; what follows in this shard is not searched", file=sys.stderr
        )
    return index


def _request(name: str, aliases: Aliases, limit: int | None, index: CaptionIndex) -> dict[str, Any]:
    """What decides the content of a set; the head of its manifest."""
    return {
        "schema": SCHEMA,
        "name": name,
        "spellings": [name, *_aliases_of(name, aliases)],
        "limit": limit,
        "shards": [
            {"shard": shard.name, "captions": shard.captions, "bytes": shard.bytes} for shard in index.shards
        ],
    }


def _aliases_of(name: str, aliases: Aliases) -> list[str]:
    return [
        spelling
        for key, spellings in aliases.items()
        if fold(str(key)) == fold(name)  # a key that looks like a number arrives as one
        for spelling in spellings
    ]


def _write_set(
    index: CaptionIndex,
    counted: tuple[int, list[Broken]],
    request: Mapping[str, Any],
    matches: Sequence[Match],
    folder: Path,
    rules: ShardRules,
) -> None:
    """Write the forget.tar of a name, then its manifest. An earlier set stays until the new one is sound."""
    (scanned, broken), name = counted, request["name"]
    if not matches:
        raise ValueError(_no_match(request, scanned, index))
    samples = _Samples(index, matches, request["limit"])
    draft = folder / "forget.next.tar"
    write_shard(draft, samples)
    broken = [*index.faults(), *broken, *samples.broken]
    try:
        found, searched = (
            len(samples.rows) + len(samples.lost),
            scanned + len(counted[1]) + len(index.faults()),
        )
        check_broken(samples.lost, found, rules.max_broken, f"pairs of {name}")
        check_samples(broken, searched, rules, f"shards of {name}")
        if not samples.rows:
            raise ValueError(f"{name}: none of the {len(matches)} images that name it can be decoded")
    except BaseException:
        draft.unlink()
        raise
    (folder / "manifest.json").unlink(missing_ok=True)
    os.replace(draft, folder / "forget.tar")
    rows = [asdict(one) for one in [*broken, *samples.lost]]
    manifest = {**request, "scanned": scanned, "matches": samples.rows, "broken": rows}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")


class _Samples:
    """The samples of a name, as `write_shard` takes them; what was read is noted on the way.

    Attributes:
        rows: The rows of the manifest: shard, key, SHA-256 of the image, caption.
        broken: Samples whose images cannot be decoded.
        lost: Samples that their shards do not hold, though the index says so.
    """

    def __init__(self, index: CaptionIndex, matches: Sequence[Match], limit: int | None):
        self.rows: list[dict[str, str]] = []
        self.broken: list[Broken] = []
        self.lost: list[Broken] = []
        self._index, self._matches, self._limit = index, matches, limit
        stems = [Path(shard.name).stem.replace(".", "_") for shard in index.shards]
        unique = len(set(stems)) == len(stems)
        self._prefixes = [stem if unique else f"{i:05d}" for i, stem in enumerate(stems)]

    def __iter__(self) -> Iterator[tuple[str, bytes, str, dict[str, object]]]:
        taken: set[str] = set()
        for match, image in self._index.images(self._matches):
            if len(self.rows) == self._limit:
                return
            shard = self._index.shards[match.shard].name
            if image is None:
                self.lost.append(Broken(f"{shard}:{match.key}", "not in the shard with this caption", LOST))
                continue
            try:
                decode(image)
            except ValueError as error:
                self.broken.append(Broken(f"{shard}:{match.key}", f"bad image: {error}", BAD_IMAGE))
                continue
            origin = {"shard": shard, "key": match.key, "sha256": hashlib.sha256(image).hexdigest()}
            self.rows.append({**origin, "caption": match.caption})
            key = self._key(match)
            unique = key if key not in taken else f"{key}-again-{len(self.rows)}"
            taken.add(unique)
            yield unique, image, match.caption, dict(origin)

    def _key(self, match: Match) -> str:
        """The key in forget.tar. With several shards it begins with the shard's name."""
        key = match.key.replace(".", "_").replace("/", "_")
        return key if len(self._index.shards) == 1 else f"{self._prefixes[match.shard]}-{key}"


def _no_match(request: Mapping[str, Any], scanned: int, index: CaptionIndex) -> str:
    """The message for a name that occurs in no caption."""
    near = Counter(index.near(fold(" ".join(request["spellings"])).split()))
    words = ", ".join(f"{word!r} in {n}" for word, n in near.most_common(4)) or "none"
    spellings = ", ".join(map(repr, request["spellings"]))
    advice = shlex.quote(f"task.aliases.{request['name']}=[SPELLING]")
    return (
        f"{request['name']}: no caption contains it. Searched {scanned} captions in {len(index.shards)} "
        f"shards for {spellings} as whole words; single words found: {words}. Add other spellings: {advice}"
    )


def _is_done(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether the folder has a complete set for this request."""
    if not (folder / "manifest.json").is_file() or not (folder / "forget.tar").is_file():
        return False
    manifest = read_manifest(folder)
    return all(manifest.get(key) == value for key, value in request.items())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a curated forget set.

    Raises:
        FileNotFoundError: There is none: the folder is not a forget set, or the set is not complete.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no manifest.json in it, so it is not a finished forget set; write one: "
            "python launch.py stages=[curate] task.identity=NAME"
        )
    return read_json(path, dict, "the manifest of a forget set")


def load_forget(folder: Path) -> Pairs:
    """The pairs of a curated forget set, checked against its manifest.

    Raises:
        FileNotFoundError: See `read_manifest`.
        ValueError: The tar's images or captions differ from the manifest's.
    """
    manifest = read_manifest(folder)
    rules = ShardRules("txt", max_broken=0.0, max_empty=0.0)
    pairs, _ = read_pairs(str(folder / "forget.tar"), rules, limit=None, progress=False)
    digests = [image_digest(image) for image in pairs.images]
    found = list(zip(digests, pairs.captions, strict=True))
    wanted = [(row["sha256"], row["caption"]) for row in manifest["matches"]]
    if found != wanted:
        raise ValueError(
            f"{folder}: forget.tar holds {len(found)} pairs that are not the {len(wanted)} of manifest.json; "
            "remove the folder and curate again"
        )
    return pairs


def mentions(pairs: Pairs, names: Sequence[str], aliases: Aliases) -> tuple[int, ...]:
    """Indices of the pairs whose caption contains a name or an alias. They leave the retain set."""
    spellings = [*names, *(spelling for name in names for spelling in _aliases_of(name, aliases))]
    words = [f" {folded} " for folded in map(fold, spellings) if folded]

    def names_someone(caption: str) -> bool:
        padded = f" {fold(caption)} "
        return any(word in padded for word in words)

    return tuple(i for i, caption in enumerate(pairs.captions) if names_someone(caption))
