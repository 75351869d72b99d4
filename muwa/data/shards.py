"""Read webdataset tars as img2dataset writes them: `<key>.jpg|png|webp`, `<key>.txt`, `<key>.json`, from anywhere."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import braceexpand
import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander

from muwa.data.samples import check_broken, decode
from muwa.runtime.progress import track
from muwa.types.data import Broken, Pairs

IMAGES = ("jpg", "jpeg", "png", "webp")
Sample = tuple[str, bytes, str]  # key, image bytes, caption
_KINDS = "Shards are local paths, http(s) URLs or `pipe:COMMAND`, for instance pipe:aws s3 cp s3://BUCKET/00000.tar -"


def is_remote(url: str) -> bool:
    """Whether a shard is no local file: `pipe:`, http(s), s3, ..."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def local_path(url: str) -> Path:
    """The file behind a local shard."""
    return Path(url.removeprefix("file://").removeprefix("file:"))


def expand(urls: str | Sequence[str]) -> list[str]:
    """All shards of one pattern or several: braces ({00000..00012}), globs (*.tar), URLs as they are.

    Raises:
        FileNotFoundError: A local shard is not there; says how many are missing and how shards are made.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    found: list[str] = []
    for pattern in patterns:
        for one in [pattern] if pattern.startswith("pipe:") else braceexpand.braceexpand(pattern):
            found += (sorted(glob.glob(one)) or [one]) if not is_remote(one) and glob.has_magic(one) else [one]
    missing = [one for one in found if not is_remote(one) and not local_path(one).is_file()]
    if missing or not found:
        raise FileNotFoundError(
            f"{', '.join(patterns)}: {len(missing)} of {len(found)} shards are not there, first {missing[:1]}. Looked "
            "for tars of img2dataset (00000.tar, in it <key>.jpg|png|webp, <key>.txt, <key>.json); make them with "
            "`img2dataset --output_format webdataset --url_list LIST --caption_col TEXT --output_folder FOLDER`."
        )
    return found


def iter_samples(url: str, broken: list[Broken], *, verify: bool = True) -> Iterator[Sample]:
    """The sound samples of one shard, in order; the others are added to `broken` with the reason.

    Args:
        url: A local path, or anything that webdataset opens.
        verify: Decode every picture to be sure that it is whole; False leaves that to the caller.

    Yields:
        (key, encoded image, caption).

    Raises:
        OSError: The shard cannot be opened at all; says how remote shards are given.
        ValueError: The shard has samples and none of them has a caption; says what there is instead.
    """
    name = url.rsplit("/", 1)[-1]
    faults: list[str] = []

    def note(error: Exception) -> bool:
        faults.append(f"{type(error).__name__}: {error.args[0] if error.args else error}")
        return True

    try:
        stream = wds.gopen(url)
    except (OSError, ValueError) as error:
        raise OSError(f"{url}: cannot be opened ({error}). {_KINDS}") from error
    seen, captioned, endings = 0, 0, set()
    last = "the start"
    try:
        for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}], handler=note), handler=note):
            seen += 1
            key = last = str(sample["__key__"])
            endings |= {str(x) for x in sample if not str(x).startswith("__")}
            captioned += "txt" in sample
            fault, image = _fault(sample, verify)
            if fault:
                broken.append(Broken(f"{name}:{key}", fault))
            else:
                yield key, image, sample["txt"].decode("utf-8", "replace").strip()
    finally:
        try:
            stream.close()
        except OSError as error:  # a pipe or download that ended with an error says so when it is closed
            faults.append(str(error))
    if not faults and not is_remote(url) and not _is_closed(local_path(url)):
        faults.append("the tar ends without its closing blocks of zeros: it was cut short")
    broken += [Broken(f"{name}: after {last}", fault) for fault in faults]
    if seen and not captioned:
        raise ValueError(
            f"{url}: none of its {seen} samples has a caption: found .{', .'.join(sorted(endings))}, want <key>.txt beside "
            "each picture (img2dataset writes it when given --caption_col)"
        )
    if not seen and faults and is_remote(url):
        why = next((fault for fault in faults if "exit" in fault), faults[0])
        raise OSError(f"{url}: nothing could be read from it ({why}). {_KINDS}")


def _is_closed(path: Path) -> bool:
    """Whether a tar ends with two blocks of zeros, as every whole one does (tarfile takes any end between members for the
    end of the archive). A compressed tar is taken to be whole: its own checksum says otherwise."""
    with path.open("rb") as file:
        if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7"):
            return True
        file.seek(-min(1024, path.stat().st_size), os.SEEK_END)
        return not any(file.read())


def _fault(sample: dict[str, bytes], verify: bool) -> tuple[str | None, bytes]:
    """(what is wrong with a sample or None, its image bytes)."""
    images = [sample[ending] for ending in IMAGES if ending in sample]
    if len(images) != 1:
        return ("no picture" if not images else f"{len(images)} pictures under one key"), b""
    if "txt" not in sample or not sample["txt"].strip():
        return "no caption", b""
    if verify:
        try:
            decode(images[0])
        except ValueError as error:
            return f"bad picture: {error}", b""
    return None, images[0]


def read_pairs(
    urls: str | Sequence[str], *, limit: int | None, max_broken: float, progress: bool
) -> tuple[Pairs, list[Broken]]:
    """The pairs of one shard or many, in shard order, every picture known to decode.

    Args:
        limit: Stop after so many sound pairs; None reads all.
        max_broken: Share of broken samples that stops the run.

    Raises:
        FileNotFoundError, OSError: A shard is not there or cannot be opened.
        ValueError: Too many broken samples, or no captions.
    """
    shards = expand(urls)
    samples: list[Sample] = []
    broken: list[Broken] = []
    for shard in track(shards, "reading shards", len(shards), show=progress):
        for sample in iter_samples(shard, broken):
            samples.append(sample)
            if len(samples) == limit:
                break
        if len(samples) == limit:
            break
    check_broken(broken, len(samples) + len(broken), max_broken, str(urls))
    keys, images, captions = zip(*samples, strict=True) if samples else ((), (), ())
    return Pairs(keys, images, captions), broken


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, str, dict[str, object]]]) -> int:
    """Write (key, image, caption, meta) samples as a tar, whole or not at all, the same bytes for the same samples.

    Returns:
        How many were written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    count = 0
    with wds.TarWriter(str(draft), mtime=0, user="", group="") as tar:
        for key, image, caption, meta in samples:
            row = {"__key__": key, image_ending(image): image, "txt": caption.encode()}
            tar.write({**row, "json": json.dumps(meta, sort_keys=True).encode()})
            count += 1
    os.replace(draft, path)
    return count


def image_ending(image: bytes) -> str:
    """ "png", "webp" or "jpg", by the first bytes."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"


def shard_fingerprint(url: str) -> str:
    """SHA-256 of a shard's bytes, streamed."""
    with wds.gopen(url) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if not is_remote(url) else _streamed(stream)


def _streamed(stream: object) -> str:
    found = hashlib.sha256()
    while block := stream.read(1 << 20):  # type: ignore[attr-defined]
        found.update(block)
    return found.hexdigest()
