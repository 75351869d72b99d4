from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import ClipGradients, mean_gradients
from muwa.gradients.moments import clip_input_sums
from muwa.gradients.subspaces import ProjectedGradients, fisher_moments, leading
from muwa.models.clip.layers import matrices
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients


def moved(model, name, delta):
    return model.edited(Edit({name: delta}, ()))


@pytest.fixture(scope="module")
def one_pair():
    return tiny.pairs(1)


def embeddings(model, pairs):
    with torch.no_grad():
        return model.encode("vision", tiny.pixels(pairs.images)), model.encode(
            "text", tiny.tokenize(list(pairs.captions))
        )


@pytest.mark.parametrize("name", matrices(tiny.clip().weights))
def test_a_step_outside_the_span_of_the_activations_changes_no_embedding(name, one_pair):
    """One pair has 5 patches and 16 tokens, fewer than any weight has inputs (32)."""
    model = tiny.clip()
    moment = clip_input_sums(model, one_pair, batch_size=5, run=Run())[name]
    values = torch.linalg.eigvalsh(moment.double())
    rank = int((values > 1e-6 * values.max()).sum())
    assert 1 <= rank <= 16
    delta = 3 * torch.randn(model.weights[name].shape, generator=torch.Generator().manual_seed(0))
    found = Gradients({name: delta}, {name: torch.zeros_like(delta)}, 1, 1, {})
    source = ProjectedGradients(ClipGradients(), "activations", 0.5, rank)
    projected = source.projected(found, {name: moment}).forget[name]
    assert projected.norm() > 0.2 * delta.norm()
    before = torch.cat(embeddings(model, one_pair))
    assert (torch.cat(embeddings(moved(model, name, projected), one_pair)) - before).abs().max() < 1e-4
    assert (torch.cat(embeddings(moved(model, name, delta), one_pair)) - before).abs().max() > 1e-2


def test_fisher_is_the_sum_over_batches_of_gradients_squared_on_the_input_side():
    model, pairs = tiny.clip(), tiny.pairs(12)
    found = fisher_moments(model, pairs, loss="contrastive", batch_size=5, seed=0, run=Run())
    order = np.random.default_rng(0).permutation(12).tolist()
    name, want = "transformer.resblocks.0.mlp.c_fc.weight", torch.zeros(32, 32)
    for batch in (order[:5], order[5:10], order[10:]):
        network = tiny.clip()._towers.model.requires_grad_(True)
        v = F.normalize(network.encode_image(tiny.pixels([pairs.images[i] for i in batch])), dim=-1)
        t = F.normalize(network.encode_text(tiny.tokenize([pairs.captions[i] for i in batch])), dim=-1)
        logits, target = network.logit_scale.exp() * v @ t.T, torch.arange(len(batch))
        ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
        g = network.get_parameter(name).grad
        want += len(batch) * g.T @ g
    torch.testing.assert_close(found[name], want, rtol=1e-3, atol=1e-6)


def test_the_retain_gradients_own_directions_go_out_by_hand():
    """G_r uses the input (3, 4) / 5 alone: what is left of each row of G_f is its part along (4, -3) / 5."""
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    g_f, g_r = (
        torch.tensor([[5.0, 0.0], [0.0, 5.0], [3.0, 4.0]]),
        torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]]),
    )
    found = Gradients({name: g_f, "ln_final.weight": torch.ones(2)}, {name: g_r}, 1, 1, {"seed": "0"})
    first = ProjectedGradients(ClipGradients(), "gradient", 0.5, 1)
    got = first.projected(found, None)
    torch.testing.assert_close(got.forget[name], torch.tensor([[3.2, -2.4], [-2.4, 1.8], [0.0, 0.0]]))
    assert torch.equal(got.forget["ln_final.weight"], torch.ones(2))
    assert torch.equal(found.forget[name], g_f)
    assert got.fingerprint != found.fingerprint
    assert got.fingerprint != replace(first, rank=None).projected(found, None).fingerprint


@pytest.mark.parametrize(("energy", "k"), [(0.5, 1), (0.8, 1), (0.81, 2), (0.9, 2), (0.95, 3)])
def test_so_many_directions_as_hold_the_energy(energy, k):
    moment = torch.diag(torch.tensor([1.0, 8.0, 1.0, 0.0]))
    assert leading(moment, rank=None, energy=energy).shape == (4, k)


def test_something_is_always_left_to_step_along():
    assert leading(torch.eye(3), rank=9, energy=0.5).shape == (3, 2)


RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


def others(task):
    """The retain set without the pairs that mention what is to be forgotten."""
    return task.retain.select([i for i in range(len(task.retain)) if i not in task.mentions])


def projected(kind, task, run=None):
    """The gradients without the leading half of the retain set's input directions."""
    source = ProjectedGradients(ClipGradients(), kind, 0.5, None)
    return source(tiny.clip(), task, tiny.NAMES[0], RECIPE, run or Run())[""]


