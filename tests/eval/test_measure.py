from functools import partial

import pytest
import tiny
import tiny_vlm

from muwa.cache.store import Store
from muwa.eval.answers.accuracy import answers
from muwa.eval.answers.benchmarks import benchmarks
from muwa.eval.clip.accuracy import forget
from muwa.eval.images.canvas import answers as canvas
from muwa.eval.measure import check_metrics, evaluate, fitting
from muwa.types.metric import Metric


def test_a_metric_of_another_family_is_refused_by_its_name():
    check_metrics(tiny.clip(), {"forget": forget})
    with pytest.raises(ValueError, match=r"^eval.canvas: measures a text-to-image model, not tiny; leave canvas out"):
        check_metrics(tiny.clip(), {"forget": forget, "canvas": partial(canvas, seeds=1)})
    with pytest.raises(ValueError, match=r"^eval.answers: measures a vision-language model, not tiny"):
        check_metrics(tiny.clip(), {"answers": answers})


def test_of_metrics_of_all_families_those_of_the_model_are_taken():
    every = {"forget": forget, "canvas": partial(canvas, seeds=1), "answers": answers, "own": lambda subject, task: {}}
    assert list(fitting(tiny.clip(), every)) == ["forget", "own"]
    assert list(fitting(tiny_vlm.vlm(), every)) == ["answers", "own"]
    two = {"forget": forget, "canvas": canvas}  # somebody's own choice: `check_metrics` says what does not fit
    assert fitting(tiny.clip(), two) == two


def test_files_of_benchmarks_are_read_before_any_compute(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"eval\.benchmarks\.gqa: .*absent\.json is not there; give the path"):
        check_metrics(tiny_vlm.vlm(), {"benchmarks": partial(benchmarks, gqa=str(tmp_path / "absent.json"))})
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(ValueError, match=r"q\.json: no questions in it"):
        check_metrics(tiny_vlm.vlm(), {"benchmarks": partial(benchmarks, gqa=str(tmp_path / "q.json"))})


def test_a_function_of_ones_own_is_a_metric(tmp_path):
    def pictures(features, task):
        return {"n": Metric(float(len(features.images(task.eval.forget))), 2)}

    check_metrics(tiny.clip(), {"pictures": pictures})
    found = evaluate(tiny.clip(), tiny.task(), store=Store(tmp_path), metrics=[forget, pictures])
    assert list(found) == ["forget/top1", "forget/top5", "n"]
    assert found["n"].value == 2
