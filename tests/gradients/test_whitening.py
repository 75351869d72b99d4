"""The whitened direction, against dense linear algebra on small matrices and against the losses themselves."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.linalg import fractional_matrix_power
from scipy.optimize import minimize

from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import ClipGradients, mean_gradients
from muwa.gradients.whitening import WhitenedGradients, Whitening, inverse_power, shares
from muwa.layer_search.steps import step_deltas
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients, Moments

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")
PLAIN = Whitening(damping=0.3, output_damping=0.2, input_power=1.0, output_power=0.0)
BOTH = replace(PLAIN, output_power=1.0)


def moment(size):
    """A positive definite matrix, as fp32."""
    root = np.random.default_rng(size).normal(size=(size, size + 2))
    return torch.tensor(root @ root.T, dtype=torch.float32)


def normal(*shape, dtype=torch.float32, seed=0):
    """Normal numbers."""
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=dtype)


def damped(matrix, damping):
    """M / mean eigenvalue + damping I, in numpy."""
    matrix = matrix.double().numpy()
    return matrix / np.linalg.eigvalsh(matrix).mean() + damping * np.eye(len(matrix))


@pytest.mark.parametrize("name", ["mlp.c_fc.weight", "visual.proj"])
def test_it_solves_the_kronecker_system(name):
    """(S kron C) vec(D) = vec(G), with rows one after the other; a projection x W is the transpose."""
    c, s, g = moment(2), moment(3), normal(3, 2)
    stored = g.T.contiguous() if name == "visual.proj" else g
    got = BOTH([{name: stored}], [1.0], Moments(inputs={name: c}, outputs={name: s}))[name]
    assert got.shape == stored.shape
    assert got.dtype == torch.float32
    system = np.kron(damped(s, 0.2), damped(c, 0.3))
    want = np.linalg.solve(system, g.double().numpy().flatten()).reshape(3, 2)
    np.testing.assert_allclose((got.T if name == "visual.proj" else got).numpy(), want, rtol=1e-5)


def test_a_convolution_is_a_matrix_of_its_windows():
    name, c = "visual.conv1.weight", moment(8)
    g = normal(3, 2, 2, 2)
    got = PLAIN([{name: g}], [1.0], Moments(inputs={name: c}, outputs={}))[name]
    want = np.linalg.solve(damped(c, 0.3), g.double().numpy().reshape(3, 8).T).T
    np.testing.assert_allclose(got.numpy(), want.reshape(3, 2, 2, 2), rtol=1e-5)


@pytest.mark.parametrize("powers", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5), (1.0, 0.5), (0.25, 1.0)])
def test_each_side_has_its_power(powers):
    c, s, g = moment(4), moment(3), normal(3, 4)
    whitening = replace(PLAIN, input_power=powers[0], output_power=powers[1])
    got = whitening([{"w": g}], [1.0], Moments(inputs={"w": c}, outputs={"w": s}))["w"]
    left, right = (
        fractional_matrix_power(damped(*one), -power)
        for one, power in (((s, 0.2), powers[1]), ((c, 0.3), powers[0]))
    )
    np.testing.assert_allclose(got.numpy(), left @ g.double().numpy() @ right, rtol=1e-5, atol=1e-6)


def test_output_moments_do_not_count_without_a_power():
    c, s, g = moment(4), moment(3), normal(3, 4)
    got = [
        PLAIN([{"w": g}], [1.0], Moments(inputs={"w": c}, outputs=outputs))["w"] for outputs in ({}, {"w": s})
    ]
    assert torch.equal(*got)


def test_a_scale_of_a_moment_does_not_count():
    c, g = moment(4), normal(3, 4)
    got = [PLAIN([{"w": g}], [1.0], Moments(inputs={"w": k * c}, outputs={}))["w"] for k in (1.0, 1e6)]
    torch.testing.assert_close(got[1], got[0])


def test_a_weight_without_an_input_moment_keeps_its_gradient():
    g, h = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 0.0])
    none = Moments(inputs={}, outputs={})
    assert torch.equal(PLAIN([{"ln.weight": g}], [1.0], none)["ln.weight"], g)
    assert PLAIN([{"ln.weight": g}, {"ln.weight": h}], [1.0, 0.5], none)["ln.weight"].tolist() == [6.0, 2.0]


def cost(c, s, d):
    """tr(S D C D^T)."""
    return np.trace(s @ d @ c @ d.T)


def test_no_direction_forgets_more_for_its_cost():
    """<G, D> / tr(S D C D^T)^(1/2), for D and for many others near and far."""
    c, s, g = moment(4), moment(3), normal(3, 4)
    tiny_damping = Whitening(1e-7, 1e-7, 1.0, 1.0)
    d = tiny_damping([{"w": g}], [1.0], Moments(inputs={"w": c}, outputs={"w": s}))["w"].double().numpy()
    c, s, g = (one.double().numpy() for one in (c, s, g))

    def gain(direction):
        return (g * direction).sum() / cost(c, s, direction) ** 0.5

    others = [
        d + scale * np.abs(d).mean() * normal(3, 4, seed=i).numpy()
        for scale in (0.01, 0.1, 1, 100)
        for i in range(1, 500)
    ]
    assert gain(d) > max(gain(other) for other in others)
    assert gain(d) == pytest.approx(np.trace(g.T @ np.linalg.inv(s) @ g @ np.linalg.inv(c)) ** 0.5, rel=1e-4)
    assert gain(g) < 0.99 * gain(d)


def test_the_joint_direction_costs_least_of_all_that_raise_every_loss_enough():
    """Against scipy's SLSQP on the factors; one name would be pushed back by the others alone, so its factor is 0."""
    gradients = normal(4, 3, 5, dtype=torch.float64)
    gradients[3] = gradients[0] + 0.9 * gradients[1] + 0.01 * gradients[3]
    inverse = torch.tensor(np.linalg.inv(damped(moment(5), 0.1)))
    whitened = gradients @ inverse
    rises = [1.0, 2.0, 0.5, 0.7]
    a = np.einsum("nij,mij->nm", gradients.numpy(), whitened.numpy())
    found = minimize(lambda w: w @ a @ w, np.ones(4), jac=lambda w: 2 * a @ w, method="SLSQP", tol=1e-14,
                     constraints={"type": "ineq", "fun": lambda w: a @ w - rises, "jac": lambda w: a},
                     options={"maxiter": 1000})  # fmt: skip
    got = shares(gradients, whitened, rises).numpy()
    assert found.success
    assert (got == 0).any()
    assert (got >= 0).all()
    assert (a @ got >= np.array(rises) - 1e-6).all()
    assert got @ a @ got == pytest.approx(found.fun, rel=1e-5)
    assert np.linalg.solve(a, rises).min() < 0  # equal rises would need a negative factor


