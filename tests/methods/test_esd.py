import copy
from dataclasses import replace

import pytest
import tiny
import tiny_sd
import torch
from records import part

from muwa.cache.store import Store
from muwa.methods.base import make_edit
from muwa.methods.esd import away_from, train
from muwa.models.diffusion.denoiser import Denoiser
from muwa.run import Run
from muwa.runtime.distributed import Distributed

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the tiny pipeline's scheduler
SMALL = {"iterations": 2, "batch_size": 2, "sampling_steps": 3}


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def esd(model, run=None, task=None, **settings):
    return make_edit(part("method=esd", **{**SMALL, **settings}), model, task or tiny.task(), run or Run())


def test_the_target_lies_on_the_other_side_of_the_empty_prompt():
    given, without = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    assert away_from(given, without, 2.0).tolist() == [-3.0, 3.0]
    assert torch.equal(away_from(given, without, 0.0), without)
    assert torch.equal(away_from(given, without, -1.0), given)


def test_the_target_in_v_is_the_v_of_the_target_in_noise():
    """A linear UNet, noise = (A + c) x: worked for alpha = 0.8, sigma = 0.6."""
    x = torch.tensor([1.0, -2.0])
    matrix = torch.tensor([[0.5, 0.1], [-0.2, 0.3]])
    without, given = matrix @ x, (matrix + torch.eye(2)) @ x  # (0.3, -0.8) and (1.3, -2.8)

    def v(noise):
        return (noise - 0.6 * x) / 0.8

    target = away_from(given, without, 0.5)
    assert target.tolist() == pytest.approx([-0.2, 0.2])
    torch.testing.assert_close(away_from(v(given), v(without), 0.5), v(target))


def test_the_first_step_is_the_one_worked_with_a_copy_of_the_unet(model):
    settings = {"variant": "x", "eta": 1.5, "iterations": 1, "learning_rate": 1e-3, "batch_size": 1}
    settings |= {"sampling_steps": 4, "start_guidance": 2.0, "seed": 7}
    found = train(model, ("Ada Fox", "a photo of Ada Fox"), part("method=esd", **settings), run=Run())
    generator = torch.Generator().manual_seed(7)
    row, stop = (int(torch.randint(n, (), generator=generator)) for n in (2, 4))
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    unet = copy.deepcopy(model.pipeline.unet).requires_grad_(True)
    c, empty = (model.embed([text]) for text in (("Ada Fox", "a photo of Ada Fox")[row], ""))
    own = Denoiser(model)
    with torch.no_grad():
        x, t = own.sample(noise, own.conditions(["Ada Fox", "a photo of Ada Fox"]).select([row]), own.conditions([""]),
                          steps=4, guidance=2.0, stop=stop)  # fmt: skip
        given, without = unet(x, t, c).sample, unet(x, t, empty).sample
    loss = (unet(x, t, c).sample - (without - 1.5 * (given - without))).square().mean()
    loss.backward()
    assert found["losses"] == pytest.approx([loss.item()], rel=1e-4)
    for name, parameter in unet.named_parameters():
        if ".attn2." in name:
            clear = (
                parameter.grad.abs() > 1e-3 * parameter.grad.abs().max()
            )  # Adam's first step is lr * sign(gradient)
            clear &= parameter.grad.abs() > 1e-6
            want = -1e-3 * parameter.grad.sign()
            assert (found["deltas"][name] - want)[clear].abs().max() < 3e-5, name


def test_x_moves_cross_attention_only_and_u_all_the_rest_only(model):
    x, u = (esd(model, variant=variant) for variant in "xu")
    names = {f"unet/{name}" for name in model.weights("unet")}
    assert set(x.deltas) == {name for name in names if ".attn2." in name}
    assert u.deltas
    assert not any(".attn2." in name for name in u.deltas)
    assert len(u.deltas) > 0.9 * len(names - set(x.deltas))
    assert {d.dtype for d in (*x.deltas.values(), *u.deltas.values())} == {torch.float32}
    (move,) = x.moves
    assert (move.concept, move.tower, move.layer) == ("Ada Fox", "unet", "cross-attention")
    assert move.step == pytest.approx(2e-4)
    assert 0 < move.relative_norm < 0.01
    assert model.edited(x).fingerprint != model.fingerprint


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(model):
    first, again, other = (esd(model, seed=seed).deltas for seed in (0, 0, 1))
    assert all(torch.equal(delta, again[name]) for name, delta in first.items())
    assert any(not torch.equal(delta, other[name]) for name, delta in first.items())


def test_it_is_trained_once_logged_alike_and_the_model_stays_as_it_was(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.weights("unet").items()}
    both = replace(tiny.task(), names=tiny.NAMES[:2])
    logged = [], []
    for rows in logged:
        store = Store(tmp_path)
        edit = esd(model, Run(store, lambda event, row, rows=rows: rows.append((event, row))), both)
    assert store.events == {"edit": "hit"}
    assert logged[0] == logged[1]
    assert [event for event, _ in logged[0]] == ["loss", "loss"]
    assert [move.concept for move in edit.moves] == list(tiny.NAMES[:2])
    assert all(torch.equal(weight, before[name]) for name, weight in model.weights("unet").items())
    assert not any(p.requires_grad for p in model.pipeline.unet.parameters())


def test_a_loss_that_is_no_number_stops_and_leaves_the_model(model):
    before = {name: weight.clone() for name, weight in model.weights("unet").items()}
    with pytest.raises(ValueError, match="method.learning_rate: the loss is (nan|inf) at step"):
        esd(model, learning_rate=1e30, iterations=4)
    assert all(torch.equal(weight, before[name]) for name, weight in model.weights("unet").items())


def test_wrong_settings_stop_before_any_compute(model, tmp_path):
    store = Store(tmp_path)
    for settings, message in (
        ({"variant": "full"}, "method.variant: got 'full', want one of x, u"),
        ({"eta": -1}, "method.eta: got -1, want at least 0"),
        ({"iterations": 0}, "method.iterations: got 0, want at least 1"),
        ({"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
        ({"sampling_steps": 0}, "method.sampling_steps: got 0, want at least 1"),
        ({"start_guidance": 0.5}, "method.start_guidance: got 0.5, want at least 1"),
        ({"learning_rate": float("nan")}, "method.learning_rate: got nan, want a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            esd(model, Run(store), **settings)
    with pytest.raises(
        ValueError, match="gradients: method=esd takes no mean gradients; leave gradients=.*g out"
    ):
        esd(model, Run(store, gradient_file=tmp_path / "g"))
    with pytest.raises(ValueError, match=r"method=esd: got a CLIP .* \(tiny\), want a text-to-image model"):
        esd(tiny.clip(), Run(store))
    assert esd(model, Run(store, distributed=Distributed(1, 2))).deltas == {}
    assert store.events == {}
