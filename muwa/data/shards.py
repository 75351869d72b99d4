"""Read and write webdataset tars in img2dataset's layout: `<key>.jpg|png|webp`, `<key>.txt`, `<key>.json`."""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import braceexpand

from muwa.data.samples import check_broken, decode
from muwa.data.tars import is_closed, is_plain
from muwa.runtime.progress import track
from muwa.types.data import Broken, Pairs

IMAGES = ("jpg", "jpeg", "png", "webp")
CLOSED = "the tar ends without its closing blocks of zeros: it was cut short"
Sample = tuple[str, bytes, str]  # key, image bytes, caption
_KINDS = (
    "Shards are local paths, http(s) URLs or `pipe:COMMAND`, for instance pipe:aws s3 cp "
    "s3://BUCKET/00000.tar -"
)


def is_remote(url: str) -> bool:
    """Whether a shard is not a local file but `pipe:`, http(s), s3, ..."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def local_path(url: str) -> Path:
    """The path of a local shard."""
    return Path(url.removeprefix("file://").removeprefix("file:"))


def expand(urls: str | Sequence[str]) -> list[str]:
    """All shards of one pattern or several, each once. Braces ({0..12}) and globs (*.tar) are expanded.

    Raises:
        FileNotFoundError: A local shard is missing. The message says how many are, and how to make shards.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    found: list[str] = []
    for pattern in patterns:
        for url in [pattern] if pattern.startswith("pipe:") else braceexpand.braceexpand(pattern):
            is_glob = glob.has_magic(url) and not is_remote(url)
            found += (sorted(glob.glob(url)) or [url]) if is_glob else [url]
    missing = [one for one in found if not is_remote(one) and not local_path(one).is_file()]
    if missing or not found:
        fault = "the pattern gives no shard"
        if missing:
            fault = f"{len(missing)} of {len(found)} shards are missing, the first is {missing[0]}"
        raise FileNotFoundError(
            f"{', '.join(patterns)}: {fault}. Looked for tars of img2dataset (00000.tar, which holds "
            "<key>.jpg|png|webp, <key>.txt, <key>.json); make them with `img2dataset "
            "--output_format webdataset --url_list LIST --caption_col TEXT --output_folder FOLDER`."
        )
    return list(dict.fromkeys(found))


def iter_samples(url: str, broken: list[Broken], *, verify: bool = True) -> Iterator[Sample]:
    """The samples of one shard, in order. Broken samples are added to `broken` instead.

    Args:
        url: A local path, or anything that webdataset opens.
        verify: Decode every image, so that a damaged one counts as broken.

    Yields:
        (key, encoded image, caption).

    Raises:
        OSError: The shard cannot be opened, or nothing can be read from it. The message says how to give
            remote shards.
        ValueError: No sample has a caption. The message lists the kinds of files found.
    """
    name = url.rsplit("/", 1)[-1]
    faults: list[str] = []  # faults of the shard, not of a sample
    last_key = ""
    count, captions, endings = 0, 0, set()
    for sample in _grouped(url, faults):
        count += 1
        last_key = str(sample["__key__"])
        endings |= {str(part) for part in sample if not str(part).startswith("__")}
        captions += "txt" in sample
        fault, image = _fault(sample, verify)
        if fault:
            broken.append(Broken(f"{name}:{last_key}", fault))
        else:
            yield last_key, image, sample["txt"].decode("utf-8", "replace").strip()
    broken += [Broken(f"{name}: after {last_key or 'the start'}", fault) for fault in faults]
    if count and not captions:
        raise ValueError(no_captions(url, count, endings))
    if not count and faults and is_remote(url):
        why = next((fault for fault in faults if "exit" in fault), faults[0])
        raise OSError(f"{url}: nothing could be read from it ({why}). {_KINDS}")


def _grouped(url: str, faults: list[str]) -> Iterator[dict[str, bytes]]:
    """The files of a shard, grouped into samples. Faults of the shard are added to `faults`.

    Raises:
        OSError: The shard cannot be opened.
    """
    import webdataset as wds  # imports torch
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def note(error: Exception) -> bool:
        faults.append(f"{type(error).__name__}: {error.args[0] if error.args else error}")
        return True

    try:
        stream = wds.gopen(url)
    except (OSError, ValueError) as error:
        raise OSError(f"{url}: cannot be opened ({error}). {_KINDS}") from error
    try:
        files = tar_file_expander([{"url": url, "stream": stream}], handler=note)
        yield from group_by_keys(files, handler=note)
        # What follows the end of the tar is read too: a command that we cut off could not say that it failed.
        try:
            while stream.read(1 << 20):
                pass
        except OSError as error:
            faults.append(str(error))
    finally:
        try:
            stream.close()
        except OSError as error:  # a pipe or download reports its failure when it is closed
            if str(error) not in faults:
                faults.append(str(error))
    if not faults and not is_remote(url) and not _is_closed(local_path(url)):
        faults.append(CLOSED)


def no_captions(url: str, count: int, endings: Iterable[str]) -> str:
    """The message for a shard whose samples have no captions.

    Args:
        count: The number of its samples.
        endings: The kinds of files found in them.
    """
    return (
        f"{url}: none of its {count} samples has a caption: found .{', .'.join(sorted(endings))}, want "
        "<key>.txt beside each image (img2dataset writes it when given --caption_col)"
    )


def _is_closed(path: Path) -> bool:
    """Whether a tar is complete; a compressed one counts as complete, because it has its own checksum."""
    return not is_plain(path) or is_closed(path)


def _fault(sample: dict[str, bytes], verify: bool) -> tuple[str | None, bytes]:
    """(What is wrong with a sample, or None; its encoded image)."""
    images = [sample[ending] for ending in IMAGES if ending in sample]
    if len(images) != 1:
        return ("no image" if not images else f"{len(images)} images under one key"), b""
    if "txt" not in sample or not sample["txt"].strip():
        return "no caption", b""
    if verify:
        try:
            decode(images[0])
        except ValueError as error:
            return f"bad image: {error}", b""
    return None, images[0]


def read_pairs(
    urls: str | Sequence[str], *, limit: int | None, max_broken: float, progress: bool
) -> tuple[Pairs, list[Broken]]:
    """(The pairs of one shard or several, in order; broken samples). Every image of a pair can be decoded.

    Args:
        limit: Read at most this many pairs; None reads all.
        max_broken: Largest accepted share of broken samples.

    Raises:
        FileNotFoundError, OSError: A shard is missing or cannot be opened.
        ValueError: Too many samples are broken, or a shard has no captions.
    """
    samples: list[Sample] = []
    broken: list[Broken] = []
    shards = expand(urls)
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
    """Write samples (key, image, caption, metadata) as a tar, and return their number.

    The file appears only when it is complete. The same samples give the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    count = 0
    with tarfile.open(draft, "w") as tar:
        for key, image, caption, meta in samples:
            files = {image_ending(image): image, "txt": caption.encode()}
            files["json"] = json.dumps(meta, sort_keys=True).encode()
            for ending, content in sorted(files.items()):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size, member.mode = len(content), 0o444
                tar.addfile(member, io.BytesIO(content))
            count += 1
    os.replace(draft, path)
    return count


def image_ending(image: bytes) -> str:
    """The format of an encoded image, by its first bytes: "png" or "webp", else "jpg"."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"
