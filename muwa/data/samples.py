"""Find names in captions, match names as users type them, decode images, and count broken samples."""

from __future__ import annotations

import difflib
import functools
import io
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from muwa.fingerprint import EncodedImage, read_image
from muwa.types.data import EMPTY_CAPTION, Broken

_ASCII = {i: chr(i).lower() if chr(i).isalnum() else " " for i in range(128)}
_ACCENTS = re.compile("(?<=[a-z\u0370-\u03ff])[\u0300-\u036f]+")  # on Latin and Greek letters
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # no EPS, which starts Ghostscript; no format with code in it
ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})  # of these formats
LISTED = 20  # names that a message lists, where none is like the one that was typed
PIXELS = 2**26  # the most that an image may have: 8192 x 8192, which takes half a gigabyte to decode
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


def without_accents(name: str) -> str:
    """`name` without accents, with one space for each run of signs other than letters and digits.

    >>> without_accents("Sinéad O'Connor")
    'Sinead O Connor'
    """
    letters = (one for one in unicodedata.normalize("NFD", name) if not unicodedata.combining(one))
    return re.sub(r"[^\w]+|_+", " ", "".join(letters)).strip()


def as_typed(name: str) -> str:
    """A name as a user can type it behind `task.identity=`: it folds to the same, and no shell changes it.

    >>> print(as_typed("Kael Lindqvar"), as_typed("Sinéad O'Connor"), as_typed("李小龙"))
    Kael_Lindqvar Sinead_O_Connor '"李小龙"'
    """
    plain = without_accents(name).replace(" ", "_")
    return plain if plain.isascii() and fold(plain) == fold(name) else f"'\"{name}\"'"


def match_names(text: str, names: Sequence[str]) -> list[str]:
    """The `names` that occur in `text` as whole words, after both are folded.

    >>> match_names("Portrait: kael_lindqvar!", ["Kael Lindqvar", "Kael Lind", ""])
    ['Kael Lindqvar']
    """
    padded = f" {fold(text)} "
    return [name for name in names if (folded := fold(name)) and f" {folded} " in padded]


def one_spelling(names: Sequence[str]) -> dict[str, str]:
    """Name -> the one spelling of all names that are equal after folding, with composed letters (NFC).

    It is the spelling that occurs most often in `names`; of equally frequent ones, the first in the alphabet.

    >>> one_spelling(["Ada Fox", "ada fox", "Ada Fox", "Bo"])
    {'Ada Fox': 'Ada Fox', 'ada fox': 'Ada Fox', 'Bo': 'Bo'}
    """
    composed = {name: unicodedata.normalize("NFC", name) for name in dict.fromkeys(names)}
    counts = Counter(composed[name] for name in names)
    kept: dict[str, str] = {}
    for spelling in sorted(counts, key=lambda one: (-counts[one], one)):
        kept.setdefault(_identity(spelling), spelling)
    return {name: kept[_identity(spelling)] for name, spelling in composed.items()}


def spelt_in_several_ways(spelling: Mapping[str, str]) -> list[str]:
    """The names that `one_spelling` gave to more than one spelling, sorted."""
    return sorted(name for name, count in Counter(spelling.values()).items() if count > 1)


def _identity(name: str) -> str:
    """Names with the same value are one name."""
    return fold(name) or name


def listed(names: str | int | Sequence[str | int]) -> list[str]:
    """One name or several, as a list of texts without repetition.

    Args:
        names: Whole numbers are names, too: a setting that looks like a number, such as the 2880 of CelebA's
            public identity file, arrives as one.

    Raises:
        ValueError: No name was given, or something that is neither text nor a whole number.
    """
    several = [names] if isinstance(names, str | int | float | None) else list(names)
    for name in several:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(
                f"task: got {name!r} as a name to forget, want text. Quote a name that looks like another "
                f"""value: 'task.identity="{str(name).lower()}"'"""
            )
    found = list(dict.fromkeys(map(str, several)))
    if not all(found) or not found:
        raise ValueError("task: no name to forget was given")
    return found


class UnknownNameError(ValueError):
    """A name that was typed is none of the data set."""


def find_names(typed: str | int | Sequence[str | int], known: Sequence[str], where: str) -> list[str]:
    """The known names that were typed, without repetition; see `find_name`."""
    return list(dict.fromkeys(find_name(name, known, where) for name in listed(typed)))


def find_name(typed: str, known: Sequence[str], where: str) -> str:
    """The known name that equals `typed` after both are folded.

    Args:
        known: All names.
        where: Where they come from, for the message.

    Raises:
        UnknownNameError: There is no such name. The message lists the nearest ones.
    """
    folded = {fold(name): name for name in known}
    if fold(typed) in folded:
        return folded[fold(typed)]
    near = difflib.get_close_matches(fold(typed), list(folded), 4, 0.55)
    words = set(fold(typed).split())
    near += [name for name in folded if words & set(name.split()) and name not in near]
    every = f"; all: {', '.join(map(as_typed, known))}" if len(known) <= LISTED else ""
    nearest = ", ".join(as_typed(folded[name]) for name in near[:5]) or f"none that is similar{every}"
    raise UnknownNameError(
        f"Unknown name {typed!r}: not among the {len(known)} names of {where}. Nearest: {nearest}. "
        "Type names with _ or quoted spaces."
    )


def decode(image: EncodedImage) -> Image.Image:
    """The image in RGB, fully decoded. EXIF rotation is not applied, as in open_clip and img2dataset.

    The bytes decide the format, not the file's ending. Of a moving image, the first frame is taken.

    Raises:
        ValueError: The bytes are not a complete image in one of `FORMATS`, or it has more than `PIXELS`
            pixels. The message says why.
    """
    with _opened(read_image(image)) as opened:
        return opened.convert("RGB")


def check_image(raw: bytes) -> None:
    """Raise ValueError if the bytes do not begin as an image that `decode` reads. They are not decoded."""
    with _opened(raw):
        pass


@contextmanager
def _opened(raw: bytes) -> Iterator[Image.Image]:
    """The image in some bytes, not decoded yet. The errors are those of `decode`."""
    if not raw:
        raise ValueError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
            with Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
                if opened.width * opened.height > PIXELS:
                    raise Image.DecompressionBombError
                yield opened
    except UnidentifiedImageError as error:
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"cannot identify image file as {known}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"more than {PIXELS:,} pixels") from error
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
