from dataclasses import dataclass, replace

import pytest
import tiny
import tiny_vlm
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import mean_gradients
from muwa.layer_search.base import LayerSearch
from muwa.methods.base import make_edit
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.data import Split

SEARCH = part("layer_search=pareto_bisect", max_evals=3, rule="paper")
RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


def slug(**changed):
    """SLUG with small batches and a short search, but for what is changed."""
    return part("method=slug", **{"layer_search": SEARCH, "batch_size": 4, **changed})


def step(**changed):
    """A search that takes a given step on the visual projection."""
    return part("layer_search=fixed", **{"layer": "visual.proj", **changed})


def edit_by(model, task, run, **changed):
    return make_edit(slug(**changed), model, task, run)


def two_names():
    """The tiny task for two names."""
    names = tiny.NAMES[:2]
    probe, eval_ = (
        Split(
            tiny.pictures([0, 0, 1, 1], start=start),
            tiny.pictures([2, 3, 4], start=start + 10),
            tiny.pictures([5, 6], start=start + 20),
        )
        for start in (50, 70)
    )
    forget = {name: tiny.pairs(6, names=(name,)) for name in names}
    return replace(tiny.task(), names=names, forget=forget, mentions=(0, 1, 8, 9), probe=probe, eval=eval_)


def same(a, b):
    assert a.moves == b.moves
    assert a.searches == b.searches
    assert set(a.deltas) == set(b.deltas)
    assert all(torch.equal(a.deltas[name], b.deltas[name]) for name in a.deltas)


def test_the_edit_is_the_chosen_step_along_the_forget_gradient(tmp_path):
    model, task, run = tiny.clip(), tiny.task(), Run(Store(tmp_path))
    edit = edit_by(model, task, run)
    gradients = mean_gradients(model, task, tiny.NAMES[0], RECIPE, run)
    (move,) = edit.moves
    chosen = edit.searches[0].trace[edit.searches[0].chosen]
    assert ({"": move.layer}, move.step) == (chosen.candidate.layers, chosen.step)
    assert list(edit.deltas) == [move.layer]
    torch.testing.assert_close(edit.deltas[move.layer], move.step * gradients.forget[move.layer])


