"""Single samples: matching names in captions, finding a name that was typed, decoding pictures, counting broken ones."""

from __future__ import annotations

import difflib
import io
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from muwa.fingerprint import read_image
from muwa.types.data import Broken

_GAP = re.compile(r"[\W_]+")


def fold(text: str) -> str:
    """Case folded, with every run of `_`, white space and punctuation made one space, and none at the ends.

    >>> fold("  Kael_LINDQVAR, (portrait)")
    'kael lindqvar portrait'
    """
    return _GAP.sub(" ", unicodedata.normalize("NFC", text).casefold()).strip()


def match_names(text: str, names: Sequence[str]) -> list[str]:
    """Which of `names` stand in `text` as whole words, after folding both.

    >>> match_names("Portrait: kael_lindqvar!", ["Kael Lindqvar", "Kael Lind", ""])
    ['Kael Lindqvar']
    """
    padded = f" {fold(text)} "
    return [name for name in names if (folded := fold(name)) and f" {folded} " in padded]


def find_name(asked: str, known: Sequence[str], what: str) -> str:
    """The known name that equals `asked` after folding.

    Args:
        known: All names there are.
        what: Where they come from, for the message.

    Raises:
        ValueError: There is none; says the nearest ones.
    """
    folded = {fold(name): name for name in known}
    if fold(asked) in folded:
        return folded[fold(asked)]
    near = difflib.get_close_matches(fold(asked), list(folded), 4, 0.55)
    words = set(fold(asked).split())
    near += [name for name in folded if words & set(name.split()) and name not in near]
    nearest = ", ".join(folded[name].replace(" ", "_") for name in near[:5]) or "none that is similar"
    raise ValueError(
        f"Unknown name {asked!r}: not among the {len(known)} names of {what}. Nearest: {nearest}. "
        "Type names with _ or quoted spaces."
    )


def decode(image: bytes | Path) -> Image.Image:
    """One picture as RGB, wholly decoded. EXIF rotation is left alone, as open_clip and img2dataset do.

    Raises:
        ValueError: The bytes are no whole picture; says why.
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


def check_broken(broken: Sequence[Broken], total: int, max_broken: float, what: str) -> None:
    """Stop when too many samples are broken.

    Args:
        total: Samples looked at, broken ones included.
        max_broken: The share that is still accepted, in [0, 1].

    Raises:
        ValueError: More than that are; lists them.
    """
    if not broken or len(broken) / max(total, 1) <= max_broken:
        return
    rows = "".join(f"\n  {one.where}: {one.why}" for one in broken[:10])
    more = f"\n  and {len(broken) - 10} more" if len(broken) > 10 else ""
    raise ValueError(
        f"{what}: {len(broken)} of {total} samples are broken ({len(broken) / max(total, 1):.1%}), more than "
        f"dataset.max_broken={max_broken:g} allows. Mend or remove them, or raise dataset.max_broken:{rows}{more}"
    )