def test_a_name_that_others_carry_along_gets_no_share_by_hand():
    """A = [[1, 0.9], [0.9, 1]], rises 1 and 3: A w = (1, 3) wants w = (-8.9, 11.05); w = (0, 3) gives (2.7, 3)."""
    g = torch.tensor([[[1.0, 0.0]], [[0.9, 0.19**0.5]]], dtype=torch.float64)
    assert shares(g, g, [1.0, 3.0]).tolist() == pytest.approx([0.0, 3.0], abs=1e-6)
    assert shares(g, g, [1.9, 1.9]).tolist() == pytest.approx([1.0, 1.0], rel=1e-6)


def test_one_name_has_the_factor_1_whatever_its_rise():
    g = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64)
    assert shares(g, 7 * g, [0.2]).tolist() == [1.0]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_shares_know_no_unit(scale):
    """Gradients k times as large need k^2 times smaller factors for the same rises."""
    g = normal(3, 2, 4, dtype=torch.float64)
    want = shares(g, g, [1.0, 1.0, 2.0]) / scale**2
    torch.testing.assert_close(shares(scale * g, scale * g, [1.0, 1.0, 2.0]), want, rtol=1e-4, atol=0.0)


def test_where_every_gradient_is_zero_there_is_no_direction():
    g = torch.zeros(3, 4)
    got = PLAIN([{"w": g}, {"w": g}], [1.0, 1.0], Moments(inputs={"w": moment(4)}, outputs={}))["w"]
    assert torch.equal(got, g)


