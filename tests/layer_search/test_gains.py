"""The gain of a layer: worked by hand, without units, and largest for the whitened direction."""

import pytest
import tiny
import torch

from muwa.layer_search.gains import layer_gains
from muwa.types.gradients import Moments, Whitened
from muwa.types.search import Layer, Part

EYE = torch.eye(2)
C, S = torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([2.0, 3.0]))
FIRST = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # the first input to the first output


def layer(*parts):
    return Layer("layer", "vision", 0.5, parts, parts)


def gain(weights, gradient, direction, inputs, outputs=None, parts=None):
    """The gain of one layer, by default of all weights."""
    whitened = Whitened(gradient, Moments(inputs=inputs, outputs=outputs or {}))
    found = layer_gains(weights, direction, whitened, [layer(*(parts or map(Part, weights)))])
    return found["layer"]


def test_worked_by_hand():
    """tr(D C D^T) = 4 of tr(W C W^T) = 5; with S, 2 * 4 of 2 * 4 + 3 * 1."""
    one = {"w": FIRST}
    assert gain({"w": EYE}, one, one, {"w": C}) == pytest.approx((4 / 5) ** -0.5)
    assert gain({"w": EYE}, one, one, {"w": C}, {"w": S}) == pytest.approx((8 / 11) ** -0.5)
    # along another direction [[1, 1], [0, 0]] the rise is the same 1, and the change is (4 + 1) / 5
    assert gain({"w": EYE}, one, {"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, {"w": C}) == pytest.approx(
        1.0
    )


def test_a_projection_has_its_inputs_first():
    """x W with the first input going to the second output: its row is that of C."""
    one = {"visual.proj": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}
    got = gain({"visual.proj": EYE}, one, one, {"visual.proj": C}, {"visual.proj": S})
    assert got == pytest.approx((3 * 4 / 11) ** -0.5)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def definite(size, seed=0):
    root = random(size, size + 2, seed=seed)
    return root @ root.T


@pytest.mark.parametrize("scaled", ["direction", "inputs", "outputs"])
def test_no_scale_counts_but_that_of_the_gradient(scaled):
    one = {"weights": random(3, 4), "gradient": random(3, 4, seed=1), "direction": random(3, 4, seed=1) + 0.3 * random(3, 4, seed=2),
           "inputs": definite(4), "outputs": definite(3)}  # fmt: skip

    def of(**changed):
        return gain(**{key: {"w": changed.get(key, value)} for key, value in one.items()})

    assert of(**{scaled: 1e3 * one[scaled]}) == pytest.approx(of(), rel=1e-5)
    assert of(gradient=3 * one["gradient"]) == pytest.approx(3 * of(), rel=1e-5)
    assert of(weights=3 * one["weights"]) == pytest.approx(
        3 * of(), rel=1e-5
    )  # relative to the outputs themselves


def test_no_direction_has_a_larger_gain_than_the_whitened_one():
    """It is tr(G^T S^-1 G C^-1)^(1/2), times the size of the outputs, tr(S W C W^T)^(1/2)."""
    w, g, c, s = random(3, 4), random(3, 4, seed=1), definite(4), definite(3)
    best = torch.linalg.inv(s) @ g @ torch.linalg.inv(c)
    gains = [gain({"w": w}, {"w": g}, {"w": best + 0.1 * best.norm() * random(3, 4, seed=seed)}, {"w": c}, {"w": s})
             for seed in range(100)]  # fmt: skip
    got = gain({"w": w}, {"w": g}, {"w": best}, {"w": c}, {"w": s})
    assert got > max(gains)
    want = (torch.trace(g.T @ best) * torch.trace(s @ w @ c @ w.T)).item() ** 0.5
    assert got == pytest.approx(want, rel=1e-4)


def test_rises_and_relative_changes_of_parts_add_up():
    """Rises 1 and 2 * 2; changes 4 / 5 and 4 / 2."""
    forget = {"a": FIRST, "b": 2 * FIRST}
    got = gain({"a": EYE, "b": EYE}, forget, forget, {"a": C, "b": EYE})
    assert got == pytest.approx(5 / (4 / 5 + 4 / 2) ** 0.5)


def test_a_part_is_its_rows_and_columns_alone():
    """All entries of G = D are 1. One row: rise 2, change (4 + 1) / 5. One column: rise 2, change 8 / 5."""
    ones = {"w": torch.ones(2, 2)}
    assert gain({"w": EYE}, ones, ones, {"w": C}, parts=[Part("w", 0, 1, 1)]) == pytest.approx(2.0)
    assert gain({"w": EYE}, ones, ones, {"w": C}, parts=[Part("w", 1, 0, 1)]) == pytest.approx(
        2 / (8 / 5) ** 0.5
    )
    assert torch.equal(ones["w"], torch.ones(2, 2))


def test_the_gain_of_a_head_is_that_of_its_rows_and_columns():
    model = tiny.clip()
    head = next(one for one in model.layers("head") if one.name.endswith("resblocks.0.attn.head1"))
    module = head.name.removesuffix(".head1")
    names = [f"{module}.in_proj_weight", f"{module}.out_proj.weight"]
    g = {name: random(*model.weights[name].shape, seed=i) for i, name in enumerate(names)}
    inputs = {name: definite(32, seed=i) for i, name in enumerate(names)}
    got = layer_gains(model.weights, g, Whitened(g, Moments(inputs=inputs, outputs={})), [head])[head.name]
    kept = [torch.zeros_like(g[name]) for name in names]
    for start in (16, 48, 80):  # the second half of q, of k and of v
        kept[0][start : start + 16] = g[names[0]][start : start + 16]
    kept[1][:, 16:] = g[names[1]][:, 16:]
    rise = sum((g[name] * d).sum() for name, d in zip(names, kept, strict=True))

    def cost(name, change):
        return torch.trace(change @ inputs[name] @ change.T)

    change = sum(cost(name, d) / cost(name, model.weights[name]) for name, d in zip(names, kept, strict=True))
    assert got == pytest.approx((rise / change**0.5).item(), rel=1e-4)


def test_a_layer_without_a_moment_of_every_part_has_no_gain():
    forget = {"a": FIRST, "b": FIRST}
    whitened = Whitened(forget, Moments(inputs={"a": C}, outputs={}))
    both = layer(Part("a"), Part("b"))
    assert layer_gains({"a": EYE, "b": EYE}, forget, whitened, [both]) == {}


@pytest.mark.parametrize("direction", [0 * FIRST, -FIRST])
def test_a_direction_that_raises_nothing_has_a_gain_of_0(direction):
    assert gain({"w": EYE}, {"w": FIRST}, {"w": direction}, {"w": C}) == 0.0
