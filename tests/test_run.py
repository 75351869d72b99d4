"""The record that travels through every stage."""

import pytest
import torch

from muwa.cache.store import Store
from muwa.fingerprint import fingerprint
from muwa.run import Run, silent
from muwa.runtime.distributed import Distributed

WORKER = Distributed(rank=1, size=2)
CALLS = []


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def square(x, *, run):
    CALLS.append(x)
    return x * x


def doubled(owner, items, *, run):
    CALLS.append(items.numbers)
    return torch.tensor([[owner * number] for number in items.numbers])


def resumable(x, folder):
    CALLS.append(folder)
    return x


class Numbers:
    """Items with a digest each, as samples have."""

    def __init__(self, *numbers):
        self.numbers = numbers
        self.digests = tuple(f"{number:064x}" for number in numbers)

    def select(self, places):
        return Numbers(*(self.numbers[i] for i in places))


def test_without_a_cache_everything_is_computed_anew():
    run = Run()
    assert [run.cached("s", square, 3, _free={"run": run}) for _ in range(2)] == [9, 9]
    rows = [run.cached_rows("t", doubled, 2, Numbers(1, 5), _free={"run": run}) for _ in range(2)]
    assert [one.tolist() for one in rows] == [[[2], [10]]] * 2
    assert CALLS == [3, 3, (1, 5), (1, 5)]


def test_with_a_cache_values_and_rows_are_computed_once(tmp_path):
    run = Run(Store(tmp_path))
    assert [run.cached("s", square, 3, _free={"run": run}) for _ in range(2)] == [9, 9]
    run.cached_rows("t", doubled, 2, Numbers(1, 5), _free={"run": run})
    assert run.cached_rows("t", doubled, 2, Numbers(5, 7), _free={"run": run}).tolist() == [[10], [14]]
    assert CALLS == [3, (1, 5), (7,)]


def test_a_folder_for_unfinished_work_is_given_only_where_there_is_a_cache(tmp_path):
    assert Run().cached("s", resumable, 1, _resume="folder") == 1
    assert Run(Store(tmp_path)).cached("s", resumable, 1, _resume="folder") == 1
    assert CALLS[0] is None
    assert CALLS[1].parent == tmp_path / "s"


def test_a_value_that_ranks_compute_together_is_the_main_ranks_alone():
    assert Run().cached("s", square, 3, _free={"run": None}, _together=True) == 9
    assert Run(distributed=WORKER).cached("s", square, 3, _free={"run": None}, _together=True) is None
    assert Run(distributed=WORKER).cached("s", square, 3, _free={"run": None}) == 9
    assert CALLS == [3, 3, 3]


def test_the_main_rank_is_rank_0():
    assert Run().is_main
    assert not Run(distributed=WORKER).is_main


def test_another_log_leaves_the_rest():
    heard = []
    run = Run(progress=True).logging_to(lambda event, row: heard.append((event, row)))
    run.log("metrics", {"when": "before"})
    assert heard == [("metrics", {"when": "before"})]
    assert run.progress
    assert silent("metrics", {}) is None


def test_items_pass_through_the_progress_bar_in_order():
    assert list(Run(progress=True).track([3, 1, 2], "counting", 3)) == [3, 1, 2]


def test_a_run_with_a_cache_is_never_part_of_a_key(tmp_path):
    with pytest.raises(TypeError, match="cannot fingerprint Store: subclass muwa.fingerprint.Content"):
        fingerprint(Run(Store(tmp_path)))
