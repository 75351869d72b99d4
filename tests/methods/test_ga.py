from dataclasses import replace

import naive
import pytest
import tiny
from records import part

from muwa.cache.store import Store
from muwa.methods._edits import forget_pairs
from muwa.run import Run


@pytest.mark.parametrize("loss", ["cosine", "contrastive"])
def test_one_epoch_is_the_naive_loops_up_the_loss(tmp_path, loss):
    model, task = tiny.clip(), tiny.task()
    ga = part("method=ga", epochs=1, learning_rate=1e-3, batch_size=4, rule="first", forget_loss=loss)
    edit = ga(model, task, Run(Store(tmp_path)))
    want = naive.train(model, [(forget_pairs(task), loss, -1)], epochs=1, batch_size=4, learning_rate=1e-3)
    assert naive.apart(edit.deltas, want) < 0.01
    pairs = forget_pairs(task)
    before, after = (
        naive.loss(naive.network(one), pairs, list(range(6)), loss).item()
        for one in (model, model.edited(edit))
    )
    assert after > before


def test_several_names_are_forgotten_together(tmp_path):
    task = tiny.task()
    both = replace(task, names=tiny.NAMES[:2], forget={name: tiny.pairs(3, names=(name,)) for name in tiny.NAMES[:2]},
                   mentions=(0, 1, 8, 9), probe=replace(task.probe, forget=tiny.pictures([0, 0, 1, 1])))  # fmt: skip
    ga = part("method=ga", epochs=3, learning_rate=1e-2, batch_size=4, rule="first")
    edit = ga(tiny.clip(), both, Run(Store(tmp_path)))
    assert [move.concept for move in edit.moves] == ["Ada Fox", "Bo Hill"]
    (search,) = edit.searches
    assert search.concept == "Ada Fox, Bo Hill"
    assert search.trace[-1].closeness < search.before.closeness
