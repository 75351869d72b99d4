"""Build forget sets: the pairs, from shards, whose captions contain a name, as a tar with a manifest.

The matches in a shard are written as soon as it is searched. An interrupted run resumes with the next shard
and writes the same bytes. The manifest is written last, so a set with a manifest is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from muwa.data.samples import check_broken, decode, fold, match_names
from muwa.data.shards import (
    expand,
    is_remote,
    iter_samples,
    local_path,
    read_pairs,
    shard_fingerprint,
    write_shard,
)
from muwa.fingerprint import digest
from muwa.runtime.progress import track
from muwa.types.data import Broken, Pairs

SCHEMA = 1


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


def curate(
    shards: str | Sequence[str],
    names: Sequence[str],
    *,
    aliases: Mapping[str, Sequence[str]],
    out: Path,
    limit: int | None,
    max_broken: float,
    progress: bool,
) -> Curated:
    """Write `out/<Name>/forget.tar` and `manifest.json` for each name: the pairs whose caption contains it.

    A caption contains a name if the name or one of its aliases occurs in it as whole words. Upper and lower
    case are treated alike, and so are `_`, space and punctuation. A complete set is not written again.

    Args:
        aliases: Name -> other spellings ("K. Lindqvar").
        limit: Keep at most this many pairs per name, the first ones; None: no limit.
        max_broken: Largest accepted share of broken samples.

    Raises:
        ValueError: A name occurs in no caption (the message says how many were searched), or too many samples
            are broken.
        FileNotFoundError, OSError: A shard is missing or cannot be opened.
    """
    urls, names = expand(shards), list(dict.fromkeys(names))
    folders = {name: out / name.replace(" ", "_") for name in names}
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        search = _Search(urls, [_identity(out, url) for url in urls], out)
        requests: dict[str, dict[str, Any]] = {
            name: {
                "schema": SCHEMA,
                "name": name,
                "spellings": [name, *_aliases_of(name, aliases)],
                "limit": limit,
                "shards": search.sources,
            }
            for name in names
        }
        todo = [name for name in names if not _is_done(folders[name], requests[name])]
        if todo:
            _scan(search, {name: requests[name]["spellings"] for name in todo}, progress)
        for name in todo:
            _finish(search, requests[name], folders[name], max_broken)
    manifests = {name: read_manifest(folders[name]) for name in names}
    first = manifests[names[0]]
    counts = {name: len(manifest["matches"]) for name, manifest in manifests.items()}
    return Curated(folders, counts, first["scanned"], tuple(Broken(**row) for row in first["broken"]))


@dataclass(frozen=True)
class _Search:
    """The shards to search.

    Args:
        urls: The shards.
        sources: The file name and SHA-256 of each shard.
        out: The folder of the forget sets. The matches in each shard are stored in `out/.progress` until a
            set is complete.
    """

    urls: list[str]
    sources: list[dict[str, str]]
    out: Path

    def part(self, source: Mapping[str, str], spellings: Sequence[str]) -> Path:
        """The path, without suffix, of the matches of one name in one shard."""
        return self.out / ".progress" / digest([source["sha256"], *map(fold, spellings)])[:32]


def _aliases_of(name: str, aliases: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        spelling for key, spellings in aliases.items() if fold(key) == fold(name) for spelling in spellings
    ]


def _identity(out: Path, url: str) -> dict[str, str]:
    """A shard's file name and SHA-256. A local file is hashed again only if its size or time changed."""
    name = url.rsplit("/", 1)[-1]
    if is_remote(url):
        return {"shard": name, "sha256": digest(["remote", url])}
    stat = local_path(url).stat()
    stamp = f"{local_path(url).resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = out / ".progress" / f"sha-{digest([stamp])[:32]}"
    if not kept.is_file():
        _write(kept, shard_fingerprint(url))
    return {"shard": name, "sha256": kept.read_text()}


def _scan(search: _Search, spellings: Mapping[str, Sequence[str]], progress: bool) -> None:
    """Write the matches of each name in each shard as a tar, then a JSON that marks the tar as complete."""
    shards = list(zip(search.urls, search.sources, strict=True))
    for url, source in track(shards, "scanning shards", len(shards), show=progress):
        parts = {name: search.part(source, words) for name, words in spellings.items()}
        missing = {name: part for name, part in parts.items() if not part.with_suffix(".json").is_file()}
        if missing:
            matches = _Matches(source["shard"], {name: spellings[name] for name in missing})
            matches.search(url)
            for name, part in missing.items():
                write_shard(part.with_suffix(".tar"), matches.samples[name])
                _write(part.with_suffix(".json"), json.dumps(matches.record(name)))


