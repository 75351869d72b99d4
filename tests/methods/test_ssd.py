import naive
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.base import BatchLoss
from muwa.methods._edits import retain_pairs
from muwa.methods.ssd import STRENGTHS, Importances, dampened, importance_sum, importances
from muwa.run import Run


def squares(model, pairs, kind, size, seed=0):
    """sum over batches of n_b times the squared gradient of the batch's mean loss, in plain loops."""
    net, total = naive.network(model), {name: torch.zeros_like(w) for name, w in model.weights.items()}
    for batch in naive.batches(len(pairs), size, seed):
        for name, g in naive.gradient(net, pairs, batch, kind).items():
            total[name] += len(batch) * g * g
    return total


def test_dampening_worked_by_hand():
    """alpha 10: 32 > 10 * 2 is dampened to 4 * 2 / 32 = 1/4; 32 < 10 * 8 is not; at F_r = 0 nothing is left of the weight;
    equal to alpha F_r is not above it; a factor above 1 is cut to 1."""
    theta = torch.tensor([4.0, 4.0, -8.0, 1.0, 2.0])
    f, r = torch.tensor([32.0, 32.0, 1.0, 20.0, 0.0]), torch.tensor([2.0, 8.0, 0.0, 2.0, 0.0])
    both = Importances({"w": f}, {"w": r})
    got = dampened({"w": theta}, both, 10.0, 4.0)["w"]
    assert got.tolist() == [-3.0, 0.0, 8.0, 0.0, 0.0]
    assert dampened({"w": theta}, both, 10.0, 100.0)["w"].tolist() == [0.0, 0.0, 8.0, 0.0, 0.0]


def test_the_strengths_are_the_releases():
    assert list(STRENGTHS) == pytest.approx(torch.linspace(0.1, 5, 10).tolist())


@pytest.mark.parametrize("kind", ["cosine", "contrastive"])
def test_importances_are_those_of_plain_loops(kind):
    model, pairs = tiny.clip(), tiny.pairs(7)
    got = importance_sum(model, pairs, BatchLoss(kind, 3, 0, "fp32"), run=Run())
    assert all(square.min() >= 0 for square in got.values())
    assert sum(bool(square.any()) for square in got.values()) > len(got) / 2
    tiny.same_gradients(got, squares(model, pairs, kind, 3), 1e-4)


def test_leaving_out_pairs_is_taking_them_out_of_their_batches(tmp_path):
    model, task, loss = tiny.clip(), tiny.task(), BatchLoss("contrastive", 4, 0, "fp32")
    got = importances("retain", model, task.retain, loss, without=task.mentions, run=Run(Store(tmp_path)))
    net, want = naive.network(model), {name: torch.zeros_like(w) for name, w in model.weights.items()}
    for batch in naive.batches(12, 4, 0):
        left = [i for i in batch if i not in task.mentions]
        for name, g in naive.gradient(net, task.retain, left, "contrastive").items():
            want[name] += len(left) * g * g / 10
    assert set(got) == set(want)
    tiny.same_gradients(got, want, 1e-4)


def test_the_edit_is_the_naive_one(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path)
    ssd = part("method=ssd", batch_size=12, rule="first", strengths=[0.5], forget_loss="contrastive")
    edit = ssd(model, task, Run(store))
    f = {name: x / 6 for name, x in squares(model, task.forget["Ada Fox"], "contrastive", 12).items()}
    net, kept = naive.network(model), [i for i in naive.batches(12, 12, 0)[0] if i not in task.mentions]
    r = {name: g * g for name, g in naive.gradient(net, task.retain, kept, "contrastive").items()}
    moved = 0
    for name, theta in model.weights.items():
        want, border = torch.zeros_like(theta), torch.zeros_like(theta, dtype=torch.bool)
        each = zip(
            f[name].flatten().tolist(), r[name].flatten().tolist(), theta.flatten().tolist(), strict=True
        )
        for i, (ff, rr, t) in enumerate(each):
            border.view(-1)[i] = abs(ff - 10 * rr) <= 1e-2 * ff or ff < 1e-9  # there rounding decides
            if ff > 10 * rr:
                want.view(-1)[i] = t * min(1.0, 0.5 * rr / ff) - t
        got = edit.deltas.get(name, torch.zeros_like(theta))
        moved += int((got != 0).sum())
        torch.testing.assert_close(got[~border], want[~border], atol=1e-4, rtol=0.05)
    assert moved > 100
    assert (edit.samples, edit.moves[0].step) == (16, 0.5)


def test_retain_importances_are_shared_by_names_and_one_sweep_serves_both_rules(tmp_path):
    model, task = tiny.clip(), tiny.task()
    part("method=ssd", batch_size=4)(model, task, Run(Store(tmp_path)))
    store = Store(tmp_path)
    edit = part("method=ssd", batch_size=4, rule="first")(model, task, Run(store))
    assert set(store.events.values()) == {"hit"}
    assert [row.step for row in edit.searches[0].trace] == list(STRENGTHS)
    assert retain_pairs(task).fingerprint != task.retain.fingerprint
