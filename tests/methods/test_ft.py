import naive
import tiny
from records import part

from muwa.cache.store import Store
from muwa.methods._edits import retain_pairs
from muwa.run import Run


def test_an_epoch_is_the_naive_loops_over_the_retain_pairs(tmp_path):
    model, task = tiny.clip(), tiny.task()
    ft = part("method=ft", epochs=1, learning_rate=1e-3, batch_size=4, rule="first")
    edit = ft(model, task, Run(Store(tmp_path)))
    want = naive.train(
        model, [(retain_pairs(task), "contrastive", 1)], epochs=1, batch_size=4, learning_rate=1e-3
    )
    assert (
        naive.apart(edit.deltas, want) < 0.03
    )  # Adam makes much of gradients that are zero but for rounding
    assert (edit.samples, edit.moves[0].step, edit.moves[0].layer) == (10, 1e-3, "all weights")
