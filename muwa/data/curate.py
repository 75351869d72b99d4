"""Build a forget set: scan shards for captions that name something, write the pairs as a tar with a manifest.

Each shard's matches are written as soon as it is scanned, so a killed run goes on where it stopped and ends with the
same bytes; the manifest is written last: where it is, the set is whole.
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
    """What was curated: each name's folder (`forget.tar`, `manifest.json`) and count; captions scanned; broken ones."""

    folders: Mapping[str, Path]
    counts: Mapping[str, int]
    scanned: int
    broken: tuple[Broken, ...]


def curate(
    shards: str | Sequence[str], names: Sequence[str], *, aliases: Mapping[str, Sequence[str]], out: Path,
    limit: int | None, max_broken: float, progress: bool,
) -> Curated:  # fmt: skip
    """Write `out/<Name>/forget.tar` and `manifest.json` for each name: the pairs whose caption has it.

    A caption has a name when the name or one of its aliases stands in it as whole words, case and `_`/space folded.

    Args:
        aliases: Name -> other spellings ("K. Lindqvar"); names are compared folded.
        limit: Keep the first so many pairs a name; None keeps all.
        max_broken: Share of broken samples that stops the run.

    Raises:
        ValueError: A name is in no caption (says how many were searched), or too many samples are broken.
        FileNotFoundError, OSError: A shard is missing or cannot be opened.
    """
    urls, names = expand(shards), list(dict.fromkeys(names))
    spellings = {
        name: (name, *(s for key, more in aliases.items() if fold(key) == fold(name) for s in more)) for name in names
    }
    folders = {name: out / name.replace(" ", "_") for name in names}
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        sources = [_identity(out, url) for url in urls]
        asked = {
            name: {
                "schema": SCHEMA,
                "name": name,
                "spellings": list(spellings[name]),
                "limit": limit,
                "shards": sources,
            }
            for name in names
        }
        todo = [name for name in names if not _is_done(folders[name], asked[name])]
        if todo:
            _scan(urls, sources, {name: spellings[name] for name in todo}, out, progress)
        for name in todo:
            _finish(name, folders[name], asked[name], urls, sources, out, max_broken)
    manifests = {name: read_manifest(folders[name]) for name in names}
    first = manifests[names[0]]
    return Curated(
        folders, {name: len(m["matches"]) for name, m in manifests.items()}, first["scanned"],
        tuple(Broken(**row) for row in first["broken"]),
    )  # fmt: skip


def _identity(out: Path, url: str) -> dict[str, str]:
    """A shard's name and SHA-256; of a local file it is taken anew only when size or time changed."""
    name = url.rsplit("/", 1)[-1]
    if is_remote(url):
        return {"shard": name, "sha256": digest(["remote", url])}
    stat = local_path(url).stat()
    stamp = f"{local_path(url).resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = out / ".progress" / f"sha-{digest([stamp])[:32]}"
    if not kept.is_file():
        _write(kept, shard_fingerprint(url))
    return {"shard": name, "sha256": kept.read_text()}


def _part(out: Path, source: Mapping[str, str], spellings: Sequence[str]) -> Path:
    return out / ".progress" / digest([source["sha256"], *map(fold, spellings)])[:32]


def _scan(
    urls: Sequence[str], sources: Sequence[Mapping[str, str]], spellings: Mapping[str, Sequence[str]], out: Path,
    progress: bool,
) -> None:  # fmt: skip
    """Write one part a shard and name: its matches as a tar, then a JSON that says the part is whole."""
    for url, source in track(list(zip(urls, sources, strict=True)), "scanning shards", len(urls), show=progress):
        parts = {name: _part(out, source, words) for name, words in spellings.items()}
        missing = {name: part for name, part in parts.items() if not part.with_suffix(".json").is_file()}
        if not missing:
            continue
        broken: list[Broken] = []  # of the shard; a bad picture is noted by the names whose caption it has
        bad: dict[str, list[Broken]] = {name: [] for name in missing}
        matches: dict[str, list[tuple[str, bytes, str, dict[str, object]]]] = {name: [] for name in missing}
        scanned = 0
        words: Counter[str] = Counter()
        for key, image, caption in iter_samples(url, broken, verify=False):
            scanned += 1
            words.update(set(fold(caption).split()))
            for name in missing:
                if match_names(caption, spellings[name]):
                    try:
                        decode(image)
                    except ValueError as error:
                        bad[name].append(Broken(f"{source['shard']}:{key}", f"bad picture: {error}"))
                        continue
                    meta: dict[str, object] = {
                        "shard": source["shard"],
                        "key": key,
                        "sha256": hashlib.sha256(image).hexdigest(),
                    }
                    matches[name].append((key, image, caption, meta))
        for name, part in missing.items():
            write_shard(part.with_suffix(".tar"), matches[name])
            rows = [{**meta, "caption": caption} for _, _, caption, meta in matches[name]]
            near = {word: n for word, n in words.items() if word in fold(" ".join(spellings[name])).split()}
            found = {
                "scanned": scanned,
                "matches": rows,
                "samples": scanned + len(broken),
                "broken": [asdict(one) for one in broken + bad[name]],
                "near": near,
            }
            _write(part.with_suffix(".json"), json.dumps(found))


