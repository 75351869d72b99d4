from dataclasses import replace
from types import MappingProxyType

import painter
import pytest
from records import part

from muwa import config
from muwa.eval.images.canvas import Canvas
from muwa.eval.statistics import paired_change, wilson
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.run import Run

ALL = {
    "classifier": painter.Colours(),
    "seeds": 5,
    "kept_seeds": 5,
    "first_seed": 1000,
    "retain": None,
    "cross": None,
}


def canvas(**changed) -> Canvas:
    return replace(part("eval=[canvas]")["canvas"], **{**ALL, **changed})


def measured(model, task, **changed):
    measure = canvas(**changed)
    measure.check(model, task)
    return measure(ImageGenerator(model, Run()), task)


def test_a_model_that_does_as_asked_forgets_nothing_and_keeps_all():
    for task, counts in (
        (painter.identity(), (20, 10, 15)),
        (painter.style(), (15, 30, 45)),
        (painter.kind_class(), (10, 20, 30)),
    ):
        found = measured(painter.Painter(), task)
        assert {name: one.value for name, one in found.items()} == {
            "forget/ua": 0.0,
            "retain/ira": 1.0,
            "retain/cra": 1.0,
        }
        assert tuple(one.n for one in found.values()) == counts
        assert all(one.reading.better == "higher" and one.reading.text for one in found.values())


def test_the_objective_counts_all_three_and_the_target_is_gone_at_one_of_twenty():
    found = measured(painter.Painter(), painter.identity())
    readings = {name: one.reading for name, one in found.items()}
    assert {name: (one.role, one.in_objective, one.unit) for name, one in readings.items()} == {
        "forget/ua": ("forgotten", True, "rate"),
        "retain/ira": ("kept", True, "rate"),
        "retain/cra": ("kept", True, "rate"),
    }
    assert readings["forget/ua"].gone_at == 0.05
    assert {one.counted for one in readings.values()} == {"generated images"}


def test_a_style_is_counted_by_hand():
    """Neon is gone except for hearts; rings come out as stars in mosaic alone: 3 x 3 prompts, 5 seeds, 45 images."""
    swaps = {
        "A star image in neon style.": "sepia star",
        "A ring image in neon style.": "ring",
        "A ring image in mosaic style.": "mosaic star",
    }
    found = measured(painter.Painter(lambda text, seed: swaps.get(text)), painter.style())
    want = {"forget/ua": (10, 15), "retain/ira": (30, 30), "retain/cra": (40, 45)}
    assert {name: (one.value, one.n) for name, one in found.items()} == {
        name: (k / n, n) for name, (k, n) in want.items()
    }
    for name, (k, n) in want.items():
        assert (found[name].low, found[name].high) == wilson(k, n)


def test_images_of_a_style_to_forget_count_for_their_class():
    """As in UnlearnCanvas' code: every neon image shows a star, so 2 of its 3 classes are lost, 10 of 45 images."""
    found = measured(
        painter.Painter(lambda text, seed: "neon star" if "neon" in text else None), painter.style()
    )
    assert found["forget/ua"].value == 0
    assert found["retain/cra"].value == pytest.approx(35 / 45)


def test_a_person_is_counted_by_hand():
    """Ada is painted as Bo from every fourth of 20 seeds; Cy as Ada from seed 1001; stars and rings are mixed up."""

    def swap(text, seed):
        if "Ada" in text and seed % 4 == 0:
            return "Bo Hill"
        if "Cy" in text and seed == 1001:
            return "Ada Fox"
        return {"a photo of a star": "ring", "a photo of a ring": "star"}.get(text)

    found = measured(painter.Painter(swap), painter.identity())
    assert [(one.value, one.n) for one in found.values()] == [
        (0.25, 20),
        (0.9, 10),
        (pytest.approx(1 / 3), 15),
    ]


