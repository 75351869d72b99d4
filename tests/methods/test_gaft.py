import naive
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.methods._edits import forget_pairs, retain_pairs
from muwa.methods._finetune import Phase, Schedule, _batches, tune
from muwa.run import Run


def test_an_epoch_is_all_forget_batches_then_all_retain_batches_worked_by_hand():
    """6 forget pairs in batches of 4 are 2 steps, 10 retain pairs 3: each pair once, forget first."""
    task = tiny.task()
    parts = [Phase(forget_pairs(task), "cosine", -1), Phase(retain_pairs(task), "contrastive")]
    steps = list(_batches(tiny.clip(), parts, Schedule(1, 4, 1e-3, 0.1, 0), 1, Run()))
    assert [(at, len(batch)) for at, batch, _ in steps] == [(0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]
    for at, n in ((0, 6), (1, 10)):
        assert sorted(i for which, batch, _ in steps for i in batch if which == at) == list(range(n))
    at, batch, pixels = steps[3]
    torch.testing.assert_close(pixels, tiny.pixels([retain_pairs(task).images[i] for i in batch]))


def test_two_rounds_are_those_of_the_naive_loop():
    model, task = tiny.clip(), tiny.task()
    parts = [Phase(forget_pairs(task), "cosine", -1), Phase(retain_pairs(task), "contrastive")]
    got = tune(model, parts, Schedule(2, 4, 1e-3, 0.1, 0), None, None, run=Run())["deltas"]["last"]
    naive_parts = [(forget_pairs(task), "cosine", -1), (retain_pairs(task), "contrastive", 1)]
    want = naive.train(model, naive_parts, epochs=2, batch_size=4, learning_rate=1e-3)
    assert naive.apart(got, want) < 0.03


def test_the_edit_of_one_round_is_that_of_the_naive_loop(tmp_path):
    model, task = tiny.clip(), tiny.task()
    gaft = part("method=gaft", epochs=1, learning_rate=1e-3, batch_size=4, rule="first")
    edit = gaft(model, task, Run(Store(tmp_path)))
    parts = [(forget_pairs(task), "cosine", -1), (retain_pairs(task), "contrastive", 1)]
    want = naive.train(model, parts, epochs=1, batch_size=4, learning_rate=1e-3)
    assert naive.apart(edit.deltas, want) < 0.03
    assert edit.samples == 6 + 10