def test_a_name_without_a_gradient_changes_nothing():
    g, moments = normal(3, 4), Moments(inputs={"w": moment(4)}, outputs={})
    alone = PLAIN([{"w": g}], [1.0], moments)["w"]
    got = PLAIN([{"w": g}, {"w": torch.zeros(3, 4)}], [1.0, 1.0], moments)["w"]
    torch.testing.assert_close(got / got.norm(), alone / alone.norm())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_an_inverse_power_of_nothing_is_that_of_the_damping(power):
    got = inverse_power(torch.zeros(3, 3), 0.25, power)
    torch.testing.assert_close(got, 4.0**power * torch.eye(3, dtype=torch.float64))


def test_a_singular_moment_and_one_with_rounding_below_0_are_damped():
    low = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    for power in (0.5, 1.0):
        want = fractional_matrix_power(np.array([[1.1, 1.0], [1.0, 1.1]]), -power)
        np.testing.assert_allclose(inverse_power(low, 0.1, power).numpy(), want, rtol=1e-6)
    below = inverse_power(torch.diag(torch.tensor([2.0, -1e-7])), 0.01, 0.5)
    assert below[1, 1].item() == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"damping": 0.0}, "method.damping: got 0.0, want a number above 0"),
    ({"damping": float("nan")}, "method.damping: got nan, want a number above 0"),
    ({"output_damping": -1.0}, "method.output_damping: got -1.0, want a number above 0"),
    ({"output_damping": float("inf")}, "method.output_damping: got inf"),
    ({"input_power": 2.0}, "method.input_power: got 2.0, want a power from 0 to 1"),
    ({"output_power": -0.5}, "method.output_power: got -0.5, want a power from 0 to 1"),
])  # fmt: skip
def test_settings_out_of_range_are_named(settings, message):
    WhitenedGradients(ClipGradients(), PLAIN).check(tiny.clip(), RECIPE, Run())
    with pytest.raises(ValueError, match=message):
        WhitenedGradients(ClipGradients(), replace(PLAIN, **settings)).check(tiny.clip(), RECIPE, Run())


def mean_cosine(model, pairs):
    with torch.no_grad():
        v = model.encode("vision", tiny.pixels(pairs.images))
        t = model.encode("text", tiny.tokenize(list(pairs.captions)))
    return (v * t).sum(-1).mean().item()


def test_a_small_step_along_it_raises_the_forget_loss_by_the_product_with_the_gradient():
    model, task = tiny.clip(), tiny.task()
    plain = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    source = WhitenedGradients(ClipGradients(), Whitening(0.1, 0.1, 1.0, 0.5))
    found = source(model, task, tiny.NAMES[0], RECIPE, Run())[""]
    pairs = task.forget[tiny.NAMES[0]]
    before, tried = mean_cosine(model, pairs), 0
    for layer in model.layers("tensor"):
        rise = sum((part.of(plain.forget) * part.of(found.forget)).sum().item() for part in layer.edited)
        if sum(part.of(plain.forget).square().sum().item() for part in layer.scored) < 1e-4:
            continue
        assert rise > 0, layer.name
        edit = Edit(step_deltas(model, found, layer, 5e-4 / rise), ())
        assert mean_cosine(model.edited(edit), pairs) - before == pytest.approx(-5e-4, rel=0.3), layer.name
        tried += 1
    assert tried >= 15


