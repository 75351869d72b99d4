from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.gradients.__main__ import clip_of, recipe_of
from muwa.gradients.files import read_gradients, write_gradients
from muwa.gradients.losses import contrastive, cosine
from muwa.gradients.mean import Recipe, gradient_sum, gradients, origin, plan
from muwa.layer_search.steps import step_deltas
from muwa.types.edit import Edit

RECIPE = Recipe("cosine", "contrastive", 4, 0)


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
        grads = torch.autograd.grad(loss_of(v, t, network.logit_scale.exp()), list(named.values()), allow_unused=True)
        for name, g in zip(named, grads, strict=True):
            if g is not None:
                total[name] += len(batch) * g
    network.requires_grad_(False)
    return total


@pytest.mark.parametrize(("name", "loss"), [("cosine", cosine), ("contrastive", contrastive)])
def test_equals_a_plain_loop(name, loss):
    model, pairs = tiny.clip(), tiny.pairs(10)
    got = gradient_sum(model, pairs, loss=name, batch_size=4, seed=5)
    want = naive_sum(model, pairs, loss, plan(10, 4, 5))
    assert got["n"] == 10
    tiny.same_gradients(got["sum"], want)


def test_the_same_inputs_give_the_same_bits_and_the_model_is_untouched():
    model, pairs = tiny.clip(), tiny.pairs(9)
    before = {name: w.clone() for name, w in model.weights.items()}
    one, two = (gradient_sum(model, pairs, loss="contrastive", batch_size=4, seed=0) for _ in range(2))
    assert all(torch.equal(one["sum"][name], two["sum"][name]) for name in before)
    assert all(torch.equal(w, before[name]) for name, w in model.weights.items())
    assert not any(w.requires_grad for w in model.weights.values())


def test_plan_cuts_a_permutation():
    batches = plan(10, 4, 0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(10))


def test_the_shared_retain_gradient_is_corrected_exactly(tmp_path):
    """Leaving out pairs by correction equals taking the gradient without them, batch by batch."""
    model, task = tiny.clip(), tiny.task()
    got = gradients(model, task, tiny.NAMES[0], RECIPE, store=Store(tmp_path))
    batches = [[i for i in batch if i not in task.mentions] for batch in plan(12, 4, 0)]
    want = naive_sum(model, task.retain, contrastive, batches)
    assert got.n_retain == 10
    tiny.same_gradients(got.retain, {name: tensor / 10 for name, tensor in want.items()})


def test_a_second_identity_reads_the_retain_gradient_back(tmp_path):
    model, task = tiny.clip(), tiny.task()
    gradients(model, task, tiny.NAMES[0], RECIPE, store=Store(tmp_path))
    again = Store(tmp_path)
    gradients(model, task, tiny.NAMES[0], RECIPE, store=again)
    assert set(again.events.values()) == {"hit"}


def test_direction_a_small_step_lowers_the_cosine_of_the_forget_pairs(tmp_path):
    """To first order: d mean cos / d step = -|g_f|^2 on every layer, and the loss rises by as much."""
    model, task = tiny.clip(), tiny.task()
    found = gradients(model, task, tiny.NAMES[0], RECIPE, store=Store(tmp_path))
    v, t = forward(model, task.forget[tiny.NAMES[0]])
    before = (v * t).sum(-1).mean().item()
    for layer in model.layers("tensor"):
        norm2 = sum(part.of(found.forget).square().sum().item() for part in layer.scored)
        if norm2 < 1e-4:
            continue
        step = 1e-3 / norm2  # first-order change of the mean cosine: -1e-3
        v, t = forward(model.edited(Edit(step_deltas(model, found, layer, step), ())), task.forget[tiny.NAMES[0]])
        after = (v * t).sum(-1).mean().item()
        assert after < before, layer.name
        assert after - before == pytest.approx(-1e-3, rel=0.25), layer.name


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="no pairs to take a gradient of"):
        gradient_sum(tiny.clip(), tiny.pairs(0), loss="cosine", batch_size=4, seed=0)