def test_a_second_run_reads_everything_from_the_cache_and_logs_the_same(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    logs = [], []
    edits = [
        edit_by(tiny.clip(), tiny.task(), Run(store, lambda event, row, rows=rows: rows.append((event, row))))
        for store, rows in ((first, logs[0]), (second, logs[1]))
    ]
    same(*edits)
    assert set(second.events.values()) == {"hit"}
    events = [event for event, _ in logs[0]]
    assert events == ["gradients", "scores", *["evaluation"] * len(edits[0].searches[0].trace)]
    assert logs[0] == logs[1]


def test_the_log_has_the_norms_of_every_parameter_and_the_pairs_of_each_mean(tmp_path):
    rows = {}
    run = Run(Store(tmp_path), rows.__setitem__)
    edit_by(tiny.clip(), tiny.task(), run)
    gradients = mean_gradients(tiny.clip(), tiny.task(), tiny.NAMES[0], RECIPE, run)
    logged = rows["gradients"]
    assert (logged["concept"], logged["encoder"], logged["n"]) == (tiny.NAMES[0], "", [6, 10])
    assert set(logged["norms"]) == set(tiny.clip().weights)
    want = gradients.forget["visual.proj"].square().sum().sqrt().item()
    assert logged["norms"]["visual.proj"]["forget"] == pytest.approx(want)


def test_several_names_each_get_a_layer_and_a_step_on_the_original_model(tmp_path):
    both, run = two_names(), Run(Store(tmp_path))
    edit = edit_by(tiny.clip(), both, run)
    alone = [edit_by(tiny.clip(), both.only(name), run) for name in both.names]
    assert edit.moves == alone[0].moves + alone[1].moves
    for name, delta in edit.deltas.items():
        want = sum(one.deltas[name] for one in alone if name in one.deltas)
        assert torch.equal(delta, want)


def test_samples_are_the_pairs_of_each_pass(tmp_path):
    """6 forget pairs per name; 12 retain pairs less 2 or 4 that mention a name, counted once."""
    fixed = step(relative_step=0.1)
    assert edit_by(tiny.clip(), tiny.task(), Run(), layer_search=fixed).samples == 6 + 10
    assert edit_by(tiny.clip(), two_names(), Run(), layer_search=fixed).samples == 6 + 6 + 8


def test_gradients_from_a_file_give_the_same_edit(tmp_path):
    model, task, run = tiny.clip(), tiny.task(), Run(Store(tmp_path / "c"))
    want = edit_by(model, task, run)
    write_gradients(tmp_path / "g", mean_gradients(model, task, tiny.NAMES[0], RECIPE, run))
    fresh = Run(Store(tmp_path / "other"), gradient_file=tmp_path / "g")
    same(edit_by(model, task, fresh), want)
    assert set(fresh.store.events) == {"search", "pixels"}
    with pytest.raises(ValueError, match="seed: file has 0, this run has 1"):
        edit_by(model, task, fresh, seed=1)


@pytest.mark.parametrize("method", ["slug", "slug_subspace", "slug_layers"])
def test_a_file_without_a_retain_gradient_is_refused(tmp_path, method):
    model, task = tiny.clip(), tiny.task()
    found = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    write_gradients(tmp_path / "g", found.without_retain())
    with pytest.raises(ValueError, match="g: it has no retain gradient, which this run needs"):
        part(f"method={method}", batch_size=4)(
            model, task, Run(Store(tmp_path / "c"), gradient_file=tmp_path / "g")
        )


def test_a_file_with_the_gradients_of_one_name_is_refused_for_two(tmp_path):
    model, task, run = tiny.clip(), two_names(), Run(Store(tmp_path / "c"), gradient_file=tmp_path / "g")
    write_gradients(tmp_path / "g", mean_gradients(model, task, task.names[0], RECIPE, run))
    with pytest.raises(ValueError, match="computed from something else"):
        edit_by(model, task, run)


def test_wrong_settings_stop_before_any_gradient(tmp_path):
    store = Store(tmp_path)
    for settings, message in (
        ({"layer_search": replace(SEARCH, rule="best")}, "layer_search.rule: got 'best'"),
        ({"forget_loss": "l2"}, "loss: got 'l2', want one of cosine, contrastive"),
        ({"retain_loss": "l2"}, "loss: got 'l2', want one of cosine, contrastive"),
        ({"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
        ({"precision": "fp8"}, "method.precision: got 'fp8', want one of fp32, bf16"),
        (
            {"micro_batch_size": 0},
            "method.micro_batch_size: got 0, want at least 1, or null for whole batches",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            edit_by(tiny.clip(), tiny.task(), Run(store), **settings)
    assert store.events == {}


def test_another_name_or_setting_is_another_search_on_the_same_retain_gradient(tmp_path):
    task = tiny.task()
    edit_by(tiny.clip(), task, Run(Store(tmp_path)), layer_search=step(relative_step=0.1))
    other = Store(tmp_path)
    edit = edit_by(tiny.clip(), task, Run(other), layer_search=step(relative_step=0.2))
    assert other.events.pop("search") == "miss"
    assert set(other.events.values()) == {"hit"}
    assert edit.moves[0].relative_norm == pytest.approx(0.2, rel=1e-4)
    bo = replace(
        task,
        names=tiny.NAMES[1:2],
        forget={"Bo Hill": tiny.pairs(6, names=tiny.NAMES[1:2])},
        mentions=(1, 9),
        probe=replace(task.probe, forget=tiny.pictures([1, 1])),
    )
    second = Store(tmp_path)
    edit = edit_by(tiny.clip(), bo, Run(second), layer_search=step(relative_step=0.1))
    assert [move.concept for move in edit.moves] == ["Bo Hill"]
    assert second.events["search"] == "miss"
    assert second.events["gradients/forget"] == "miss"
    assert second.events["gradients/retain"] == "hit"  # the sum over all retain pairs


def test_without_a_feasible_step_the_edit_has_no_deltas_but_its_search(tmp_path):
    known = next(label for label in range(8) if recognised(label))
    name = tiny.NAMES[known]
    probe = Split(
        tiny.pictures([known] * 3), tiny.pictures([(known + 1) % 8]), tiny.pictures([(known + 2) % 8])
    )
    task = replace(
        tiny.task(), names=(name,), forget={name: tiny.pairs(6, names=(name,))}, probe=probe, eval=probe
    )
    never = step(relative_step=1e-6, rule="constrained")
    edit = edit_by(tiny.clip(), task, Run(), layer_search=never)
    assert (edit.deltas, edit.moves) == ({}, ())
    assert len(edit.searches[0].trace) == 1
    assert "No feasible step" in edit.searches[0].why


def recognised(label):
    """Whether the random model has one of three images of a name among its first five."""
    images, features = tiny.pictures([label] * 3), Features(tiny.clip(), Run())
    scores = features.images(images) @ features.classes(images.classes).T
    return bool((scores.topk(5).indices == label).any())


def test_the_model_is_left_as_it_was():
    model = tiny.clip()
    assert edit_by(model, tiny.task(), Run(), layer_search=step(relative_step=0.5)).deltas
    base = tiny.clip().weights
    assert all(torch.equal(weight, base[name]) for name, weight in model.weights.items())


def test_a_vision_language_model_is_edited_in_its_tower_by_either_gradient(tmp_path):
    model, task = tiny_vlm.vlm(), tiny.task()
    asking = part(
        "layer_search=answering",
        wordings=tiny_vlm.WORDINGS,
        aliases={},
        start="ratio",
        forget_at_most=0.5,
        retain_pictures=9,
        max_evals=2,
        candidates=1,
        rule="paper",
    )
    edits = {}
    for name in ("clip", "answer"):
        source = part(f"gradient_source={name}")
        edits[name] = edit_by(model, task, Run(Store(tmp_path)), layer_search=asking, gradients=source)
        (move,) = edits[name].moves
        assert move.tower == "vision"
        assert move.layer in {layer.name for layer in model.clip.layers("tensor")}
        assert model.edited(edits[name]).changes
    scores = [edits[name].searches[0].scores for name in ("clip", "answer")]
    assert scores[0].keys() == scores[1].keys()
    assert scores[0] != scores[1]


def test_a_source_or_a_search_that_does_not_fit_the_model_is_refused(tmp_path):
    run, answer = Run(Store(tmp_path)), part("gradient_source=answer")
    with pytest.raises(
        ValueError, match="gradient_source=answer: got a CLIP .*, want a vision-language model"
    ):
        edit_by(tiny.clip(), tiny.task(), run, gradients=answer)
    with pytest.raises(
        ValueError, match="layer_search=pareto_bisect: got a vision-language model .*, want a CLIP"
    ):
        edit_by(tiny_vlm.vlm(), tiny.task(), run)
    assert run.store.events == {}


def test_worker_ranks_take_gradients_and_search_nothing():
    class Worker(GradientSource):
        def __call__(self, model, task, name, recipe, run):
            taken.append(name)

    @dataclass(frozen=True)
    class Never(LayerSearch):
        def __call__(self, model, gradients, task, concept, *, run):
            raise AssertionError("a worker rank searches")

    taken = []
    method = slug(gradients=Worker(), layer_search=Never())
    edit = make_edit(method, tiny.clip(), two_names(), Run(distributed=Distributed(1, 2)))
    assert (edit.deltas, edit.searches, edit.samples) == ({}, (), 0)
    assert taken == list(tiny.NAMES[:2])
