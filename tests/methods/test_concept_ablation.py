import copy
from dataclasses import replace

import pytest
import tiny
import tiny_sd
import torch
from records import part

from muwa.cache.store import Store
from muwa.methods.base import make_edit
from muwa.methods.concept_ablation import train
from muwa.models.diffusion.denoiser import Denoiser, cross_attention
from muwa.run import Run
from muwa.runtime.distributed import Distributed

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the tiny pipeline's scheduler
SMALL = {"iterations": 2, "batch_size": 2, "pictures": 3}
PAIRS = (("Ada Fox", "a man"), ("a photo of Ada Fox", "a photo of a man"))


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def method(**settings):
    return part("method=concept_ablation", **{**SMALL, **settings})


def ablate(model, run=None, task=None, **settings):
    return make_edit(method(**settings), model, task or tiny.task(), run or Run())


def apart(model, before, texts):
    """Mean square distance of the predictions for the first text by `model` and for the second by `before`, on new noise."""
    one, other = Denoiser(model), Denoiser(before)
    x, t = one.noise(8, torch.Generator().manual_seed(99)), torch.arange(100, 900, 100)
    with torch.no_grad():
        mine = one(x, t, one.conditions(texts[:1]).select([0] * 8))
        return (mine - other(x, t, other.conditions(texts[1:]).select([0] * 8))).square().mean().item()


def test_the_loss_falls_and_the_names_prediction_nears_the_anchors(model):
    losses = []
    run = Run(log=lambda event, row: losses.append(row["loss"]))
    edit = ablate(model, run, anchor="a man", iterations=25, learning_rate=2e-3, batch_size=4, pictures=4)
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    edited = model.edited(edit)
    for pair in PAIRS:
        assert apart(edited, model, pair) < 0.5 * apart(model, model, pair)
    assert apart(edited, model, ("a man", "a man")) < 0.5 * apart(model, model, PAIRS[0])


def first_step(model, prior):
    """(losses of one step by `train`; the loss worked with a copy of the UNet; its gradients)."""
    settings = method(iterations=1, learning_rate=1e-3, batch_size=2, pictures=2, prior_weight=prior, seed=3)
    found = train(model, PAIRS, settings, run=Run())
    own = Denoiser(model)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    latents = [
        own.sample(
            noise[i : i + 1], own.conditions([PAIRS[i][1]]), own.conditions([""]), steps=2, guidance=2.0
        )[0]
        for i in range(2)
    ]
    chosen = torch.randint(2, (2,), generator=generator).tolist()
    t = torch.randint(1000, (2,), generator=generator)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    alpha = own.scheduler.alphas_cumprod[t].view(2, 1, 1, 1)
    x = alpha.sqrt() * torch.cat([latents[i] for i in chosen]) + (1 - alpha).sqrt() * noise
    unet = copy.deepcopy(model.pipeline.unet).requires_grad_(True)
    name, anchor = (model.embed([PAIRS[i][side] for i in chosen]) for side in (0, 1))
    shown = unet(x, t, anchor).sample
    loss = (unet(x, t, name).sample - shown.detach()).square().mean() + prior * (
        shown - noise
    ).square().mean()
    loss.backward()
    return found, loss.item(), {n: p.grad for n, p in unet.named_parameters()}


@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_the_first_step_is_the_one_worked_with_a_copy_of_the_unet(model, prior):
    found, loss, gradients = first_step(model, prior)
    assert found["losses"] == pytest.approx([loss], rel=1e-4)
    assert set(found["deltas"]) == set(cross_attention(model))
    for name, delta in found["deltas"].items():
        clear = gradients[name].abs() > 1e-2 * gradients[name].abs().max()
        decayed = 1e-3 * 0.01 * model.weights("unet")[name]  # AdamW takes lr * decay * weight off as well
        want = -1e-3 * gradients[name].sign() - decayed
        assert (delta - want)[clear].abs().max() < 2e-4, name


def test_cross_attention_moves_keys_and_values_only_and_full_all(model):
    some, every = (ablate(model, weights=which) for which in ("cross-attn", "full"))
    assert set(some.deltas) == {f"unet/{name}" for name in cross_attention(model)}
    assert set(every.deltas) > set(some.deltas)
    assert len(every.deltas) > 0.9 * len(model.weights("unet"))
    (move,) = some.moves
    assert (move.concept, move.tower, move.layer) == ("Ada Fox", "unet", "cross-attention k, v")
    assert move.step == pytest.approx(2e-4)
    assert 0 < move.relative_norm < 0.1


def test_the_same_seed_gives_the_same_bytes_and_the_model_stays_as_it_was(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.weights("unet").items()}
    both = replace(tiny.task(), names=tiny.NAMES[:2])
    first, again, other = (
        ablate(model, Run(Store(tmp_path / folder)), both, seed=seed)
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(delta, again.deltas[name]) for name, delta in first.deltas.items())
    assert any(not torch.equal(delta, other.deltas[name]) for name, delta in first.deltas.items())
    assert [move.concept for move in first.moves] == list(tiny.NAMES[:2])
    store = Store(tmp_path / "a")
    ablate(model, Run(store), both)
    assert store.events == {"edit": "hit"}
    assert all(torch.equal(weight, before[name]) for name, weight in model.weights("unet").items())


def test_half_precision_is_trained_in_fp32():
    half = tiny_sd.diffusion(dtype=torch.float16)
    edit = ablate(half)
    assert {delta.dtype for delta in edit.deltas.values()} == {torch.float32}
    name = next(iter(edit.deltas))
    assert half.edited(edit).weights("unet")[name.removeprefix("unet/")].dtype == torch.float16


def test_wrong_settings_stop_before_any_compute(model, tmp_path):
    store = Store(tmp_path)
    for settings, message in (
        ({"weights": "text"}, "method.weights: got 'text', want one of cross-attn, full"),
        ({"iterations": 0}, "method.iterations: got 0, want at least 1"),
        ({"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
        ({"pictures": 0}, "method.pictures: got 0, want at least 1"),
        ({"prior_weight": -1}, "method.prior_weight: got -1, want at least 0"),
        ({"learning_rate": 0}, "method.learning_rate: got 0, want a number above 0"),
        ({"anchor": "Ada Fox"}, "method.anchor: got 'Ada Fox', which is to be forgotten"),
    ):
        with pytest.raises(ValueError, match=message):
            ablate(model, Run(store), **settings)
    with pytest.raises(
        ValueError, match="method.anchor: got null, and a task of kind 'plant' has no anchor; give"
    ):
        ablate(model, Run(store), replace(tiny.task(), kind="plant"))
    refused = "gradients: method=concept_ablation takes no mean gradients; leave gradients=.*g out"
    with pytest.raises(ValueError, match=refused):
        ablate(model, Run(store, gradient_file=tmp_path / "g"))
    with pytest.raises(
        ValueError, match=r"method=concept_ablation: got a CLIP .* \(tiny\), want a text-to-image"
    ):
        ablate(tiny.clip(), Run(store))
    assert ablate(model, Run(store, distributed=Distributed(1, 2))).deltas == {}
    assert store.events == {}