def test_a_retain_set_that_only_mentions_the_forgotten_is_refused_before_any_pass(tmp_path):
    task = replace(tiny.task(), retain=tiny.pairs(3, names=tiny.NAMES[:1]), mentions=(0, 1, 2))
    with pytest.raises(ValueError, match="Ada Fox: all 3 retain pairs mention what is to be forgotten"):
        gradients(tiny.clip(), task, tiny.NAMES[0], RECIPE, store=Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_files_come_back_whole_and_are_checked(tmp_path):
    model, task = tiny.clip(), tiny.task()
    found = gradients(model, task, tiny.NAMES[0], RECIPE, store=Store(tmp_path))
    write_gradients(tmp_path / "g.safetensors", found)
    expected = origin(model, task, tiny.NAMES[0], RECIPE)
    back = read_gradients(tmp_path / "g.safetensors", expected)
    assert (back.n_forget, back.n_retain) == (6, 10)
    assert all(torch.equal(back.forget[name], g) for name, g in found.forget.items())
    assert all(torch.equal(back.retain[name], g) for name, g in found.retain.items())
    with pytest.raises(ValueError, match="computed from something else.*model: file has"):
        read_gradients(tmp_path / "g.safetensors", origin(tiny.clip(1), task, tiny.NAMES[0], RECIPE))
    with pytest.raises(ValueError, match="losses: file has cosine/contr.*seed: file has 0, this run has 1"):
        read_gradients(
            tmp_path / "g.safetensors", origin(model, task, tiny.NAMES[0], Recipe("contrastive", "contrastive", 4, 1))
        )
    (tmp_path / "text").write_text("not a tensor file")
    with pytest.raises(ValueError, match="not a readable gradient file"):
        read_gradients(tmp_path / "text", expected)


def test_a_runs_recipe_is_that_of_its_method():
    method = {"forget_loss": "cosine", "retain_loss": "contrastive", "batch_size": 4, "seed": 0}
    assert recipe_of(method, Path("run")) == RECIPE  # of salun, slug_layers: no precision among their settings
    assert recipe_of({**method, "precision": "bf16", "gradient": "clip"}, Path("run")) == replace(
        RECIPE, precision="bf16"
    )
    with pytest.raises(ValueError, match="run: method.gradient=answer, want a run of method.gradient=clip"):
        recipe_of({**method, "gradient": "answer"}, Path("run"))
    with pytest.raises(
        ValueError, match=r"run: its method takes no mean gradients \(retain_loss, batch_size not among"
    ):
        recipe_of({"forget_loss": "cosine", "seed": 0}, Path("run"))


def test_the_clip_of_a_run_is_the_one_that_gradients_are_of(tmp_path):
    clip = tiny.clip()
    assert clip_of(clip, Path("run")) is clip
    one, two = SimpleNamespace(clips={"text_encoder": clip}, clip=clip), SimpleNamespace(clips={"a": clip, "b": clip})
    assert clip_of(one, Path("run")) is clip
    assert clip_of(SimpleNamespace(clip=clip), Path("run")) is clip  # a vision-language model's tower
    with pytest.raises(ValueError, match="run: its model has 2 text encoders, want one"):
        clip_of(two, Path("run"))


def test_settings_of_a_recipe_are_checked():
    with pytest.raises(ValueError, match="method.precision: got 'fp16', want one of fp32, bf16"):
        Recipe("cosine", "contrastive", 4, 0, "fp16")
    with pytest.raises(ValueError, match="method.batch_size: got 0"):
        Recipe("cosine", "contrastive", 0, 0)


def test_precision_is_part_of_what_gradients_are(tmp_path):
    model, task = tiny.clip(), tiny.task()
    half = Recipe("cosine", "contrastive", 4, 0, "bf16")
    one = gradients(model, task, tiny.NAMES[0], RECIPE, store=Store(tmp_path))
    two = gradients(model, task, tiny.NAMES[0], half, store=Store(tmp_path))
    assert one.fingerprint != two.fingerprint
    assert not torch.equal(one.forget["visual.proj"], two.forget["visual.proj"])