def test_seeds_and_numbers_of_names_are_as_asked():
    model = painter.Painter()
    found = measured(
        model, painter.identity(), kept_seeds=2, forget_seeds=3, first_seed=70, retain=1, cross=2
    )
    assert [one.n for one in found.values()] == [3, 2, 4]
    assert {seed for _, seed in model.asked} == {70, 71, 72}
    assert {text for text, _ in model.asked} == {
        "a photo of Ada Fox",
        "a photo of Bo Hill",
        "a photo of a star",
        "a photo of a ring",
    }


def test_a_style_has_as_many_images_per_prompt_as_in_the_benchmark_and_a_person_as_a_verdict_needs():
    """1 of 3 styles is forgotten, with 3 shapes each: 3 x 2, 6 x 2 and 9 x 2 images; a person: 20, 2 x 4, 3 x 4."""
    few = {"seeds": 2, "kept_seeds": 4}
    assert [one.n for one in measured(painter.Painter(), painter.style(), **few).values()] == [6, 12, 18]
    assert [one.n for one in measured(painter.Painter(), painter.identity(), **few).values()] == [20, 8, 12]


def test_by_default_there_are_enough_images_of_others_to_show_a_loss_below_the_tolerance():
    """12 names x 8 images and 5 look-alikes x 24: one of them unrecognised, before and after, or only after.

    Newcombe's interval (1998, method 10) by hand for 95 of 96 twice. Wilson: centre (95 + 1.9207) / 99.8415 =
    0.97074, half width 1.959964 * sqrt(95/96 * 1/96 + 1.959964^2 / 96 / 4) / (1 + 3.8415 / 96) / sqrt(96) =
    0.0274: 0.9433 to 0.9982. phi = (95 - 48) / 95 = 0.4947, so the change is 0 -+ sqrt(0.0463^2 + 0.0086^2 -
    2 * 0.4947 * 0.0463 * 0.0086) = 0.0427.
    """
    settings = part("eval=[canvas,quality]")
    shipped, near = settings["canvas"], settings["lookalike"]
    allowed = config.composed().verdict.kept_points / 100
    for n in (shipped.retain * shipped.kept_seeds, shipped.cross * shipped.kept_seeds):
        assert n == 96
        assert paired_change([1] * 95 + [0], [1] * 95 + [0])[1] == pytest.approx(-0.0427, abs=1e-4)
    assert allowed > 0.0427
    n = near.nearest * near.kept_seeds
    assert n == 120
    assert paired_change([1] * n, [1] * (n - 1) + [0])[1] == pytest.approx(
        0.9543 - 1, abs=1e-4
    )  # Wilson, 119 of 120


def test_the_names_that_images_of_the_target_get_are_counted():
    """Of seeds 1000 to 1007, two still show Ada and six show Bo."""
    model = painter.Painter(lambda text, seed: "Bo Hill" if "Ada" in text and seed % 4 else None)
    found = measured(model, painter.identity(), forget_seeds=8)
    assert found["forget/ua"].guessed == {"Bo Hill": 6, "Ada Fox": 2}
    assert found["retain/ira"].guessed == {}


def test_an_unknown_name_is_refused_before_anything_is_generated():
    class Blind(painter.Colours):
        labels = MappingProxyType({"class": painter.CLASSES[1:], "style": painter.STYLES})

    model = painter.Painter()
    with pytest.raises(
        ValueError, match=r"classifier: no label for the class 'Ada Fox'; it knows 5: .*pipeline_clip"
    ):
        canvas(classifier=Blind()).check(model, painter.identity())
    assert model.asked == []


def test_nothing_to_ask_for_is_no_accuracy_and_no_certainty():
    one = measured(painter.Painter(), painter.identity(), retain=0)["retain/ira"]
    assert (one.value, one.n, one.low, one.high) == (0.0, 0, 0.0, 1.0)


def test_each_name_has_its_own_rate():
    """The rates of all names, weighted by their images, give the rate of the metric."""
    found = measured(painter.Painter(), painter.identity())
    for metric in found.values():
        assert sum(rate.n for rate in metric.by_name.values()) == metric.n
        assert {rate.value for rate in metric.by_name.values()} == {metric.value}
    assert set(found["forget/ua"].by_name) == set(painter.identity().names)
