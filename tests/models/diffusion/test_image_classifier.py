"""What a classifier recognises in an image, which labels name a concept, and what is refused."""

import pytest
import tiny_sd
import torch

from muwa import config
from muwa.data.labelled import labelled
from muwa.data.prompts import retained_names
from muwa.data.unlearncanvas import PLAIN
from muwa.eval.images.canvas import Canvas
from muwa.fingerprint import fingerprint
from muwa.models.diffusion.image_classifier import first_guesses, labels_naming, recognised
from muwa.types.data import Classes, Pairs, Split, Task
from muwa.types.image_requests import ImageRequest


def request(concept: str, domain: str = "class") -> ImageRequest:
    return ImageRequest("x", 0, domain, concept, "forget")


def greys(*values: int) -> torch.Tensor:
    return torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in values])


def test_a_label_that_contains_the_concept_names_it_unless_one_equals_it() -> None:
    assert labels_naming(("Red_Star", "blue star", "starfish"), "star") == {0, 1}
    assert labels_naming(("star",), "red star") == set()
    assert labels_naming(("Artist_Sketch", "Sketch"), "sketch") == {1}


def test_first_guess_and_first_k() -> None:
    images = greys(0, 100, 250)
    classifier = tiny_sd.Greys(("dark", "middle", "light"))
    requests = [request(name) for name in ("dark", "light", "light")]
    assert recognised(images, requests, classifier) == [True, False, True]
    assert recognised(images, requests, classifier, 2) == [True, False, True]  # grey 100: middle, dark, light
    assert recognised(images, requests, classifier, 9) == [True, True, True]


def test_a_guess_that_names_one_of_the_kind_is_told_as_the_kind() -> None:
    """A yellow and a red heart are hearts when hearts are asked for; a star is named as the label names it."""
    classifier = tiny_sd.Greys(("yellow heart", "blue star", "red heart"))
    asked = [request("heart"), request("heart"), request("heart"), request("yellow heart")]
    found = first_guesses(greys(0, 100, 250, 250), asked, classifier)
    assert found == ["heart", "blue star", "heart", "red heart"]


def test_each_domain_has_its_own_labels() -> None:
    class Two(tiny_sd.Greys):
        def __init__(self):
            self.labels = {"class": ("dark", "light"), "style": ("light", "dark")}

    requests = [request("dark"), request("dark", "style"), request("light", "style")]
    assert recognised(greys(0, 0, 0), requests, Two()) == [True, False, True]


def test_what_has_no_label_is_refused_with_what_to_choose() -> None:
    classifier = tiny_sd.Greys(("dark", "light"))
    classifier.check([request("dark"), request("light")])
    with pytest.raises(
        ValueError, match=r"no label for the style 'neon'; it knows 0: none\. Choose a classifier"
    ):
        classifier.check([request("dark"), request("neon", "style")])
    with pytest.raises(
        ValueError, match=r"'Elon Musk'; it knows 2: dark, light\. Choose .*classifier=pipeline_clip"
    ):
        classifier.check([request("Elon Musk")])


def styles(*names: str) -> Task:
    """A task of kind "style" that forgets the first name; its utility images show cats and dogs."""
    shown = Classes(names, ("{}",)), Classes(("cats", "dogs"), ("{}",))
    forget, retain = (
        labelled({one: [one.encode()] for one in some}, shown[0]) for some in (names[:1], names[1:])
    )
    split = Split(forget, retain, labelled({"cats": [b"1"], "dogs": [b"2"]}, shown[1]))
    pairs = Pairs((), (), ())
    prompts = ("A {class} image in {style} style.",)
    return Task("style", names[:1], {names[0]: pairs}, pairs, (), split, split, prompts=prompts)


class TwoDomains(tiny_sd.Greys):
    def __init__(self, labels: tuple[str, ...]):
        self.labels = {"style": labels, "class": ("cats", "dogs", "sea")}


def test_names_that_the_classifier_does_not_know_are_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    task = styles("neon", "sketch", "Van Gogh", "photo", "new style")
    known = TwoDomains(("Neon", "Sketch", "Van_Gogh", "photo")).limited(task)
    assert retained_names(known) == ["sketch", "Van Gogh", "photo"]
    assert len(known.eval.retain) == 3
    assert known.eval.utility == task.eval.utility
    assert caplog.messages == [
        "classifier: kept names that it has no label for, so that no image of them is asked for: 1 (new style)"
    ]
    assert TwoDomains(("neon", "sketch", "van gogh", "photo", "new style")).limited(task) is task


def test_a_classifier_of_other_names_is_refused_as_before() -> None:
    task = styles("neon", "a", "b", "c", "d")
    for labels in (("neon",), ("a", "b", "neon")):
        assert TwoDomains(labels).limited(task) is task
    metric = Canvas(
        TwoDomains(("neon", "a", "b")),
        seeds=1,
        forget_seeds=1,
        kept_seeds=1,
        first_seed=0,
        retain=None,
        cross=None,
    )
    with pytest.raises(ValueError, match="no label for the style 'c'"):
        metric.check(None, task)
    enough = TwoDomains(("neon", "a", "b", "c"))
    Canvas(enough, seeds=1, forget_seeds=1, kept_seeds=1, first_seed=0, retain=None, cross=None).check(
        None, task
    )


def test_the_benchmarks_classifier_knows_the_benchmarks_styles_and_photographs() -> None:
    labels = config.part("classifier=unlearncanvas").keywords["domains"]["style"].keywords["labels"]
    assert len(labels) == 51
    assert labels_naming(labels, PLAIN) == {labels.index("photo")}
    sixty = [*(one.replace("_", " ").lower() for one in labels), *(f"other {i}" for i in range(10))]
    known = TwoDomains(tuple(labels)).limited(styles(*sixty))
    assert len(retained_names(known)) == 50


def test_a_classifier_is_the_loader_of_itself() -> None:
    classifier = tiny_sd.Greys(("dark", "light"))
    assert classifier(None, None) is classifier


def test_a_measure_is_known_by_the_content_of_its_classifier() -> None:
    def canvas(*names: str):
        return Canvas(tiny_sd.Greys(names), 1, 1, 1, 0, None, None)

    assert fingerprint(canvas("dark", "light")) == fingerprint(canvas("dark", "light"))
    assert fingerprint(canvas("dark", "light")) != fingerprint(canvas("light", "dark"))
