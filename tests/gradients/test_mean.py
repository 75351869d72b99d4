from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.gradients.base import BatchLoss, Recipe
from muwa.gradients.files import write_gradients
from muwa.gradients.losses import contrastive, cosine
from muwa.gradients.mean import (
    ClipGradients,
    forget_sum,
    gradient_sum,
    leave_out_change,
    mean_gradients,
    norms,
    origin,
    shuffled_batches,
)
from muwa.layer_search.steps import step_deltas
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


def forward(model, pairs):
    pixels = tiny.pixels(pairs.images)
    return model.encode("vision", pixels), model.encode("text", tiny.tokenize(list(pairs.captions)))


def naive_sum(model, pairs, loss_of, batches):
    """A second, plain implementation: torch.autograd.grad per batch on the network itself."""
    network = model._towers.model.requires_grad_(True)
    named = dict(network.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for batch in batches:
        some = pairs.select(batch)
        pixels = tiny.pixels(some.images)
        v = F.normalize(network.encode_image(pixels), dim=-1)
        t = F.normalize(network.encode_text(tiny.tokenize(list(some.captions))), dim=-1)
        grads = torch.autograd.grad(
            loss_of(v, t, network.logit_scale.exp()), list(named.values()), allow_unused=True
        )
        for name, g in zip(named, grads, strict=True):
            if g is not None:
                total[name] += len(batch) * g
    network.requires_grad_(False)
    return total


@pytest.mark.parametrize(("name", "loss"), [("cosine", cosine), ("contrastive", contrastive)])
def test_equals_a_plain_loop(name, loss):
    model, pairs = tiny.clip(), tiny.pairs(10)
    got = gradient_sum(model, pairs, BatchLoss(name, 4, 5, "fp32"), run=Run())
    want = naive_sum(model, pairs, loss, shuffled_batches(10, 4, 5))
    assert got["n"] == 10
    tiny.same_gradients(got["sum"], want)


def test_without_a_retain_gradient_nothing_is_computed_on_the_retain_set(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path)
    assert task.mentions
    both = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    alone = replace(RECIPE, retain_gradient=False)
    found = mean_gradients(model, task, tiny.NAMES[0], alone, Run(store))
    tiny.same_gradients(found.forget, both.forget, 0)
    assert (found.retain, found.n_forget, found.n_retain) == ({}, both.n_forget, 0)
    assert list(store.events) == ["gradients/forget"]
    assert found.fingerprint == both.without_retain().fingerprint != both.fingerprint
    assert norms(found) == {name: {**n, "retain": None} for name, n in norms(both).items()}


def test_the_same_inputs_give_the_same_bits_and_the_model_is_untouched():
    model, pairs = tiny.clip(), tiny.pairs(9)
    before = {name: w.clone() for name, w in model.weights.items()}
    one, two = (gradient_sum(model, pairs, RECIPE.retain, run=Run()) for _ in range(2))
    assert all(torch.equal(one["sum"][name], two["sum"][name]) for name in before)
    assert all(torch.equal(w, before[name]) for name, w in model.weights.items())
    assert not any(w.requires_grad for w in model.weights.values())


def test_shuffled_batches_cut_a_permutation():
    batches = shuffled_batches(10, 4, 0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(10))


def test_leaving_pairs_out_changes_the_sum_by_what_they_gave():
    """Batches of 4: the pairs 1 and 7 are taken out of their batches, and the loss is that of the others."""
    model, pairs, loss = tiny.clip(), tiny.pairs(10), BatchLoss("contrastive", 4, 0, "fp32")
    got = leave_out_change(model, pairs, loss, (1, 7), run=Run())
    batches = shuffled_batches(10, 4, 0)
    with_them = naive_sum(model, pairs, contrastive, batches)
    without = naive_sum(
        model, pairs, contrastive, [[i for i in batch if i not in (1, 7)] for batch in batches]
    )
    assert got["n"] == -2
    tiny.same_gradients(got["sum"], {name: without[name] - with_them[name] for name in without}, 1e-4)


def test_the_shared_retain_gradient_is_corrected_exactly(tmp_path):
    """Leaving out pairs by correction equals taking the gradient without them, batch by batch."""
    model, task = tiny.clip(), tiny.task()
    got = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(Store(tmp_path)))
    batches = [[i for i in batch if i not in task.mentions] for batch in shuffled_batches(12, 4, 0)]
    want = naive_sum(model, task.retain, contrastive, batches)
    assert got.n_retain == 10
    tiny.same_gradients(got.retain, {name: tensor / 10 for name, tensor in want.items()})