class _Matches:
    """The samples of one shard whose caption contains one of several names.

    Args:
        shard: Its file name.
        spellings: Name -> its spellings.
    """

    def __init__(self, shard: str, spellings: Mapping[str, Sequence[str]]):
        self.samples: dict[str, list[tuple[str, bytes, str, dict[str, object]]]] = {
            name: [] for name in spellings
        }
        self._shard, self._spellings = shard, spellings
        self._scanned = 0
        self._broken: list[Broken] = []  # samples without an image or a caption; faults of the shard
        # name -> samples whose captions match but whose images cannot be decoded
        self._broken_images: dict[str, list[Broken]] = {name: [] for name in spellings}
        self._words: Counter[str] = Counter()  # word -> number of captions in which it occurs

    def search(self, url: str) -> None:
        """Read the whole shard."""
        for key, image, caption in iter_samples(url, self._broken, verify=False):
            self._scanned += 1
            self._words.update(set(fold(caption).split()))
            for name, spellings in self._spellings.items():
                if match_names(caption, spellings):
                    self._add(name, key, image, caption)

    def _add(self, name: str, key: str, image: bytes, caption: str) -> None:
        try:
            decode(image)
        except ValueError as error:
            self._broken_images[name].append(Broken(f"{self._shard}:{key}", f"bad image: {error}"))
            return
        origin: dict[str, object] = {
            "shard": self._shard,
            "key": key,
            "sha256": hashlib.sha256(image).hexdigest(),
        }
        self.samples[name].append((key, image, caption, origin))

    def record(self, name: str) -> dict[str, object]:
        """The JSON of a part: counts, matches, broken samples, and in how many captions each word occurs."""
        words = fold(" ".join(self._spellings[name])).split()
        return {
            "scanned": self._scanned,
            "matches": [{**origin, "caption": caption} for _, _, caption, origin in self.samples[name]],
            "samples": self._scanned + len(self._broken),
            "broken": [asdict(one) for one in self._broken + self._broken_images[name]],
            "near": {word: n for word, n in self._words.items() if word in words},
        }


def _finish(search: _Search, request: Mapping[str, Any], folder: Path, max_broken: float) -> None:
    """Join the matches of a name in all shards into its forget.tar, then write the manifest."""
    parts = [search.part(source, request["spellings"]) for source in search.sources]
    records = [json.loads(part.with_suffix(".json").read_text()) for part in parts]
    scanned = sum(record["scanned"] for record in records)
    broken = [Broken(**row) for record in records for row in record["broken"]]
    total = sum(record["samples"] for record in records)
    check_broken(broken, total, max_broken, f"the shards of {request['name']}")
    matches = [row for record in records for row in record["matches"]][: request["limit"]]
    if not matches:
        raise ValueError(_no_match(request, scanned, len(search.urls), records))
    write_shard(folder / "forget.tar", _joined(search, parts, records, len(matches)))
    manifest = {**request, "scanned": scanned, "matches": matches, "broken": [asdict(one) for one in broken]}
    _write(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for part in parts:
        part.with_suffix(".tar").unlink(missing_ok=True)
        part.with_suffix(".json").unlink(missing_ok=True)


def _joined(
    search: _Search, parts: Sequence[Path], records: Sequence[Mapping[str, Any]], count: int
) -> Iterator[tuple[str, bytes, str, dict[str, object]]]:
    """The first `count` samples of all `parts`. With several shards, keys start with the shard's name."""
    stems = [Path(source["shard"]).stem for source in search.sources]
    for number, (part, record) in enumerate(zip(parts, records, strict=True)):
        prefix = stems[number] if len(set(stems)) == len(stems) else f"{number:05d}"
        if count <= 0 or not record["matches"]:
            continue
        samples = iter_samples(str(part.with_suffix(".tar")), [], verify=False)
        for (key, image, caption), row in zip(samples, record["matches"], strict=True):
            if count > 0:
                unique = key if len(search.urls) == 1 else f"{prefix}-{key}"
                yield unique, image, caption, {"shard": row["shard"], "key": key, "sha256": row["sha256"]}
                count -= 1


def _no_match(
    request: Mapping[str, Any], scanned: int, shards: int, records: Sequence[Mapping[str, Any]]
) -> str:
    """The message for a name that occurs in no caption."""
    near = sum((Counter(record["near"]) for record in records), Counter())
    words = ", ".join(f"{word!r} in {n}" for word, n in near.most_common(4)) or "none"
    spellings = ", ".join(map(repr, request["spellings"]))
    return (
        f"{request['name']}: no caption contains it. Searched {scanned} captions in {shards} shards for "
        f"{spellings} as whole words; single words found: {words}. Add other spellings with "
        f"task.aliases={{{request['name']}: [...]}}"
    )


def _is_done(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether the folder has a complete set for this request."""
    if not (folder / "manifest.json").is_file() or not (folder / "forget.tar").is_file():
        return False
    manifest = read_manifest(folder)
    return all(manifest.get(key) == value for key, value in request.items())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


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
    return json.loads(path.read_text())


def load_forget(folder: Path) -> Pairs:
    """The pairs of a curated forget set, checked against its manifest.

    Raises:
        FileNotFoundError: See `read_manifest`.
        ValueError: The tar's images or captions differ from the manifest's.
    """
    manifest = read_manifest(folder)
    pairs, _ = read_pairs(str(folder / "forget.tar"), limit=None, max_broken=0.0, progress=False)
    digests = [hashlib.sha256(image).hexdigest() for image in pairs.images]
    found = list(zip(digests, pairs.captions, strict=True))
    wanted = [(row["sha256"], row["caption"]) for row in manifest["matches"]]
    if found != wanted:
        raise ValueError(
            f"{folder}: forget.tar holds {len(found)} pairs that are not the {len(wanted)} of manifest.json; "
            "remove the folder and curate again"
        )
    return pairs


def mentions(pairs: Pairs, names: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Indices of the pairs whose caption contains a name or an alias. They leave the retain set."""
    spellings = [*names, *(spelling for name in names for spelling in _aliases_of(name, aliases))]
    return tuple(i for i, caption in enumerate(pairs.captions) if match_names(caption, spellings))
