"""Whether an answer in words is right, a refusal or a wrong name; decided by rules, not by another model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from muwa.data.samples import fold

FUZZY = 0.85  # a run of words counts as a misspelt name if difflib's ratio of the two is at least this
REFUSALS = (
    "do not know",
    "don t know",
    "not know",
    "cannot",
    "can t",
    "unable",
    "not able",
    "not sure",
    "unknown",
    "unclear",
    "not possible",
    "sorry",
    "no information",
    "not provided",
    "does not provide",
    "doesn t provide",
    "unidentified",
)
RULES = ("name", "exact", "choice", "yes_no", "contains")


def names_it(answer: str, accepted: Sequence[str], *, fuzzy: float = FUZZY) -> bool:
    """Whether an answer contains an accepted name as whole words, or a run of words that is nearly one.

    >>> names_it("This is Kael Lindqvar.", ["Kael Lindqvar"])
    True
    >>> names_it("kael lindqvaar", ["Kael Lindqvar"])
    True
    >>> names_it("Kael", ["Kael Lindqvar"])
    False
    >>> names_it("a redstart", ["red"])
    False
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
    """Whether an answer contains an accepted name, exactly, or misspelt and not exactly one of `others`.

    >>> named("Rachel Bilson", ["Rachel Wilson"], [])
    True
    >>> named("Rachel Bilson", ["Rachel Wilson"], ["Rachel Bilson"])
    False
    """
    if names_it(answer, accepted, fuzzy=1):
        return True
    return names_it(answer, accepted) and not names_it(answer, others, fuzzy=1)


def is_right(answer: str, accepted: Sequence[str], rule: str, others: Sequence[str] = ()) -> bool:
    """Whether an answer is one of the accepted, by a rule.

    Args:
        others: Other names that could have been answered; for the rule "name" only.
        rule: How answers are compared:

            - "name": the answer contains an accepted name (`named`).
            - "exact": it equals an accepted text, except for case, punctuation and articles. The rule of GQA
              and MME is stricter.
            - "choice": the first letter in it that is written like an option ("B", "(B)", "B. a cat") is
              accepted, or it equals an accepted text.
            - "yes_no": the first "yes" or "no" in it is accepted.
            - "contains": it contains an accepted text as whole words, except for case and punctuation.

    Raises:
        ValueError: Unknown rule.

    >>> is_right("The red star.", ["red star"], "exact")
    True
    >>> is_right("(B) a cat", ["B"], "choice")
    True
    >>> is_right("Yes, it is.", ["yes"], "yes_no")
    True
    >>> is_right("It is not known", ["no"], "yes_no")
    False
    >>> is_right("She was born in 1971.", ["1971"], "contains")
    True
    """
    if rule == "name":
        return named(answer, accepted, others)
    if rule == "exact":
        return _bare(answer) in {_bare(one) for one in accepted}
    if rule == "choice":
        letter = re.search(r"(?<![A-Za-z'])([A-J])(?=[.):,]|\s*$)", answer.strip())
        return (letter[1] if letter else "") in accepted or _bare(answer) in {
            _bare(one) for one in accepted
        } - {""}
    if rule == "yes_no":
        words = re.findall(r"\b(?:yes|no)\b", answer.casefold())
        return bool(words) and words[0] in {one.casefold() for one in accepted}
    if rule == "contains":
        return names_it(answer, accepted, fuzzy=1)
    raise ValueError(f"rule: got {rule!r}, want one of {', '.join(RULES)}")


def refuses(answer: str) -> bool:
    """Whether an answer says that the model does not know, or is empty.

    >>> refuses("I don't know.")
    True
    >>> refuses("Kael Lindqvar")
    False
    """
    folded = f" {fold(answer)} "
    return not folded.strip() or any(f" {one} " in folded for one in REFUSALS)


def verdict(answer: str, accepted: Sequence[str], others: Sequence[str]) -> str:
    """The first that fits an answer: "named", "wrong_name", "refused", else "other".

    Args:
        others: Other names that could have been answered.
    """
    if named(answer, accepted, others):
        return "named"
    if names_it(answer, others, fuzzy=1):
        return "wrong_name"
    return "refused" if refuses(answer) else "other"


def name_in(answer: str, names: Sequence[str]) -> str:
    """The first of `names` that an answer contains, exactly; "" if it contains none.

    >>> name_in("I think it is Bo Hill.", ["Ada Fox", "Bo Hill"]), name_in("I do not know", ["Ada Fox"])
    ('Bo Hill', '')
    """
    return next((name for name in names if names_it(answer, [name], fuzzy=1)), "")


def _bare(text: str) -> str:
    return " ".join(word for word in fold(text).split() if word not in ("a", "an", "the"))
