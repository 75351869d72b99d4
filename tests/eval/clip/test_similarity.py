import math
import statistics

import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.eval.clip.similarity import MatchedSimilarity, matrix
from muwa.eval.measure import evaluate
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.data import Split


def cosine(image, name):
    model = tiny.clip()
    v = model.encode("vision", tiny.pixels([image]))
    return torch.cosine_similarity(v, model.encode("text", tiny.tokenize([f"{name}."]))).item()


@pytest.fixture
def features(tmp_path):
    return Features(tiny.clip(), Run(Store(tmp_path)))


def test_the_mean_is_over_pictures_and_their_own_names(features):
    split = tiny.split()
    found = MatchedSimilarity()(features, tiny.judged(split))
    values = [
        cosine(i, tiny.NAMES[label])
        for i, label in zip(split.retain.images, split.retain.labels, strict=True)
    ]
    metric = found["retain/cosine"]
    assert metric.value == pytest.approx(statistics.mean(values), abs=1e-6)
    half = 1.96 * statistics.stdev(values) / math.sqrt(7)
    assert (metric.low, metric.high) == pytest.approx((metric.value - half, metric.value + half), abs=1e-6)
    assert (metric.n, found["forget/cosine"].n) == (7, 2)


def test_one_picture_may_have_any_cosine(features):
    nothing, one = tiny.pictures([]), tiny.pictures([1])
    metric = MatchedSimilarity()(features, tiny.judged(Split(nothing, one, nothing)))["retain/cosine"]
    assert metric.value == pytest.approx(cosine(one.images[0], tiny.NAMES[1]), abs=1e-6)
    assert (metric.n, metric.low, metric.high) == (1, -1.0, 1.0)


def test_nothing_to_match_is_said_by_n(features):
    nothing = tiny.pictures([])
    assert (
        MatchedSimilarity()(features, tiny.judged(Split(nothing, tiny.pictures([1]), nothing)))[
            "forget/cosine"
        ].n
        == 0
    )


def test_the_matrix_starts_with_the_target_and_spreads_over_the_others(features):
    split = tiny.split()
    found = matrix(features, split, 3)
    assert found["names"] == ["Ada Fox", "Bo Hill", "Di Moss", "Flo Wren"]
    assert found["n"] == [2, 1, 1, 1]
    first = [statistics.mean(cosine(image, name) for image in split.forget.images) for name in found["names"]]
    assert found["values"][0] == pytest.approx(first, abs=1e-6)
    own = split.retain.images[split.retain.labels.index(3)]
    assert found["values"][2] == pytest.approx([cosine(own, name) for name in found["names"]], abs=1e-6)


def test_evaluate_is_all_metrics_and_reads_features_back(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    measures = part("eval=[forget,retain,utility,similarity]")
    found = evaluate(tiny.clip().observe(Run(first)), tiny.task(), measures)
    assert set(found) == {
        "forget/top1",
        "forget/top5",
        "retain/top1",
        "retain/top5",
        "utility/top1",
        "forget/cosine",
        "retain/cosine",
    }
    assert evaluate(tiny.clip().observe(Run(second)), tiny.task(), measures) == found
    assert second.events == {"features": "hit"}
    assert list(evaluate(tiny.clip().observe(Run()), tiny.task(), {"similarity": MatchedSimilarity()})) == [
        "forget/cosine",
        "retain/cosine",
    ]


def test_no_pictures_have_no_interval(features):
    nothing = tiny.pictures([])
    for metric in MatchedSimilarity()(features, tiny.judged(Split(nothing, nothing, nothing))).values():
        assert (metric.value, metric.n, metric.low, metric.high) == (0.0, 0, None, None)


def test_lower_is_better_for_the_target_only(features):
    found = MatchedSimilarity()(features, tiny.task())
    assert {name: metric.reading.better for name, metric in found.items()} == {
        "forget/cosine": "lower",
        "retain/cosine": "higher",
    }
    assert {metric.reading.unit for metric in found.values()} == {"cosine"}


@pytest.mark.parametrize("names", [7, 10, 100])
def test_the_matrix_shows_every_other_name_when_there_are_no_more(features, names):
    everyone = matrix(features, tiny.split(), names)
    assert everyone["names"] == list(tiny.NAMES)
    assert [len(row) for row in everyone["values"]] == [8] * 8


def test_the_matrix_of_the_target_alone(features):
    nothing = tiny.pictures([])
    alone = matrix(features, Split(tiny.pictures([2, 2, 2]), nothing, nothing), 5)
    assert (alone["names"], alone["n"]) == (["Cy Reed"], [3])
