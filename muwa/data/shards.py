"""Read and write webdataset tars in img2dataset's layout: `<key>.jpg|png|webp`, `<key>.txt`, `<key>.json`."""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import braceexpand

from muwa.data import remote, tars
from muwa.data.addresses import is_remote, local_path, shard_name, shown
from muwa.data.samples import ShardRules, check_samples, decode
from muwa.data.shard_rows import Row, local_rows, stream_rows
from muwa.drafts import new_file
from muwa.runtime.progress import track
from muwa.types.data import BAD_IMAGE, DAMAGED_SHARD, Broken, Pairs

Sample = tuple[str, bytes, str]  # key, image bytes, caption


def expand(urls: str | Sequence[str], setting: str = "dataset.shards") -> list[str]:
    """All shards of one pattern or several, each once. Braces ({0..12}) and globs (*.tar) are expanded.

    Args:
        setting: The setting that gives the patterns, for the message.

    Raises:
        FileNotFoundError: A local shard is missing. The message says how many are, how those that are there
            are taken, and how to make shards.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    found: list[str] = []
    for pattern in patterns:
        for url in [pattern] if pattern.startswith("pipe:") else braceexpand.braceexpand(pattern):
            is_glob = glob.has_magic(url) and not is_remote(url)
            found += (sorted(glob.glob(url)) or [url]) if is_glob else [url]
    missing = [one for one in found if not is_remote(one) and not local_path(one).is_file()]
    if missing or not found:
        raise FileNotFoundError(_missing(setting, patterns, found, missing))
    return list(dict.fromkeys(found))


def _missing(setting: str, patterns: Sequence[str], found: Sequence[str], missing: Sequence[str]) -> str:
    """The message for shards that are not there."""
    fault, gaps = "the pattern gives no shard", ""
    if missing:
        fault = f"{len(missing)} of {len(found)} shards are missing, the first is {missing[0]}"
    if missing and len(missing) < len(found):
        (folder, _), *_ = Counter(str(local_path(one).parent) for one in missing).most_common()
        gaps = f" To take only those that are there, give a glob: '{setting}={folder}/*.tar'."
    return (
        f"{setting}={','.join(map(shown, patterns))}: {fault}.{gaps} Looked for tars of img2dataset "
        "(00000.tar, which holds <key>.jpg|png|webp, <key>.txt, <key>.json); make them with `img2dataset "
        "--output_format webdataset --url_list LIST --caption_col TEXT --output_folder FOLDER`."
    )


def iter_samples(
    url: str,
    broken: list[Broken],
    *,
    caption_key: str | None,
    verify: bool = True,
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[Sample]:
    """The samples of one shard, as they become complete. Broken samples are added to `broken` instead.

    Args:
        url: A local path, or anything that webdataset opens.
        caption_key: Where captions stand (`muwa.data.caption_key.caption_key`).
        verify: Decode every image, so that a damaged one counts as broken.
        wanted: Whether an image is read, by its path in the tar; None reads all. Others are empty: a remote
            shard is then read through without holding them.

    Yields:
        (key, encoded image, caption).

    Raises:
        OSError: The shard cannot be opened, or nothing can be read from it. The message says how to give
            remote shards.
        ValueError: No sample has a caption. The message lists the kinds of files found.
    """
    name, last = shard_name(url), "the start"
    faults: list[str] = []  # faults of the shard, not of a sample
    for row in _rows(url, caption_key, faults, wanted):
        last = row.key
        image = row.image or b""
        fault = row.fault or (_undecodable(image) if verify else None)
        if fault is not None:
            broken.append(Broken(f"{name}:{row.key}", fault[1], fault[0]))
        else:
            yield row.key, image, row.caption
    broken += [Broken(f"{name}: after {last}", fault, DAMAGED_SHARD) for fault in faults]
    if last == "the start" and faults and is_remote(url):
        why = next((fault for fault in faults if fault.startswith("exit")), faults[0])
        raise OSError(f"{shown(url)}: nothing could be read from it ({why}). {remote.KINDS}")


def _rows(
    url: str, caption_key: str | None, faults: list[str], wanted: Callable[[str], bool] | None
) -> Iterator[Row[bytes]]:
    """The rows of a shard with their images: by place in a local tar, else from a stream."""
    path = local_path(url)
    if is_remote(url) or not tars.is_plain(path):
        yield from stream_rows(url, caption_key, faults, wanted)
        return
    with path.open("rb") as file:
        for row in local_rows(path, caption_key, faults):
            image = b"" if row.image is None else os.pread(file.fileno(), row.image[1], row.image[0])
            yield Row(row.key, row.caption, row.fault, image)


def _undecodable(image: bytes) -> tuple[str, str] | None:
    try:
        decode(image)
    except ValueError as error:
        return BAD_IMAGE, f"bad image: {error}"
    return None


def read_pairs(
    urls: str | Sequence[str], rules: ShardRules, *, limit: int | None, progress: bool
) -> tuple[Pairs, list[Broken]]:
    """(The pairs of one shard or several, in order; broken samples). Every image of a pair can be decoded.

    Args:
        rules: Where captions stand, and how many samples may be broken.
        limit: Read at most this many pairs; None reads all.

    Raises:
        FileNotFoundError, OSError: A shard is missing or cannot be opened.
        ValueError: Too many samples are broken, or a shard has no captions.
    """
    samples: list[Sample] = []
    broken: list[Broken] = []
    shards = expand(urls)
    for shard in track(shards, "reading shards", len(shards), show=progress):
        for sample in iter_samples(shard, broken, caption_key=rules.caption_key):
            samples.append(sample)
            if len(samples) == limit:
                break
        if len(samples) == limit:
            break
    patterns = [urls] if isinstance(urls, str) else urls
    check_samples(broken, len(samples) + len(broken), rules, ", ".join(map(shown, patterns)))
    keys, images, captions = zip(*samples, strict=True) if samples else ((), (), ())
    return Pairs(keys, images, captions), broken


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, str, dict[str, object]]]) -> int:
    """Write samples (key, image, caption, metadata) as a tar, and return their number.

    The file appears only when it is complete. The same samples give the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with new_file(path) as draft, tarfile.open(draft, "w") as tar:
        for key, image, caption, meta in samples:
            files = {image_ending(image): image, "txt": caption.encode()}
            files["json"] = json.dumps(meta, sort_keys=True).encode()
            for ending, content in sorted(files.items()):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size, member.mode = len(content), 0o444
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count


def image_ending(image: bytes) -> str:
    """The format of an encoded image, by its first bytes: "png" or "webp", else "jpg"."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"
