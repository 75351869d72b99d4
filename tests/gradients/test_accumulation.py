import pytest
import tiny
import torch

from muwa.gradients.accumulation import Job, accumulate, full_batch_jobs, leave_out_jobs
from muwa.gradients.losses import contrastive, cosine
from muwa.run import Run

BATCHES = [[3, 1, 4, 0, 5], [9, 2, 6, 8, 7]]


@pytest.mark.parametrize("loss", [cosine, contrastive])
@pytest.mark.parametrize("micro", [1, 2, 3, 5, 100])
def test_micro_batches_give_the_gradient_of_whole_batches(loss, micro):
    model, pairs = tiny.clip(), tiny.pairs(10)
    want = accumulate(model, pairs, full_batch_jobs(BATCHES), loss, "", run=Run())
    got = accumulate(model, pairs, full_batch_jobs(BATCHES), loss, "", micro_batch_size=micro, run=Run())
    tiny.same_gradients(got, want)
    assert (want["logit_scale"].item() != 0) == (loss is contrastive)


@pytest.mark.parametrize("micro", [None, 2])
def test_leaving_pairs_out_is_the_difference_of_two_gradients(micro):
    model, pairs = tiny.clip(), tiny.pairs(10)
    jobs, count = leave_out_jobs(BATCHES, [1, 5])
    assert [list(job.pairs) for job in jobs] == [BATCHES[0]]  # the other batch is not touched
    assert count == 2
    got = accumulate(model, pairs, jobs, contrastive, "", micro_batch_size=micro, run=Run())
    with_them = accumulate(model, pairs, full_batch_jobs([BATCHES[0]]), contrastive, "", run=Run())
    without = accumulate(model, pairs, full_batch_jobs([[3, 4, 0]]), contrastive, "", run=Run())
    tiny.same_gradients(got, {name: without[name] - with_them[name] for name in got})


def test_a_batch_that_is_left_out_altogether_is_subtracted():
    jobs, count = leave_out_jobs([[0, 1], [2]], [0, 1])
    assert (jobs, count) == ([Job([0, 1], [(-2, range(2))])], 2)


def test_bf16_is_near_and_stays_fp32_where_it_is_summed():
    model, pairs = tiny.clip(), tiny.pairs(10)
    want = accumulate(model, pairs, full_batch_jobs(BATCHES), contrastive, "", run=Run())
    got = accumulate(model, pairs, full_batch_jobs(BATCHES), contrastive, "", precision="bf16", run=Run())
    flat, half = (torch.cat([g.flatten() for g in one.values()]) for one in (want, got))
    assert {g.dtype for g in got.values()} == {torch.float32}
    assert torch.cosine_similarity(flat, half, dim=0) > 0.99
    assert not torch.equal(flat, half)


def test_no_parameter_is_copied_and_none_is_changed():
    model, pairs = tiny.clip(), tiny.pairs(4)
    before = {name: (w.data_ptr(), w.clone()) for name, w in model.weights.items()}
    accumulate(model, pairs, full_batch_jobs([[0, 1, 2, 3]]), contrastive, "", run=Run())
    for name, weight in model.weights.items():
        assert weight.data_ptr() == before[name][0]
        assert torch.equal(weight, before[name][1])
        assert weight.grad is None