def _finish(
    name: str, folder: Path, asked: Mapping[str, Any], urls: Sequence[str], sources: Sequence[Mapping[str, str]], out: Path,
    max_broken: float,
) -> None:  # fmt: skip
    """Join a name's parts into its forget.tar, then write the manifest."""
    parts = [_part(out, source, asked["spellings"]) for source in sources]
    found = [json.loads(part.with_suffix(".json").read_text()) for part in parts]
    scanned = sum(part["scanned"] for part in found)
    broken = [Broken(**row) for part in found for row in part["broken"]]
    check_broken(broken, sum(part["samples"] for part in found), max_broken, f"the shards of {name}")
    matches = [row for part in found for row in part["matches"]][: asked["limit"]]
    if not matches:
        near = sum((Counter(part["near"]) for part in found), Counter())
        words = ", ".join(f"{word!r} in {n}" for word, n in near.most_common(4)) or "none of its words either"
        raise ValueError(
            f"{name}: no caption has it; {scanned} captions of {len(urls)} shards were searched for "
            f"{', '.join(map(repr, asked['spellings']))} as whole words ({words}). Other spellings can be given: "
            f"task.aliases={{{name}: [...]}}"
        )

    def samples() -> Iterator[tuple[str, bytes, str, dict[str, object]]]:
        left = len(matches)
        stems = [Path(source["shard"]).stem for source in sources]
        for number, (part, rows) in enumerate(zip(parts, found, strict=True)):
            prefix = stems[number] if len(set(stems)) == len(stems) else f"{number:05d}"
            if left <= 0 or not rows["matches"]:
                continue
            for i, (key, image, caption) in enumerate(iter_samples(str(part.with_suffix(".tar")), [], verify=False)):
                if left > 0:
                    row = rows["matches"][i]
                    unique = key if len(urls) == 1 else f"{prefix}-{key}"
                    yield unique, image, caption, {"shard": row["shard"], "key": key, "sha256": row["sha256"]}
                    left -= 1

    write_shard(folder / "forget.tar", samples())
    manifest = {**asked, "scanned": scanned, "matches": matches, "broken": [asdict(one) for one in broken]}
    _write(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for part in parts:
        part.with_suffix(".tar").unlink(missing_ok=True)
        part.with_suffix(".json").unlink(missing_ok=True)


def _is_done(folder: Path, asked: Mapping[str, Any]) -> bool:
    if not (folder / "manifest.json").is_file() or not (folder / "forget.tar").is_file():
        return False
    there = read_manifest(folder)
    return all(there.get(key) == value for key, value in asked.items())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a curated forget set.

    Raises:
        FileNotFoundError: There is none: the folder is no curated set, or its curation was not finished.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no manifest.json in it, so it is not a finished forget set; write one: "
            "python launch.py stages=[curate] task.identity=NAME"
        )
    return json.loads(path.read_text())


def load_forget(folder: Path) -> Pairs:
    """The pairs of a curated forget set, each picture checked against the manifest.

    Raises:
        FileNotFoundError: See `read_manifest`.
        ValueError: The tar does not hold what the manifest says.
    """
    manifest = read_manifest(folder)
    pairs, _ = read_pairs(str(folder / "forget.tar"), limit=None, max_broken=0.0, progress=False)
    images = [hashlib.sha256(image).hexdigest() for image in pairs.images]
    found = list(zip(images, pairs.captions, strict=True))
    wanted = [(row["sha256"], row["caption"]) for row in manifest["matches"]]
    if found != wanted:
        raise ValueError(
            f"{folder}: forget.tar holds {len(found)} pairs that are not the {len(wanted)} of manifest.json; remove the "
            "folder and curate again"
        )
    return pairs


def mentions(pairs: Pairs, names: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Indices of the pairs whose caption names one of `names` or their aliases: kept out of the retain set."""
    spellings = [*names, *(s for key, more in aliases.items() if fold(key) in map(fold, names) for s in more)]
    return tuple(i for i, caption in enumerate(pairs.captions) if match_names(caption, spellings))