def test_a_second_identity_reads_the_retain_gradient_back(tmp_path):
    model, task = tiny.clip(), tiny.task()
    mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(Store(tmp_path)))
    again = Store(tmp_path)
    mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(again))
    assert set(again.events.values()) == {"hit"}


def test_direction_a_small_step_lowers_the_cosine_of_the_forget_pairs(tmp_path):
    """To first order: d mean cos / d step = -|g_f|^2 on every layer, and the loss rises by as much."""
    model, task = tiny.clip(), tiny.task()
    found = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(Store(tmp_path)))
    v, t = forward(model, task.forget[tiny.NAMES[0]])
    before = (v * t).sum(-1).mean().item()
    for layer in model.layers("tensor"):
        norm2 = sum(part.of(found.forget).square().sum().item() for part in layer.scored)
        if norm2 < 1e-4:
            continue
        step = 1e-3 / norm2  # first-order change of the mean cosine: -1e-3
        v, t = forward(
            model.edited(Edit(step_deltas(model, found, layer, step), ())), task.forget[tiny.NAMES[0]]
        )
        after = (v * t).sum(-1).mean().item()
        assert after < before, layer.name
        assert after - before == pytest.approx(-1e-3, rel=0.25), layer.name


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="no pairs to take a gradient of"):
        gradient_sum(tiny.clip(), tiny.pairs(0), RECIPE.forget, run=Run())


def test_a_retain_set_that_only_mentions_the_forgotten_is_refused_before_any_pass(tmp_path):
    task = replace(tiny.task(), retain=tiny.pairs(3, names=tiny.NAMES[:1]), mentions=(0, 1, 2))
    with pytest.raises(ValueError, match="Ada Fox: all 3 retain pairs mention what is to be forgotten"):
        mean_gradients(tiny.clip(), task, tiny.NAMES[0], RECIPE, Run(Store(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_an_empty_retain_set_is_refused(tmp_path):
    task = replace(tiny.task(), retain=tiny.pairs(0), mentions=())
    with pytest.raises(ValueError, match=r"Ada Fox: the retain set \(dataset\.retain\) is empty"):
        mean_gradients(tiny.clip(), task, tiny.NAMES[0], RECIPE, Run(Store(tmp_path)))


def test_precision_is_part_of_what_gradients_are(tmp_path):
    model, task = tiny.clip(), tiny.task()
    half = replace(RECIPE, precision="bf16")
    one = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(Store(tmp_path)))
    two = mean_gradients(model, task, tiny.NAMES[0], half, Run(Store(tmp_path)))
    assert one.fingerprint != two.fingerprint
    assert not torch.equal(one.forget["visual.proj"], two.forget["visual.proj"])


def test_the_forget_sum_of_a_name_is_shared_with_its_mean(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path)
    total = forget_sum(model, task, tiny.NAMES[0], RECIPE, Run(store))
    assert total["n"] == 6
    got = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(store))
    assert store.events["gradients/forget"] == "partial"  # once computed, once read
    assert all(torch.equal(g, total["sum"][name] / 6) for name, g in got.forget.items())


def test_without_a_cache_the_same_gradients_are_computed(tmp_path):
    model, task = tiny.clip(), tiny.task()
    one, two = (
        mean_gradients(model, task, tiny.NAMES[0], RECIPE, run) for run in (Run(), Run(Store(tmp_path)))
    )
    assert all(torch.equal(one.forget[name], g) for name, g in two.forget.items())
    assert all(torch.equal(one.retain[name], g) for name, g in two.retain.items())


def test_a_micro_batch_changes_rounding_only_and_enters_no_key(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path)
    small = replace(RECIPE, micro_batch_size=1)
    computed = mean_gradients(model, task, tiny.NAMES[0], small, Run())
    want = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run(store))
    tiny.same_gradients(computed.retain, want.retain)
    again = Store(tmp_path)
    read = mean_gradients(model, task, tiny.NAMES[0], small, Run(again))
    assert set(again.events.values()) == {"hit"}
    assert read.fingerprint == want.fingerprint == computed.fingerprint


