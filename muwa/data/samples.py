"""Find names in captions, match names as users type them, decode images, and count broken samples."""

from __future__ import annotations

import difflib
import functools
import io
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from muwa.fingerprint import EncodedImage, read_image
from muwa.types.data import EMPTY_CAPTION, Broken

_ASCII = {i: chr(i).lower() if chr(i).isalnum() else " " for i in range(128)}
_ACCENTS = re.compile("(?<=[a-z\u0370-\u03ff])[\u0300-\u036f]+")  # on Latin and Greek letters
_PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe"})


def fold(text: str) -> str:
    """`text` in lower case without accents; each run of `_`, white space and punctuation is one space.

    Spaces at both ends are removed, and so are invisible signs such as soft hyphens. Only Latin and Greek
    letters lose their accents: elsewhere they make another letter, and vowel signs belong to their words.

    >>> fold("  Kael_LINDQVAR, (portrait)"), fold("Beyoncé in Łódź")
    ('kael lindqvar portrait', 'beyonce in lodz')
    """
    if text.isascii():
        return " ".join(text.translate(_ASCII).split())
    letters = unicodedata.normalize("NFD", text.casefold()).translate(_PLAIN)
    kept = (_letter_or_space(sign) for sign in unicodedata.normalize("NFC", _ACCENTS.sub("", letters)))
    return " ".join("".join(kept).split())


@functools.lru_cache(maxsize=1 << 16)
def _letter_or_space(sign: str) -> str:
    """A letter, digit or vowel sign as it is; nothing for an invisible sign; a space for any other."""
    kind = unicodedata.category(sign)
    if kind[0] in "LNM":
        return sign
    return "" if kind == "Cf" else " "


def match_names(text: str, names: Sequence[str]) -> list[str]:
    """The `names` that occur in `text` as whole words, after both are folded.

    >>> match_names("Portrait: kael_lindqvar!", ["Kael Lindqvar", "Kael Lind", ""])
    ['Kael Lindqvar']
    """
    padded = f" {fold(text)} "
    return [name for name in names if (folded := fold(name)) and f" {folded} " in padded]


def listed(names: str | Sequence[str]) -> list[str]:
    """One name or several, as a list without repetition.

    Raises:
        ValueError: No name was given.
    """
    found = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not found:
        raise ValueError("task: no name to forget was given")
    return found


def find_names(typed: str | Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """The known names that were typed, without repetition; see `find_name`."""
    return list(dict.fromkeys(find_name(name, known, where) for name in listed(typed)))


def find_name(typed: str, known: Sequence[str], where: str) -> str:
    """The known name that equals `typed` after both are folded.

    Args:
        known: All names.
        where: Where they come from, for the message.

    Raises:
        ValueError: There is no such name. The message lists the nearest ones.
    """
    folded = {fold(name): name for name in known}
    if fold(typed) in folded:
        return folded[fold(typed)]
    near = difflib.get_close_matches(fold(typed), list(folded), 4, 0.55)
    words = set(fold(typed).split())
    near += [name for name in folded if words & set(name.split()) and name not in near]
    nearest = ", ".join(folded[name].replace(" ", "_") for name in near[:5]) or "none that is similar"
    raise ValueError(
        f"Unknown name {typed!r}: not among the {len(known)} names of {where}. Nearest: {nearest}. "
        "Type names with _ or quoted spaces."
    )


def decode(image: EncodedImage) -> Image.Image:
    """The image in RGB, fully decoded. EXIF rotation is not applied, as in open_clip and img2dataset.

    Raises:
        ValueError: The bytes are not a complete image. The message says why.
    """
    raw = read_image(image)
    if not raw:
        raise ValueError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
            with Image.open(io.BytesIO(raw)) as opened:
                return opened.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(str(error).split(" <")[0]) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot be decoded: {error}") from error


@dataclass(frozen=True)
class ShardRules:
    """How the samples of shards are read, and when too many of them are broken.

    Args:
        caption_key: Where captions stand (`muwa.data.caption_key.caption_key`).
        max_broken: Largest accepted share of broken samples, in [0, 1]; empty captions do not count.
        max_empty: Largest accepted share of samples with an empty caption, in [0, 1].
    """

    caption_key: str | None
    max_broken: float
    max_empty: float


def check_samples(broken: Sequence[Broken], total: int, rules: ShardRules, what: str) -> None:
    """Raise if too many samples are broken, or too many captions are empty.

    Args:
        total: Number of samples, including the broken ones.
        what: What the samples are, for the message.

    Raises:
        ValueError: A larger share is broken or empty. The message has the counts by kind.
    """
    check_broken([one for one in broken if one.kind != EMPTY_CAPTION], total, rules.max_broken, what)
    empty = sum(one.kind == EMPTY_CAPTION for one in broken)
    if empty / max(total, 1) > rules.max_empty:
        raise ValueError(
            f"{what}: {empty} of {total} captions are empty ({empty / max(total, 1):.1%}), more than "
            f"dataset.max_empty={rules.max_empty:g} allows (by kind: {by_kind(broken)}). If captions stand "
            "in other files or fields, set dataset.caption_key (txt, json:caption); else raise "
            "dataset.max_empty"
        )


def by_kind(broken: Sequence[Broken]) -> str:
    """The counts by kind, the largest first.

    >>> by_kind([Broken("a", "empty file", "bad image"), Broken("b", "", "no caption")] * 2)
    '2 bad image, 2 no caption'
    """
    counts = Counter(one.kind for one in broken)
    return ", ".join(
        f"{n} {kind}" for kind, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def check_broken(broken: Sequence[Broken], total: int, max_broken: float, what: str) -> None:
    """Raise if too many samples are broken.

    Args:
        total: Number of samples, including the broken ones.
        max_broken: Largest accepted share, in [0, 1].
        what: What the samples are, for the message.

    Raises:
        ValueError: A larger share is broken. The message has the counts by kind and the first ten samples.
    """
    if not broken or len(broken) / max(total, 1) <= max_broken:
        return
    rows = "".join(f"\n  {one.where}: {one.why}" for one in broken[:10])
    more = f"\n  and {len(broken) - 10} more" if len(broken) > 10 else ""
    raise ValueError(
        f"{what}: {len(broken)} of {total} samples are broken ({len(broken) / max(total, 1):.1%}), more "
        f"than dataset.max_broken={max_broken:g} allows (by kind: {by_kind(broken)}). Mend or remove them, "
        f"or raise dataset.max_broken:{rows}{more}"
    )