@pytest.mark.parametrize("kind", ["fisher", "activations"])
def test_the_subspace_of_a_request_is_that_of_the_pairs_that_do_not_mention_it(kind):
    model, task = tiny.clip(), tiny.task()
    got = projected(kind, task)
    if kind == "fisher":
        moments = fisher_moments(model, others(task), loss="contrastive", batch_size=4, seed=0, run=Run())
    else:
        moments = clip_input_sums(model, others(task), batch_size=4, run=Run())
    plain = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    assert set(moments) == set(matrices(model.weights))
    name = "transformer.resblocks.0.mlp.c_fc.weight"  # (outputs, inputs), as it is
    values, vectors = np.linalg.eigh(moments[name].double().numpy())
    count = int((np.cumsum(values[::-1]) / values.sum() < 0.5).sum()) + 1
    leading = torch.from_numpy(vectors[:, -count:]).float()
    want = plain.forget[name] - plain.forget[name] @ leading @ leading.T
    torch.testing.assert_close(got.forget[name], want, rtol=1e-3, atol=1e-5 * want.abs().max().item())
    everything = projected(kind, replace(task, mentions=()))
    assert (everything.forget[name] - want).norm() > 1e-3 * want.norm()


@pytest.mark.parametrize(
    ("kind", "stage", "event"), [("activations", "moments/inputs", "hit"), ("fisher", "subspace", "miss")]
)
def test_requests_share_one_sum_of_activations(kind, stage, event, tmp_path):
    projected(kind, tiny.task(), Run(Store(tmp_path)))
    store = Store(tmp_path)
    projected(kind, replace(tiny.task(), mentions=()), Run(store))
    assert store.events[stage] == event


@pytest.mark.parametrize("kind", ["gradient", "fisher"])
def test_only_activations_need_the_moments_of_the_other_source(kind, monkeypatch):
    monkeypatch.delattr(ClipGradients, "moments")
    assert projected(kind, tiny.task()).n_forget == 6


def test_moments_are_those_of_the_other_source():
    source, task = ProjectedGradients(ClipGradients(), "gradient", 0.5, None), tiny.task()
    got = source.moments(tiny.clip(), task, RECIPE, Run(), outputs=True)
    want = ClipGradients().moments(tiny.clip(), task, RECIPE, Run(), outputs=True)
    for side in ("inputs", "outputs"):
        assert set(got[""][side]) == set(want[""][side]) == set(matrices(tiny.clip().weights))
        assert all(torch.equal(got[""][side][name], moment) for name, moment in want[""][side].items())


def test_a_projected_source_gives_what_the_other_source_gives_without_the_leading_directions():
    model, task = tiny.clip(), tiny.task()
    plain = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    (got,) = ProjectedGradients(ClipGradients(), "gradient", 0.95, 2)(
        model, task, tiny.NAMES[0], RECIPE, Run()
    ).values()
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"  # (outputs, inputs), as it is
    directions = torch.linalg.svd(plain.retain[name]).Vh[:2]
    torch.testing.assert_close(
        got.forget[name],
        plain.forget[name] - plain.forget[name] @ directions.T @ directions,
        rtol=1e-3,
        atol=1e-6,
    )
    assert all(torch.equal(got.retain[name], g) for name, g in plain.retain.items())
    assert torch.equal(got.forget["visual.ln_post.bias"], plain.forget["visual.ln_post.bias"])
    assert (got.n_forget, got.n_retain) == (plain.n_forget, plain.n_retain)


class Nothing(GradientSource):
    """A source on a worker rank, which refuses every model."""

    def check(self, model, recipe, run):
        raise ValueError("the inner source says no")

    def __call__(self, model, task, name, recipe, run):
        return None

    def moments(self, model, task, recipe, run, *, outputs):
        return None


def test_where_the_other_source_gives_nothing_there_is_nothing_to_project():
    source = ProjectedGradients(Nothing(), "activations", 0.95, None)
    assert source(tiny.clip(), tiny.task(), tiny.NAMES[0], RECIPE, Run()) is None
    with pytest.raises(ValueError, match="the inner source says no"):
        source.check(tiny.clip(), RECIPE, Run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"subspace": "hessian"},
            "method.subspace: got 'hessian', want one of gradient, fisher, activations",
        ),
        ({"energy": 1.0}, "method.energy: got 1.0, want a fraction above 0 and below 1"),
        ({"energy": 0.0}, "method.energy: got 0.0"),
        ({"rank": 0}, "method.rank: got 0, want at least 1, or null to go by energy"),
    ],
)
def test_settings_of_a_projection_are_checked(settings, message):
    source = ProjectedGradients(ClipGradients(), "activations", 0.95, None)
    source.check(tiny.clip(), RECIPE, Run())
    with pytest.raises(ValueError, match=message):
        replace(source, **settings).check(tiny.clip(), RECIPE, Run())