def two_encoders():
    """A stand-in for a pipeline with two text encoders."""
    return SimpleNamespace(source="two", clips={"text_encoder": tiny.clip(), "text_encoder_2": tiny.clip(1)})


def test_the_source_gives_the_gradients_of_each_encoder():
    model, task = two_encoders(), tiny.task()
    got = ClipGradients()(model, task, tiny.NAMES[0], RECIPE, Run())
    assert list(got) == ["text_encoder", "text_encoder_2"]
    for encoder, clip in model.clips.items():
        want = mean_gradients(clip, task, tiny.NAMES[0], RECIPE, Run())
        assert got[encoder].origin == want.origin
        assert all(torch.equal(got[encoder].forget[name], g) for name, g in want.forget.items())


def test_a_file_takes_the_place_of_computing(tmp_path):
    model, task, name = tiny.clip(), tiny.task(), tiny.NAMES[0]
    want = mean_gradients(model, task, name, RECIPE, Run())
    write_gradients(tmp_path / "g", want)
    run = Run(Store(tmp_path / "cache"), gradient_file=tmp_path / "g")
    ClipGradients().check(model, RECIPE, run)
    (got,) = ClipGradients()(model, task, name, RECIPE, run).values()
    assert all(torch.equal(got.forget[name], g) for name, g in want.forget.items())
    assert not (tmp_path / "cache").exists()
    assert ClipGradients()(model, task, name, RECIPE, replace(run, distributed=Distributed(1, 2))) is None
    with pytest.raises(ValueError, match="seed: file has 0, this run has 1"):
        ClipGradients()(model, task, name, replace(RECIPE, seed=1), run)


def test_a_file_is_of_one_clip():
    with pytest.raises(
        ValueError,
        match=r"gradients=g: a file holds the gradients of one CLIP, and two has 2 \(text_encoder, text_",
    ):
        ClipGradients().check(two_encoders(), RECIPE, Run(gradient_file=Path("g")))
    ClipGradients().check(two_encoders(), RECIPE, Run())


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", lambda model, task, recipe: (tiny.clip(1), task, recipe)),
        (
            "forget_pairs",
            lambda model, task, recipe: (model, replace(task, forget={tiny.NAMES[0]: tiny.pairs(5)}), recipe),
        ),
        ("retain_pairs", lambda model, task, recipe: (model, replace(task, mentions=(0,)), recipe)),
        ("losses", lambda model, task, recipe: (model, task, replace(recipe, forget_loss="contrastive"))),
        ("batch_size", lambda model, task, recipe: (model, task, replace(recipe, batch_size=5))),
        ("seed", lambda model, task, recipe: (model, task, replace(recipe, seed=1))),
        ("precision", lambda model, task, recipe: (model, task, replace(recipe, precision="bf16"))),
    ],
)
def test_an_origin_has_a_part_for_all_that_changes_a_gradient(part, change):
    model, task = tiny.clip(), tiny.task()
    before = origin(model, task, tiny.NAMES[0], RECIPE)
    changed, other, recipe = change(model, task, RECIPE)
    after = origin(changed, other, tiny.NAMES[0], recipe)
    assert [key for key in before if before[key] != after[key]] == [part]


def test_norms_are_of_each_parameter():
    w = torch.tensor([3.0, 4.0])
    assert norms(Gradients({"w": w}, {"w": 2 * w}, 1, 1, {})) == {"w": {"forget": 5.0, "retain": 10.0}}
