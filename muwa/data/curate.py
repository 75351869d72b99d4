"""Build forget sets: the pairs of shards whose caption contains a name, as a tar with a manifest.

The matches of a shard are written as soon as it is searched. A run that was killed goes on with the next
shard and ends with the same bytes. The manifest is written last: a set that has one is complete.
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
        counts: Name -> how many pairs its set has.
        scanned: How many captions were searched.
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
    case are the same, and so are `_`, space and punctuation. A set that is complete is not written again.

    Args:
        aliases: Name -> other spellings ("K. Lindqvar").
        limit: How many pairs of each name to take, the first ones; None takes all.
        max_broken: Share of broken samples that is accepted.

    Raises:
        ValueError: No caption contains a name (says how many were searched), or too many samples are broken.
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
    """Which shards are searched.

    Args:
        urls: The shards.
        sources: The file name and SHA-256 of each.
        out: The folder of the forget sets. Matches of single shards are kept in `out/.progress` until a set
            is complete.
    """

    urls: list[str]
    sources: list[dict[str, str]]
    out: Path

    def part(self, source: Mapping[str, str], spellings: Sequence[str]) -> Path:
        """The place, without an ending, of the matches of one name in one shard."""
        return self.out / ".progress" / digest([source["sha256"], *map(fold, spellings)])[:32]


def _aliases_of(name: str, aliases: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        spelling for key, spellings in aliases.items() if fold(key) == fold(name) for spelling in spellings
    ]


def _identity(out: Path, url: str) -> dict[str, str]:
    """A shard's file name and SHA-256. A local file is read again only if its size or time has changed."""
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
    """Write the matches of each name in each shard as a tar, then a JSON that says that it is complete."""
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
        self._broken: list[Broken] = []  # samples that no name can use
        self._broken_images: dict[str, list[Broken]] = {
            name: [] for name in spellings
        }  # their captions match
        self._words: Counter[str] = Counter()  # word -> captions that it occurs in

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
    """Join the parts of a name into its forget.tar, then write the manifest."""
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
    """The first `count` samples of all parts. With several shards, keys start with the shard's name."""
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
    """The message for a name that is in no caption."""
    near = sum((Counter(record["near"]) for record in records), Counter())
    words = ", ".join(f"{word!r} in {n}" for word, n in near.most_common(4)) or "none of its words either"
    spellings = ", ".join(map(repr, request["spellings"]))
    return (
        f"{request['name']}: no caption has it; {scanned} captions of {shards} shards were searched for "
        f"{spellings} as whole words ({words}). Other spellings can be given: "
        f"task.aliases={{{request['name']}: [...]}}"
    )


def _is_done(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether a complete set for this request is in the folder."""
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
        FileNotFoundError: There is none: the folder is not a forget set, or it is not complete.
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
        ValueError: Images or captions of the tar are not those of the manifest.
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
    """Indices of the pairs whose caption contains one of `names` or an alias: they leave the retain set."""
    spellings = [*names, *(spelling for name in names for spelling in _aliases_of(name, aliases))]
    return tuple(i for i, caption in enumerate(pairs.captions) if match_names(caption, spellings))
