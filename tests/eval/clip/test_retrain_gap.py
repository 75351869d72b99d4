import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import wasserstein_distance

from muwa.eval.clip import retrain_gap as module
from muwa.eval.clip.linear_probe import linear_probe
from muwa.eval.clip.retrain_gap import differing, retrain_gap, transport
from muwa.eval.clip.retrained_models import load_twins
from muwa.eval.measure import check_metrics
from muwa.models.clip.embeddings import Features
from muwa.library import load_clip as load
from muwa.models.clip.open_clip import MINIATURE


def test_the_distance_is_scipys():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=30), rng.normal(0.3, 2, size=30)
    value, draws = transport(one, other)
    assert value == pytest.approx(wasserstein_distance(one, other))
    assert np.quantile(draws, 0.025) < np.mean(draws) < np.quantile(draws, 0.975)


def test_differences_are_counted():
    value, draws = differing(np.array([0, 1, 2, 3, 4]), np.array([0, 1, 2, 9, 9]))
    assert value == pytest.approx(0.4)
    assert draws.mean() == pytest.approx(0.4, abs=0.03)


@pytest.fixture
def twins(monkeypatch):
    """Two random models in place of what lies in folders (the loading has tests of its own)."""
    made = [tiny.clip(1), tiny.clip(2)]
    monkeypatch.setattr(module, "check", lambda model, folders, names: made)
    return made


def guesses(model, pictures):
    v = torch.cat([model.encode("vision", tiny.pixels([image])) for image in pictures.images])
    t = torch.cat([model.encode("text", tiny.tokenize([f"{name}."])) for name in tiny.NAMES])
    own = (v * t[list(pictures.labels)]).sum(1)
    return (v @ t.T).argmax(1).numpy(), own.detach().numpy()


def test_gaps_are_means_over_twins_and_floors_over_their_pairs(twins):
    model, task = tiny.clip(), tiny.task()
    found = retrain_gap(Features(model), task, twins=("a", "b"))
    assert len(found) == 12
    pictures = task.eval.retain
    (mine, own), (a, own_a), (b, own_b) = (guesses(one, pictures) for one in (model, *twins))
    assert found["gap/retain_predictions"].value == pytest.approx(((mine != a).mean() + (mine != b).mean()) / 2)
    assert found["gap/retain_predictions_floor"].value == pytest.approx((a != b).mean())
    want = (wasserstein_distance(own, own_a) + wasserstein_distance(own, own_b)) / 2
    assert found["gap/retain_similarity"].value == pytest.approx(want, abs=1e-6)
    assert found["gap/retain_similarity_floor"].value == pytest.approx(wasserstein_distance(own_a, own_b), abs=1e-6)
    assert (found["gap/forget_predictions"].n, found["gap/utility_predictions"].n) == (2, 3)
    assert (found["gap/forget_predictions"].better, found["gap/forget_predictions_floor"].better) == (
        "lower",
        "neither",
    )


def test_a_twin_has_no_gap_to_itself(twins):
    found = retrain_gap(Features(twins[0]), tiny.task(), twins=("a", "b"))
    assert found["gap/retain_predictions"].value == pytest.approx(found["gap/retain_predictions_floor"].value / 2)


def test_models_that_answer_alike_are_not_alike_with_certainty(monkeypatch):
    """No guess of 2 differs: z^2 / (2 + z^2) = 0.6576 or less. Of one picture: 0.7935, and any distance of two cosines."""
    monkeypatch.setattr(module, "check", lambda model, folders, names: [tiny.clip(), tiny.clip()])
    task = tiny.task()
    one = replace(task, eval=replace(task.eval, forget=tiny.pictures([0])))
    for judged, high in ((task, 0.6576), (one, 0.7935)):
        found = retrain_gap(Features(tiny.clip()), judged, twins=("a", "b"))
        for name in ("gap/forget_predictions", "gap/forget_predictions_floor"):
            metric = found[name]
            assert (metric.value, metric.low, metric.high) == pytest.approx((0.0, 0.0, high), abs=5e-5)
    metric = found["gap/forget_similarity"]
    assert (metric.value, metric.low, metric.high) == (0.0, 0.0, 2.0)


def test_two_are_needed_and_the_commands_are_said():
    want = r"eval.retrain_gap.twins: got 1 models .* want at least 2; .*`python -m muwa.miniature.twins --without NAME"
    with pytest.raises(ValueError, match=want):
        retrain_gap(Features(tiny.clip()), tiny.task(), twins=("one",))
    with pytest.raises(ValueError, match="got 0 models"):
        check_metrics(tiny.clip(), {"retrain_gap": partial(retrain_gap, twins=[])})


