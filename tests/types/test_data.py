from dataclasses import replace

import tiny


def test_every_field_of_a_task_counts():
    task = tiny.task()
    others = [
        replace(task, kind="object"),
        replace(task, names=("Bo Hill",), forget={"Bo Hill": task.forget["Ada Fox"]}),
        replace(task, forget={"Ada Fox": tiny.pairs(5)}),
        replace(task, retain=tiny.pairs(11)),
        replace(task, mentions=(0,)),
        replace(task, probe=tiny.split(51)),
        replace(task, eval=tiny.split(71)),
    ]
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 8


def test_retain_pairs_mention_no_forgotten_name():
    pairs = tiny.task().retain_pairs()
    assert pairs.keys == tuple(f"k{i}" for i in range(12) if i not in (0, 8))
    assert not any("Ada Fox" in caption for caption in pairs.captions)