def test_a_source_gives_the_gradients_of_the_other_with_another_forget_gradient():
    model, task = tiny.clip(), tiny.task()
    plain = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    moments = ClipGradients().moments(model, task, RECIPE, Run(), outputs=True)[""]
    for whitening, outputs in ((PLAIN, False), (BOTH, True)):
        got = WhitenedGradients(ClipGradients(), whitening)(model, task, tiny.NAMES[0], RECIPE, Run())[""]
        want = whitening([plain.forget], [1.0], moments)
        assert all(torch.equal(got.forget[name], g) for name, g in want.items())
        assert all(torch.equal(got.retain[name], g) for name, g in plain.retain.items())
        assert all(torch.equal(got.whitened.forget[name], g) for name, g in plain.forget.items())
        assert (got.n_forget, got.n_retain) == (plain.n_forget, plain.n_retain)
        assert bool(got.whitened.moments["outputs"]) == outputs


def given(seed, pairs=4):
    """Gradients of a name that is not there, of one weight."""
    g = normal(3, 4, seed=seed)
    return Gradients({"w": g}, {"w": torch.ones(3, 4)}, pairs, 9, {"forget_pairs": str(seed), "model": "m"})


def test_several_names_have_one_direction_that_raises_each_loss_alike():
    source, moments = WhitenedGradients(ClipGradients(), PLAIN), Moments(inputs={"w": moment(4)}, outputs={})
    names = [given(3), given(4, 7)]
    got = source.whitened(names, [1.0, 1.0], moments)
    assert (got.n_forget, got.n_retain) == (11, 9)
    assert torch.equal(got.whitened.forget["w"], names[0].forget["w"] + names[1].forget["w"])
    rises = [(one.forget["w"] * got.forget["w"]).sum().item() for one in names]
    assert rises == pytest.approx([1.0, 1.0], rel=1e-4)
    other = source.whitened(names, [1.0, 0.5], moments)
    rises = [(one.forget["w"] * other.forget["w"]).sum().item() for one in names]
    assert rises == pytest.approx([1.0, 0.5], rel=1e-4)


def test_a_fingerprint_has_all_that_the_direction_depends_on():
    moments = Moments(inputs={"w": moment(4)}, outputs={})

    def fingerprint(names=(1,), rises=(1.0,), **changed):
        source = WhitenedGradients(ClipGradients(), replace(PLAIN, **changed))
        return source.whitened([given(seed) for seed in names], rises, moments).fingerprint

    changes = [fingerprint(), given(1).fingerprint, fingerprint(damping=0.31), fingerprint(output_damping=0.21),
               fingerprint(input_power=0.5), fingerprint(output_power=0.5), fingerprint(names=(2,)),
               fingerprint(names=(1, 2), rises=(1.0, 1.0)), fingerprint(names=(1, 2), rises=(1.0, 0.5))]  # fmt: skip
    assert len(set(changes)) == len(changes)
    assert fingerprint() == changes[0]


class Nothing(GradientSource):
    """A source on a worker rank, which refuses every model."""

    def check(self, model, recipe, run):
        raise ValueError("the inner source says no")

    def __call__(self, model, task, name, recipe, run):
        return None

    def moments(self, model, task, recipe, run, *, outputs):
        asked.append(outputs)


asked: list[bool] = []


def test_a_worker_rank_takes_part_in_both_passes_and_gets_nothing():
    asked.clear()
    for whitening in (PLAIN, BOTH):
        assert WhitenedGradients(Nothing(), whitening)(tiny.clip(), tiny.task(), "x", RECIPE, Run()) is None
    assert asked == [False, True]
    worker = Run(distributed=Distributed(1, 2))
    assert (
        WhitenedGradients(Nothing(), PLAIN).moments(tiny.clip(), tiny.task(), RECIPE, worker, outputs=True)
        is None
    )
    with pytest.raises(ValueError, match="the inner source says no"):
        WhitenedGradients(Nothing(), PLAIN).check(tiny.clip(), RECIPE, Run())
