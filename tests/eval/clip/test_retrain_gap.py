import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import wasserstein_distance

from muwa.eval.clip import retrain_gap as module
from muwa.eval.clip.linear_probe import LinearProbe
from muwa.eval.clip.retrain_gap import RetrainGap, differing, mean_difference, transport
from muwa.eval.clip.retrained_models import Card, check_retrained, load_retrained
from muwa.eval.measure import check_measures
from muwa.library import load_clip
from muwa.models.clip.embeddings import Features
from muwa.models.clip.open_clip import MINIATURE
from muwa.run import Run
from muwa.types.metric import Reading

GAP = RetrainGap(retrained=("a", "b"))


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
def retrained(monkeypatch):
    """Two random models in place of what lies in folders (the loading has tests of its own)."""
    made = [tiny.clip(1), tiny.clip(2)]
    monkeypatch.setattr(module, "load_retrained", lambda model, folders: made)
    return made


def guesses(model, pictures):
    v = torch.cat([model.encode("vision", tiny.pixels([image])) for image in pictures.images])
    t = torch.cat([model.encode("text", tiny.tokenize([f"{name}."])) for name in tiny.NAMES])
    own = (v * t[list(pictures.labels)]).sum(1)
    return (v @ t.T).argmax(1).numpy(), own.detach().numpy()


def test_gaps_are_means_over_retrained_models_and_floors_over_their_pairs(retrained):
    model, task = tiny.clip(), tiny.task()
    found = GAP(Features(model, Run()), task)
    assert len(found) == 12
    pictures = task.eval.retain
    (mine, own), (a, own_a), (b, own_b) = (guesses(one, pictures) for one in (model, *retrained))
    assert found["gap/retain_predictions"].value == pytest.approx(
        ((mine != a).mean() + (mine != b).mean()) / 2
    )
    assert found["gap/retain_predictions_floor"].value == pytest.approx((a != b).mean())
    want = (wasserstein_distance(own, own_a) + wasserstein_distance(own, own_b)) / 2
    assert found["gap/retain_similarity"].value == pytest.approx(want, abs=1e-6)
    assert found["gap/retain_similarity_floor"].value == pytest.approx(
        wasserstein_distance(own_a, own_b), abs=1e-6
    )
    assert (found["gap/forget_predictions"].n, found["gap/utility_predictions"].n) == (2, 3)
    assert {
        name: (m.reading.better, m.reading.unit) for name, m in found.items() if name.startswith("gap/forget")
    } == {
        "gap/forget_predictions": ("lower", "rate"),
        "gap/forget_predictions_floor": ("neither", "rate"),
        "gap/forget_similarity": ("lower", "distance"),
        "gap/forget_similarity_floor": ("neither", "distance"),
    }
    assert "and 2 retrained without the target" in found["gap/forget_predictions"].reading.text


def test_a_retrained_model_has_no_gap_to_itself(retrained):
    found = GAP(Features(retrained[0], Run()), tiny.task())
    assert found["gap/retain_predictions"].value == pytest.approx(
        found["gap/retain_predictions_floor"].value / 2
    )


def test_models_that_answer_alike_are_not_alike_with_certainty(monkeypatch):
    """No guess of 2 differs: z^2 / (2 + z^2) = 0.6576 or less. Of one picture: 0.7935, and any distance of two cosines."""
    monkeypatch.setattr(module, "load_retrained", lambda model, folders: [tiny.clip(), tiny.clip()])
    task = tiny.task()
    one = replace(task, eval=replace(task.eval, forget=tiny.pictures([0])))
    for judged, high in ((task, 0.6576), (one, 0.7935)):
        found = GAP(Features(tiny.clip(), Run()), judged)
        for name in ("gap/forget_predictions", "gap/forget_predictions_floor"):
            metric = found[name]
            assert (metric.value, metric.low, metric.high) == pytest.approx((0.0, 0.0, high), abs=5e-5)
    metric = found["gap/forget_similarity"]
    assert (metric.value, metric.low, metric.high) == (0.0, 0.0, 2.0)


def test_two_are_needed_and_the_commands_are_said():
    want = r"eval.retrain_gap.retrained: got 1 models .* want at least 2; .*`python -m muwa.miniature.retrained --without NAME"
    with pytest.raises(ValueError, match=want):
        RetrainGap(retrained=("one",)).check(tiny.clip(), tiny.task())
    with pytest.raises(ValueError, match="got 0 models"):
        check_measures(tiny.clip(), tiny.task(), {"retrain_gap": RetrainGap(retrained=[])})


def check(model, folders, *, names=("Ada Fox",)):
    check_retrained(model, folders, names, "k")


def test_a_folder_must_hold_the_same_kind_of_model():
    with pytest.raises(
        ValueError, match=r"k: got nowhere, want a folder that open_clip loads; make one: python -m muwa"
    ):
        check(tiny.clip(), ["nowhere"])
    with pytest.raises(ValueError, match="differs from tiny in architecture or tokenizer"):
        check(tiny.clip(), [str(MINIATURE)])
    with pytest.raises(ValueError, match="got the same folder twice"):
        check(tiny.clip(), ["a", "./a"])


