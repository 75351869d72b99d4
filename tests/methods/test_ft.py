import naive
import tiny

from muwa.cache.store import Store
from muwa.methods._selection import retain_pairs
from muwa.methods.ft import unlearn


def test_an_epoch_is_the_naive_loops_over_the_retain_pairs(tmp_path):
    model, task = tiny.clip(), tiny.task()
    edit = unlearn(model, task, store=Store(tmp_path), epochs=1, learning_rate=1e-3, batch_size=4, rule="first")
    want = naive.train(model, [(retain_pairs(task), "contrastive", 1)], epochs=1, batch_size=4, learning_rate=1e-3)
    assert naive.apart(edit.deltas, want) < 0.03  # Adam makes much of gradients that are zero but for rounding
    assert (edit.samples, edit.moves[0].step, edit.moves[0].layer) == (10, 1e-3, "all weights")
