"""The samples of one shard as rows: key, caption, fault, image. All readers of shards take them from here."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from muwa.data import remote, tars
from muwa.data.addresses import shown
from muwa.data.caption_key import IMAGES, CaptionKey, Fault, caption_key, field_of, text_of
from muwa.data.expansion import Expanded
from muwa.data.grouping import Grouped, grouped, split_name
from muwa.data.tars import Member
from muwa.types.data import NO_CAPTION, NO_IMAGE, REPEATED_FILE, SEVERAL_IMAGES, TOO_LARGE

T = TypeVar("T")
MAX_IMAGE = 1 << 28  # bytes of a file; larger ones are not read
MAX_TEXT = 1 << 24
WAITING = 2_000_000_000  # bytes of a stream that may wait for the other file of their sample
CUT_SHORT = "the tar ends without its closing blocks of zeros: it was cut short"
DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError)


class Row(NamedTuple, Generic[T]):
    """A sample.

    Args:
        key, caption: Of the sample; the caption is "" if it cannot be read.
        fault: (Kind, why) it cannot be used, or None.
        image: Its bytes, or its place in the tar; None if it has none, or several.
    """

    key: str
    caption: str
    fault: Fault | None
    image: T | None


def local_rows(path: Path, setting: str | None, faults: list[str]) -> Iterator[Row[tars.Place]]:
    """The rows of a local tar that is not compressed. Captions are read, images are not.

    Args:
        setting: `dataset.caption_key`.
        faults: What is wrong with the shard as a whole is added to it.

    Raises:
        ValueError: No sample has a caption. The message lists the kinds of files found.
    """
    captions = caption_key(setting)
    with path.open("rb") as file:

        def read(member: Member[tars.Place]) -> bytes:
            file.seek(member.content[0])
            return file.read(member.content[1])

        tally = _Tally(str(path), captions)
        try:
            for group in grouped(tars.members(path), captions, WAITING):
                yield tally.note(group, _row(group, captions, read))
        except DAMAGE as error:
            faults.append(_in_words(error))
    if not faults and not tars.is_closed(path):
        faults.append(CUT_SHORT)
    if not faults:
        tally.check()


def stream_rows(
    url: str, setting: str | None, faults: list[str], wanted: Callable[[str], bool] | None
) -> Iterator[Row[bytes]]:
    """The rows of a remote or compressed shard, which is read through.

    Args:
        wanted: Whether an image is read, by its path in the tar; None reads all.

    Raises:
        OSError: The shard cannot be opened.
        ValueError: As `local_rows`.
    """
    captions = caption_key(setting)

    def reads(name: str, size: int) -> bool:
        ending = name.rpartition(".")[2].lower()
        if split_name(name) is None or size > (MAX_IMAGE if ending in IMAGES else MAX_TEXT):
            return False
        is_text = ending in captions.strong or (ending == "json" and captions.field is not None)
        return is_text or (ending in IMAGES and (wanted is None or wanted(name)))

    tally = _Tally(shown(url), captions)
    with remote.opened(url, faults) as stream:
        try:
            expanded = Expanded(stream)
            for group in grouped(tars.streamed(expanded, reads), captions, WAITING):
                yield tally.note(group, _row(group, captions, lambda member: member.content))
            expanded.finish()
            if not expanded.is_closed:
                faults.append(CUT_SHORT)
        except DAMAGE as error:
            faults.append(_in_words(error))
    if not faults:
        tally.check()


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _row(group: Grouped[T], captions: CaptionKey, read: Callable[[Member[T]], bytes]) -> Row[T]:
    """The row of a sample."""
    text, fault = "", None
    if group.caption is None:
        fault = (NO_CAPTION, "no caption")
    else:
        ending, member = group.caption
        if member.size > MAX_TEXT:
            fault = (TOO_LARGE, f".{ending} has {member.size:,} bytes: more than {MAX_TEXT:,} are not read")
        elif ending == "json" and captions.field is not None:
            text, fault = field_of(read(member), captions.field)
        else:
            text, fault = text_of(read(member))
    sizes = [member.size for member in group.images]
    if not sizes:
        more = f" among .{', .'.join(group.others[:8])}" if group.others else ""
        fault = (NO_IMAGE, f"no image{more}")
    elif len(sizes) > 1:
        fault = (SEVERAL_IMAGES, f"{len(sizes)} images under one key")
    elif sizes[0] > MAX_IMAGE:
        fault = (TOO_LARGE, f"image of {sizes[0]:,} bytes: more than {MAX_IMAGE:,} are not read")
    if group.repeated:
        fault = (REPEATED_FILE, f"two files .{group.repeated} under one key")
    return Row(group.key, text, fault, group.images[0].content if len(sizes) == 1 else None)


class _Tally:
    """Counts samples and captions, to refuse a shard that has none."""

    def __init__(self, where: str, captions: CaptionKey):
        self._where, self._captions = where, captions
        self._count, self._with_caption = 0, 0
        self._endings: set[str] = set()
        self._example = ""

    def note(self, group: Grouped[T], row: Row[T]) -> Row[T]:
        """Count a sample; gives its row back."""
        self._count += 1
        has_caption = group.caption is not None and (row.fault is None or row.fault[0] != NO_CAPTION)
        self._with_caption += has_caption
        if row.fault is not None and row.fault[0] == NO_CAPTION:
            self._example = self._example or row.fault[1].removeprefix("no caption")
        self._endings |= {one for member in group.images for one in [member.name.rpartition(".")[2].lower()]}
        self._endings |= {*group.others, *([group.caption[0]] if group.caption else [])}
        return row

    def check(self) -> None:
        """Raise ValueError if there are samples, and none has a caption."""
        if self._count and not self._with_caption:
            found = ", .".join(sorted(self._endings)[:12])
            raise ValueError(
                f"{self._where}: none of its {self._count} samples has a caption: found .{found}"
                f"{self._example}, want {self._captions.wanted} beside each image (img2dataset writes "
                "<key>.txt when given --caption_col). If captions have another ending or stand in a .json, "
                "set dataset.caption_key=ENDING or dataset.caption_key=json:FIELD"
            )
