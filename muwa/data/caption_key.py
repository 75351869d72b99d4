"""Where the caption of a sample stands: the setting `dataset.caption_key`."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from muwa.types.data import BAD_CAPTION, EMPTY_CAPTION, NO_CAPTION

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "caption", "text")  # endings of caption files, the first that a sample has is taken
FIELD = "caption"  # of img2dataset's .json
Fault = tuple[str, str]  # what is wrong with a sample: kind, why


@dataclass(frozen=True)
class CaptionKey:
    """Where captions stand.

    Attributes:
        endings: Of the files that hold the caption as text, in the order in which they are tried.
        field: Of the `.json` that holds the caption if no such file is there; None: the `.json` is not read.
    """

    endings: tuple[str, ...]
    field: str | None

    @property
    def strong(self) -> tuple[str, ...]:
        """The endings of files that are captions without doubt."""
        return self.endings or ("json",)

    @property
    def wanted(self) -> str:
        """In words, for messages."""
        texts = [f"<key>.{ending}" for ending in self.endings]
        return " or ".join(texts + ([f'"{self.field}" in <key>.json'] if self.field else []))


@functools.cache
def caption_key(setting: str | None) -> CaptionKey:
    """The meaning of `dataset.caption_key`.

    Args:
        setting: An ending ("txt", "caption"); "json:FIELD"; or None, which takes the first of .txt, .caption,
            .text and img2dataset's field "caption" in .json that a sample has.

    Raises:
        ValueError: It is none of these.

    >>> caption_key("json:alt"), caption_key(".TXT").endings
    (CaptionKey(endings=(), field='alt'), ('txt',))
    """
    if setting is None:
        return CaptionKey(TEXTS, FIELD)
    kind, colon, field = setting.partition(":")
    ending = kind.lower().lstrip(".")
    if colon and ending == "json" and field:
        return CaptionKey((), field)
    if colon or not ending or ending in (*IMAGES, "json") or "." in ending or "/" in ending:
        raise ValueError(
            f"dataset.caption_key: got {setting!r}, want an ending (txt), a field of the .json files "
            "(json:caption), or null to find out"
        )
    return CaptionKey((ending,), None)


def text_of(raw: bytes) -> tuple[str, Fault | None]:
    """(The caption in a text file, what is wrong with it)."""
    text = raw.decode("utf-8", "replace").strip()
    return text, None if text else (EMPTY_CAPTION, "empty caption")


def field_of(raw: bytes, field: str) -> tuple[str, Fault | None]:
    """(The caption in a field of a .json, what is wrong with it)."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return "", (BAD_CAPTION, f".json cannot be read: {error}")
    if not isinstance(found, dict):
        return "", (BAD_CAPTION, f".json is a {type(found).__name__}, want fields")
    if field not in found:
        return "", (NO_CAPTION, f'no caption: "{field}" is not among the fields of .json: {_names(found)}')
    value = found[field]
    if value is None or (isinstance(value, str) and not value.strip()):
        return "", (EMPTY_CAPTION, "empty caption")
    if not isinstance(value, str):
        return "", (BAD_CAPTION, f'"{field}" in .json is a {type(value).__name__}, want a text')
    return value.strip(), None


def _names(fields: dict[str, object]) -> str:
    """The names of some fields, cut short."""
    names = ", ".join(list(fields)[:12]) or "none"
    return names if len(names) <= 120 else f"{names[:120]} ..."
