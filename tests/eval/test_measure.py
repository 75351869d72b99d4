from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import tiny
import tiny_vlm
from records import part

from muwa.cache.store import Store
from muwa.eval.base import Measure
from muwa.eval.clip.accuracy import Forget, Retain
from muwa.eval.clip.calibration import Calibration
from muwa.eval.measure import check_measures, evaluate, fitting
from muwa.models.clip.embeddings import Features
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run
from muwa.types.metric import Metric, Reading


@dataclass(frozen=True)
class CountOfImages(Measure):
    """Somebody's own measure: a class that says what it looks at, and gives metrics."""

    observes: ClassVar = Features

    def __call__(self, features, task):
        return {
            "own/images": Metric(
                float(len(features.images(task.eval.forget))), 2, reading=Reading("images", unit="count")
            )
        }


@dataclass(frozen=True)
class Picky(Measure):
    """Refuses what it was made with."""

    observes: ClassVar = ImageGenerator

    why: str = "eval.picky.why: got nothing, want something"

    def check(self, model, task):
        raise ValueError(self.why)

    def __call__(self, generator, task):
        raise AssertionError("called although it refused")


@dataclass(frozen=True)
class OfAnswers(Measure):
    observes: ClassVar = QuestionAnswering

    def __call__(self, answering, task):
        raise AssertionError("not to be called here")


EVERY = {"forget": Forget(), "picky": Picky(), "answers": OfAnswers(), "own": CountOfImages()}


def test_a_measure_of_another_family_is_refused_by_its_name():
    """The refusal comes before the measure's own: `picky` refuses everything."""
    check_measures(tiny.clip(), tiny.task(), {"forget": Forget()})
    want = r"^eval.picky: got a CLIP \(model=clip, .*\) \(tiny\), want a text-to-image model"
    with pytest.raises(ValueError, match=want):
        check_measures(tiny.clip(), tiny.task(), {"forget": Forget(), "picky": Picky()})
    with pytest.raises(
        ValueError, match=r"^eval.answers: got a CLIP .*\(tiny\), want a vision-language model"
    ):
        check_measures(tiny.clip(), tiny.task(), {"answers": OfAnswers()})
    with pytest.raises(
        ValueError, match=r"^eval.forget: got a vision-language model .*, want a CLIP \(model=clip"
    ):
        check_measures(tiny_vlm.vlm(), tiny.task(), {"forget": Forget()})


def test_a_measure_checks_its_own_settings():
    measures = {"forget": Forget(), "calibration": Calibration(bins=0)}
    with pytest.raises(ValueError, match=r"^eval.calibration.bins: got 0, want at least 1"):
        check_measures(tiny.clip(), tiny.task(), measures)


def test_files_of_benchmarks_are_read_before_any_compute(tmp_path):
    def check(path):
        measures = {"benchmarks": replace(part("eval=[benchmarks]")["benchmarks"], gqa=str(path))}
        check_measures(tiny_vlm.vlm(), tiny.task(), measures)

    want = r"eval\.benchmarks\.gqa: .*absent\.json is not there; give the path"
    with pytest.raises(FileNotFoundError, match=want):
        check(tmp_path / "absent.json")
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(ValueError, match=r"q\.json: no questions in it"):
        check(tmp_path / "q.json")


def test_of_a_list_for_three_families_those_of_the_model_are_taken():
    assert list(fitting(tiny.clip(), EVERY)) == ["forget", "own"]
    assert list(fitting(tiny_vlm.vlm(), EVERY)) == ["answers"]
    check_measures(tiny.clip(), tiny.task(), fitting(tiny.clip(), EVERY))


@pytest.mark.parametrize("left_out", ["picky", "answers"])
def test_a_list_for_two_families_is_somebodys_own_choice(left_out):
    """It is left as it is, and `check_measures` says what does not fit."""
    two = {name: measure for name, measure in EVERY.items() if name != left_out}
    assert fitting(tiny.clip(), two) == two
    with pytest.raises(ValueError, match=r"got a CLIP .* want a"):
        check_measures(tiny.clip(), tiny.task(), two)


def test_nothing_to_measure_is_nothing():
    assert fitting(tiny.clip(), {}) == {}
    assert evaluate(tiny.clip().observe(Run()), tiny.task(), {}) == {}


def test_metrics_come_in_the_order_of_their_measures(tmp_path):
    measures = {"forget": Forget(), "own": CountOfImages(), "retain": Retain()}
    found = evaluate(tiny.clip().observe(Run(Store(tmp_path))), tiny.task(), measures)
    assert list(found) == ["forget/top1", "forget/top5", "own/images", "retain/top1", "retain/top5"]
    assert found["own/images"].value == 2
    assert evaluate(tiny.clip().observe(Run()), tiny.task(), measures) == found


def test_the_time_of_each_measure_is_noted_and_added_up(tmp_path):
    store, measures = Store(tmp_path), {"forget": Forget(), "own": CountOfImages()}
    evaluate(tiny.clip().observe(Run(store)), tiny.task(), measures)
    first = {name: took for name, took in store.seconds.items() if name.startswith("eval/")}
    assert list(first) == ["eval/forget", "eval/own"]
    assert all(took > 0 for took in first.values())
    evaluate(tiny.clip().observe(Run(store)), tiny.task(), measures)
    assert all(store.seconds[name] > took for name, took in first.items())
