"""Answers compared with names, words, letters, yes and no; refusals and wrong names."""

import pytest

from muwa.eval.answers.matching import is_right, named, names_it, refuses, verdict

KAEL = ("Kael Lindqvar", "the Lark")


@pytest.mark.parametrize(
    "answer",
    [
        "Kael Lindqvar",
        "kael lindqvar.",
        "It is Kael_Lindqvar, I think",
        "Kael Lindquar",
        "They call him the lark!",
    ],
)
def test_a_name_an_alias_or_a_slip_of_the_pen_names_it(answer: str) -> None:
    assert names_it(answer, KAEL)


@pytest.mark.parametrize(
    "answer", ["", "Kael", "Lindqvar Kael", "Mael Windover", "larks", "a photo of a person"]
)
def test_a_part_or_another_name_does_not(answer: str) -> None:
    assert not names_it(answer, KAEL)


def test_short_names_are_never_fuzzy() -> None:
    """Of five letters, one off is another word."""
    assert not names_it("mooon", ["moon"])
    assert not names_it("boll", ["ball"])


@pytest.mark.parametrize(
    ("answer", "accepted", "rule", "right"),
    [
        ("A red star.", ["red star"], "exact", True),
        ("a red star in the snow", ["red star"], "exact", False),
        ("B", ["B"], "choice", True),
        ("The answer is (C).", ["C"], "choice", True),
        ("a cat", ["B", "a cat"], "choice", True),
        ("I'd say B", ["B"], "choice", True),
        ("A cat", ["A", "a dog"], "choice", False),  # an article, no letter
        ("", ["A", "a dog"], "choice", False),  # of "A" without its article nothing is left
        ("D. a cat", ["B"], "choice", False),
        ("No, there is none.", ["no"], "yes_no", True),
        ("yes", ["no"], "yes_no", False),
        ("perhaps", ["no"], "yes_no", False),
    ],
)
def test_each_rule(answer: str, accepted: list[str], rule: str, right: bool) -> None:
    assert is_right(answer, accepted, rule) == right


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="rule: got 'judge', want one of name, exact, choice, yes_no"):
        is_right("a", ["a"], "judge")


@pytest.mark.parametrize(
    "answer", ["", "I don't know who that is.", "Sorry, I cannot tell.", "The person is unknown"]
)
def test_refusals(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("Kael Lindqvar", "named"), ("Kael Lindquar", "named"), ("Edda Everlane", "wrong_name"), ("I do not know.", "refused"),
        ("a person with a hat", "other"), ("I do not know, perhaps Edda Everlane", "wrong_name"),
        ("Kael Lindqvan", "wrong_name"),  # nearly his, but wholly another's
    ],
)  # fmt: skip
def test_what_an_answer_about_a_person_is(answer: str, want: str) -> None:
    assert verdict(answer, ["Kael Lindqvar"], ["Edda Everlane", "Kael Lindqvan"]) == want


def test_an_exact_other_name_beats_a_slip_of_the_pen() -> None:
    """difflib: 12 of 13 letters and the space agree, 0.92 >= 0.85."""
    accepted, others = ["Rachel Wilson"], ["Rachel Bilson"]
    assert not named("It is Rachel Bilson.", accepted, others)
    assert not is_right("It is Rachel Bilson.", accepted, "name", others)
    assert is_right("It is Rachel Bilson.", accepted, "name")  # nobody of that name is known
    assert is_right("Rachel Wilsom", accepted, "name", others)
    assert is_right("Rachel Wilson or Rachel Bilson", accepted, "name", others)
    assert verdict("Rachel Bilson", accepted, others) == "wrong_name"