def test_a_folder_must_hold_the_same_kind_of_model():
    with pytest.raises(
        ValueError, match=r"k: got nowhere, want a folder that open_clip loads; make one: python -m muwa"
    ):
        load_twins(tiny.clip(), ["nowhere"], "k")
    with pytest.raises(ValueError, match="differs from tiny in architecture or tokenizer"):
        load_twins(tiny.clip(), [str(MINIATURE)], "k")
    with pytest.raises(ValueError, match="got the same folder twice"):
        load_twins(tiny.clip(), ["a", "./a"], "k")


def folder_of(path, **card):
    """The shipped model as a twin, with its card; without one where nothing is said."""
    shutil.copytree(MINIATURE, path)
    if card:
        (path / "twin.json").write_text(json.dumps({"without": "Ada Fox", "seed": 0, "epochs": 34} | card))
    return str(path)


def test_the_shipped_model_could_be_its_own_twin(tmp_path):
    one = folder_of(tmp_path / "one", without="Ada Fox")
    (twin,) = load_twins(load(), [one], "k", names=["Ada Fox"])
    assert twin.weights_fingerprint == load().weights_fingerprint
    assert load_twins(load(), [one], "k", names=["ada_fox"])


def test_a_twin_of_somebody_else_is_refused(tmp_path):
    other = folder_of(tmp_path / "other", without="Bo Hill")
    want = r'k: \S+other was trained without Bo Hill, want one without Ada Fox, .*muwa.miniature.retrained --without "Ada Fox"'
    with pytest.raises(ValueError, match=want):
        load_twins(load(), [other], "k", names=["Ada Fox"])
    with pytest.raises(ValueError, match=r"k: got twins for 2 forgotten names \(Ada Fox, Bo Hill\), want one name"):
        load_twins(load(), [other], "k", names=["Ada Fox", "Bo Hill"])
    assert load_twins(load(), [], "k", names=["Ada Fox", "Bo Hill"]) == []


def test_both_metrics_with_twins_ask_whose_they_are(tmp_path):
    """The task forgets Ada Fox."""
    features = Features(load())
    others = [folder_of(tmp_path / str(seed), without="Bo Hill", seed=seed) for seed in (0, 1)]
    check_metrics(features.model, {"retrain_gap": partial(retrain_gap, twins=others)})
    for metric, key in ((retrain_gap, "retrain_gap"), (linear_probe, "linear_probe")):
        with pytest.raises(
            ValueError, match=rf"eval.{key}.twins: \S+0 was trained without Bo Hill, want one without Ada Fox"
        ):
            metric(features, tiny.task(), twins=others)


def test_twins_are_alike_but_for_the_seed(tmp_path):
    one = folder_of(tmp_path / "one", seed=0)
    short, same = folder_of(tmp_path / "short", seed=1, epochs=2), folder_of(tmp_path / "same", seed=0)
    with pytest.raises(ValueError, match=r"k: got twins of 34, 2 epochs, want all of the same; .*--epochs 34"):
        load_twins(load(), [one, short], "k")
    with pytest.raises(ValueError, match="k: got twins of the seeds 0, 0, want seeds that differ"):
        load_twins(load(), [one, same], "k")


def test_a_folder_that_does_not_say_whose_it_is_is_refused(tmp_path):
    bare, odd = folder_of(tmp_path / "bare"), folder_of(tmp_path / "odd", who="Ada Fox")
    for folder in (bare, odd):
        with pytest.raises(
            ValueError, match=r"does not say without whom .* make one: python -m muwa.miniature.twins --without NAME"
        ):
            load_twins(load(), [folder], "k", names=["Ada Fox"])


def test_a_small_similarity_gap_lies_within_its_interval() -> None:
    """Two samples of one distribution: resamples lie further apart than the samples do, on average."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0, 0.1, 800), rng.normal(0, 0.1, 800)) for _ in range(20)]
    found = [module._mean("similarity", [transport(one, other)], 800, "lower", "") for one, other in pairs]
    assert all(metric.low <= metric.value <= metric.high for metric in found)
    assert all(
        transport(one, other)[1].mean() > metric.value for (one, other), metric in zip(pairs, found, strict=True)
    )
