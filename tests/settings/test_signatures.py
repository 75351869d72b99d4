"""Settings against the signatures that take them: worked by hand, with the message that a user sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_origin

import pytest

from muwa.settings.signatures import check, check_value
from muwa.types import ranges
from muwa.types.ranges import Count, Fractions, Names, Percent, Share, Texts


@dataclass(frozen=True)
class Inner:
    count: Count


@dataclass(frozen=True)
class Threads:
    count: Count


@dataclass(frozen=True)
class Record(Inner):
    share: Share | None
    names: str | Sequence[str]
    texts: Mapping[str, Sequence[str]]
    inner: Inner
    make: Callable[[], int] | None
    step: float


GOOD = {
    "count": 1, "share": 0.5, "names": "ada", "texts": {"a": ["b"]}, "inner": partial(Inner, count=2), "make": None, "step": 1,
}  # fmt: skip


def checked(**changed):
    check({"group": partial(Record, **{**GOOD, **changed})}, whole=True)


@pytest.mark.parametrize("changed", [
    {}, {"share": None}, {"share": 0}, {"share": 1.0}, {"names": ["a", "b"]}, {"texts": {}}, {"make": partial(sorted)}, {"step": -1e30},
])  # fmt: skip
def test_what_fits_passes(changed):
    """Nested records are checked last: the only fault found is the one in `inner`."""
    with pytest.raises(ValueError, match="^group.inner.count: got 0, want at least 1$"):
        checked(**changed, inner=partial(Inner, count=0))
    checked(**changed)


@pytest.mark.parametrize(("changed", "said"), [
    ({"count": 0}, "group.count: got 0, want at least 1"),
    ({"count": True}, "group.count: got True, want a whole number"),
    ({"count": 1.0}, "group.count: got 1.0, want a whole number"),
    ({"count": "2"}, "group.count: got '2', want a whole number"),
    ({"count": None}, "group.count: got None, want a whole number"),
    ({"share": 1.5}, "group.share: got 1.5, want at most 1"),
    ({"share": float("nan")}, "group.share: got nan, want a finite number"),
    ({"step": float("inf")}, "group.step: got inf, want a finite number"),
    ({"step": "fast"}, "group.step: got 'fast', want a number"),
    ({"names": 2880}, "group.names: got 2880, want a text or a list"),
    ({"names": [1]}, r"group.names: got \[1\], want a text"),
    ({"texts": ["a"]}, r"group.texts: got \['a'\], want a mapping"),
    ({"inner": partial(Inner, count=-1)}, "group.inner.count: got -1, want at least 1"),
    ({"inner": partial(Inner)}, r"group.inner: .*test_signatures.Inner\(\) missing a required argument: 'count'"),
    ({"stop": 1}, r"group: .*test_signatures.Record\(\) got an unexpected keyword argument 'stop'"),
])  # fmt: skip
def test_what_does_not_fit_is_named_with_its_key(changed, said):
    with pytest.raises(ValueError, match=said):
        checked(**changed)


@pytest.mark.parametrize(("annotation", "value", "said"), [
    (Names, "", "got '', want a whole number or a text that is not empty or a list"),
    (Texts, "ada", "got 'ada', want a list"),
    (Texts, [], r"got \[\], want a list that is not empty"),
    (Fractions, "0.5", "got '0.5', want a list"),
    (Percent, 3, "got 3, want 1, 5, 10 or 15"),
    (Percent, 10**400, r"got 10+\.\.\., want a smaller number"),
    (Mapping[str, int], {1: 2}, r"got \{1: 2\}, want a text as each key"),
    (Mapping[str, Count], {"a": 0}, "got 0, want at least 1"),
    (Threads, 3, "got 3, want a mapping"),
    (set[str], "a", "got 'a', want a value of another kind"),
])  # fmt: skip
def test_kinds_and_choices_in_our_words(annotation, value, said):
    with pytest.raises(ValueError, match=f"key(.a)?: {said}$"):
        check_value("key", annotation, value)


ANNOTATIONS = {name: found for name, found in vars(ranges).items() if get_origin(found) or name == "Text"}
ODD = ("", "{", "\0", 3, -1, 1.5, float("nan"), float("inf"), True, None, 10**400, -(10**12), 1e30, [], [""], [1], [None],
       [True], [[]], ["a", 1], {}, {"a": 1}, {"a": []}, {"a": "x"}, {1: ["a"]}, {"a": ["", 1]})  # fmt: skip
THEIRS = (
    "Input",
    "instance",
    "valid ",
    "Sequence",
    "Mapping",
    "Value ",
    "should",
    "another kind",
    "dictionary",
)


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_no_words_of_pydantic_get_through(name):
    """Of every annotation of `muwa.types.ranges`, with values of every kind that a command line can give."""
    refused = []
    for value in ODD:
        try:
            check_value("key", ANNOTATIONS[name], value)
        except ValueError as error:
            refused.append(str(error).partition(", want ")[2])
    assert refused
    assert all(refused)
    assert not [said for said in refused for word in THEIRS if word in said]


def test_a_function_may_get_the_rest_later():
    def load(*, path: str, device: str):
        pass

    check({"model": partial(load, path="here")}, whole=False)
    with pytest.raises(ValueError, match="model.path: got 3, want a text"):
        check({"model": partial(load, path=3)}, whole=False)
