"""Whether an answer in words is right, without a judge model: exact, alias, fuzzy; refusals and wrong names told apart."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from muwa.data.samples import fold

FUZZY = 0.85  # least similarity (difflib's ratio) of a run of words to a name that counts as that name, misspelt
REFUSALS = (
    "do not know", "don t know", "not know", "cannot", "can t", "unable", "not able", "not sure", "unknown", "unclear",
    "not possible", "sorry", "no information", "not provided", "does not provide", "doesn t provide", "unidentified",
)  # fmt: skip
RULES = ("name", "exact", "choice", "yes_no")


def names_it(answer: str, accepted: Sequence[str], *, fuzzy: float = FUZZY) -> bool:
    """Whether an answer contains one of the accepted names as whole words, or a run of words that is nearly one.

    >>> names_it("This is Kael Lindqvar.", ["Kael Lindqvar"]), names_it("kael lindqvaar", ["Kael Lindqvar"])
    (True, True)
    >>> names_it("Kael", ["Kael Lindqvar"]), names_it("a redstart", ["red"])
    (False, False)
    """
    words = fold(answer).split()
    for name in map(fold, accepted):
        count = len(name.split())
        for i in range(len(words) - count + 1):
            run = " ".join(words[i : i + count])
            if run == name or (
                fuzzy < 1 and len(name) > 5 and difflib.SequenceMatcher(None, run, name).ratio() >= fuzzy
            ):
                return True
    return False


def named(answer: str, accepted: Sequence[str], others: Sequence[str]) -> bool:
    """Whether an answer names one of the accepted, exactly, or nearly so without being exactly one of `others`.

    >>> named("Rachel Bilson", ["Rachel Wilson"], []), named("Rachel Bilson", ["Rachel Wilson"], ["Rachel Bilson"])
    (True, False)
    """
    if names_it(answer, accepted, fuzzy=1):
        return True
    return names_it(answer, accepted) and not names_it(answer, others, fuzzy=1)


def is_right(answer: str, accepted: Sequence[str], rule: str, others: Sequence[str] = ()) -> bool:
    """Whether an answer is one of the accepted, by a rule.

    Args:
        others: Other names that could have been said; of rule "name" only.
        rule: "name": names it (`named`). "exact": equals one, but for case, punctuation and articles (GQA, MME's own
            rule is stricter). "choice": its first letter that stands as an option's ("B", "(B)", "B. a cat") is accepted,
            or it equals an accepted text. "yes_no": its first "yes" or "no".

    Raises:
        ValueError: Unknown rule.

    >>> is_right("The red star.", ["red star"], "exact"), is_right("(B) a cat", ["B"], "choice")
    (True, True)
    >>> is_right("Yes, it is.", ["yes"], "yes_no"), is_right("It is not known", ["no"], "yes_no")
    (True, False)
    """
    if rule == "name":
        return named(answer, accepted, others)
    if rule == "exact":
        return _bare(answer) in {_bare(one) for one in accepted}
    if rule == "choice":
        letter = re.search(r"(?<![A-Za-z'])([A-J])(?=[.):,]|\s*$)", answer.strip())
        return (letter[1] if letter else "") in accepted or _bare(answer) in {_bare(one) for one in accepted} - {""}
    if rule == "yes_no":
        said = re.findall(r"\b(?:yes|no)\b", answer.casefold())
        return bool(said) and said[0] in {one.casefold() for one in accepted}
    raise ValueError(f"rule: got {rule!r}, want one of {', '.join(RULES)}")


def refuses(answer: str) -> bool:
    """Whether an answer says that it has none.

    >>> refuses("I don't know."), refuses("Kael Lindqvar")
    (True, False)
    """
    said = f" {fold(answer)} "
    return not said.strip() or any(f" {one} " in said for one in REFUSALS)


def verdict(answer: str, accepted: Sequence[str], others: Sequence[str]) -> str:
    """What an answer to a question of identity is: "named" | "refused" | "wrong_name" | "other", the first that fits.

    Args:
        others: Other names that could have been said.
    """
    if named(answer, accepted, others):
        return "named"
    if names_it(answer, others, fuzzy=1):
        return "wrong_name"
    return "refused" if refuses(answer) else "other"


def _bare(text: str) -> str:
    return " ".join(word for word in fold(text).split() if word not in ("a", "an", "the"))