def folder_of(path, **card):
    """The shipped model as a retrained one, with its card; without a card where nothing is said."""
    shutil.copytree(MINIATURE, path)
    if card:
        (path / "twin.json").write_text(json.dumps({"without": "Ada Fox", "seed": 0, "epochs": 34} | card))
    return str(path)


def test_the_shipped_model_could_be_its_own_retrained_one(tmp_path):
    model, one = load_clip(), folder_of(tmp_path / "one", without="Ada Fox")
    check(model, [one])
    check(model, [one], names=["ada_fox"])
    (retrained,) = load_retrained(model, [one])
    assert retrained.weights_fingerprint == model.weights_fingerprint


def test_a_card_of_an_earlier_version_is_read(tmp_path):
    card = Card(("Ada Fox",), 0, 34, "bf16")
    assert Card.read(folder_of(tmp_path / "one", without="Ada Fox")) == card
    card.write(tmp_path)
    written = json.loads((tmp_path / "twin.json").read_text())
    assert written == {"without": "Ada Fox", "seed": 0, "epochs": 34, "precision": "bf16"}
    assert Card.read(tmp_path) == card


def test_a_model_retrained_without_somebody_else_is_refused(tmp_path):
    model, other = load_clip(), folder_of(tmp_path / "other", without="Bo Hill")
    want = r'k: \S+other was trained without Bo Hill, want one without Ada Fox, .*muwa.miniature.retrained --without "Ada Fox"'
    with pytest.raises(ValueError, match=want):
        check(model, [other])
    check(model, [], names=["Ada Fox", "Bo Hill"])


def test_an_edit_of_two_names_asks_for_models_without_both(tmp_path):
    model, both = load_clip(), folder_of(tmp_path / "both", without=["Bo Hill", "Ada Fox"])
    check(model, [both], names=["ada_fox", "Bo Hill"])
    want = r'both was trained without Bo Hill and Ada Fox, want one without Ada Fox, .*--without "Ada Fox" --seeds'
    with pytest.raises(ValueError, match=want):
        check(model, [both])
    one = folder_of(tmp_path / "one", without="Ada Fox")
    want = r'one was trained without Ada Fox, want one without Ada Fox and Bo Hill, .*--without "Ada Fox" "Bo Hill"'
    with pytest.raises(ValueError, match=want):
        check(model, [one], names=["Ada Fox", "Bo Hill"])


def test_both_measures_with_retrained_models_ask_whose_they_are(tmp_path):
    """The task forgets Ada Fox."""
    others = [folder_of(tmp_path / str(seed), without="Bo Hill", seed=seed) for seed in (0, 1)]
    for key, measure in {"retrain_gap": RetrainGap(others), "linear_probe": LinearProbe(1.0, others)}.items():
        want = rf"eval.{key}.retrained: \S+0 was trained without Bo Hill, want one without Ada Fox"
        with pytest.raises(ValueError, match=want):
            check_measures(load_clip(), tiny.task(), {key: measure})


def test_retrained_models_are_alike_but_for_the_seed(tmp_path):
    model, one = load_clip(), folder_of(tmp_path / "one", seed=0)
    short, same = folder_of(tmp_path / "short", seed=1, epochs=2), folder_of(tmp_path / "same", seed=0)
    want = r"k: got retrained models of 34, 2 epochs, want equal numbers; .*--epochs 34"
    with pytest.raises(ValueError, match=want):
        check(model, [one, short])
    with pytest.raises(ValueError, match="k: got retrained models of the seeds 0, 0, want seeds that differ"):
        check(model, [one, same])
    check(model, [one, folder_of(tmp_path / "another", seed=1)])
    want = r"k: got retrained models of the precisions bf16, fp32, want the same for all; .*--precision bf16"
    with pytest.raises(ValueError, match=want):
        check(model, [one, folder_of(tmp_path / "fp32", seed=1, precision="fp32")])


def test_a_folder_that_does_not_say_whose_it_is_is_refused(tmp_path):
    bare, odd = folder_of(tmp_path / "bare"), folder_of(tmp_path / "odd", who="Ada Fox")
    for folder in (bare, odd):
        with pytest.raises(
            ValueError,
            match=r"does not say without whom .* make one: python -m muwa.miniature.retrained --without NAME",
        ):
            check(load_clip(), [folder])


def test_a_small_similarity_gap_lies_within_its_interval() -> None:
    """Two samples of one distribution: resamples lie further apart than the samples do, on average."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0, 0.1, 800), rng.normal(0, 0.1, 800)) for _ in range(20)]
    found = [mean_difference([transport(one, other)], 800, Reading(unit="distance")) for one, other in pairs]
    assert all(metric.low <= metric.value <= metric.high for metric in found)
    assert all(
        transport(one, other)[1].mean() > metric.value
        for (one, other), metric in zip(pairs, found, strict=True)
    )
