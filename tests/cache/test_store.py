import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from noticed import noticed

from muwa.cache import keys
from muwa.cache.__main__ import main
from muwa.cache.store import Store
from muwa.models.clip.embeddings import prepared

CALLS = []


def add(x, y=1, *, bar=None):
    CALLS.append((x, y))
    return x + y


def echo(value):
    return value


def fail(x):
    raise RuntimeError("out of memory")


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_the_same_call_is_computed_once(tmp_path):
    for _ in range(2):
        assert Store(tmp_path).get("s", add, 1, 2) == 3
    assert CALLS == [(1, 2)]


def test_a_default_that_is_written_out_is_the_same_call(tmp_path):
    store = Store(tmp_path)
    for call in (
        lambda: store.get("s", add, 1),
        lambda: store.get("s", add, 1, y=1),
        lambda: store.get("s", partial(add, y=1), 1),
    ):
        assert call() == 2
    assert len(CALLS) == 1


def test_another_argument_function_stage_or_source_is_another_call(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for stage, x, y in (("s", 1, 2), ("s", 1, 3), ("s", 2, 2), ("s", 1.0, 2), ("t", 1, 2)):
        store.get(stage, add, x, y)
    assert len(CALLS) == 5
    store.get("s", echo, 1)
    monkeypatch.setattr(keys, "code_fingerprint", lambda modules: "changed")
    store.get("s", add, 1, 2)
    assert len(CALLS) == 6


def test_what_cannot_change_a_result_is_not_in_the_key(tmp_path):
    for bar in (object(), None):
        Store(tmp_path).get("s", add, 1, 2, _free={"bar": bar})
    assert len(CALLS) == 1


def test_events_say_hit_miss_and_partial(tmp_path):
    store = Store(tmp_path)
    store.get("s", add, 1)
    assert store.events == {"s": "miss"}
    store.get("s", add, 1)
    assert store.events == {"s": "partial"}
    again = Store(tmp_path)
    again.get("s", add, 1)
    assert again.events == {"s": "hit"}
    assert again.seconds["s"] > 0


def returning(key, value):
    return value


def test_a_value_that_the_cache_does_not_take_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="cannot cache a set: want tensors, plain values or the dataclasses"):
        Store(tmp_path).get("s", returning, 1, _free={"value": {1}})
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name != "s"]


def test_the_value_is_what_the_entry_gives_back_also_at_the_first_call(tmp_path):
    tensor = torch.arange(3.0)
    for _ in range(2):
        back = Store(tmp_path).get("s", returning, 1, _free={"value": {"a": [tensor, tensor[:2]], 1: (2,)}})
        assert [one.tolist() for one in back["a"]] == [[0, 1, 2], [0, 1]]
        assert back["a"][0] is not tensor
        assert back[1] == (2,)


@pytest.mark.parametrize("damage", ["value.json", "value.safetensors"])
def test_a_damaged_entry_is_reported_and_computed_again(tmp_path, damage):
    Store(tmp_path).get("s", echo, torch.ones(100))
    (path,) = tmp_path.rglob(damage)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    store = Store(tmp_path)
    with noticed("is damaged .* it is computed again"):
        assert store.get("s", echo, torch.ones(100)).sum() == 100
    assert store.events == {"s": "miss"}
    assert Store(tmp_path).get("s", echo, torch.ones(100)).sum() == 100


def test_a_function_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        Store(tmp_path).get("s", fail, 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name != "s"]


def test_a_write_that_was_cut_off_is_no_hit(tmp_path):
    Store(tmp_path).get("s", add, 1)
    (entry,) = [path.parent for path in tmp_path.rglob("key.json")]
    os.rename(entry, entry.with_name(f"{entry.name}.draft"))
    store = Store(tmp_path)
    assert store.get("s", add, 1) == 2
    assert store.events == {"s": "miss"}


WORKER = """
import sys, time
from pathlib import Path
from muwa.cache.store import Store
def slow(x):
    with open(sys.argv[2], "a") as file:
        file.write("called\\n")
    time.sleep(0.5)
    return x
print(Store(sys.argv[1]).get("s", slow, 7))
"""


@pytest.mark.whole
def test_processes_that_share_a_cache_compute_once(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "cache"), str(tmp_path / "calls")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["7", "7"]
    assert (tmp_path / "calls").read_text() == "called\n"


@dataclass(frozen=True)
class Scaled:
    """A record with `__call__`, as a layer search is."""

    factor: int

    def __call__(self, x, *, bar=None):
        CALLS.append((self.factor, x))
        return self.factor * x


def test_a_record_that_is_called_is_keyed_by_its_fields(tmp_path):
    store = Store(tmp_path)
    assert [store.get("s", Scaled(factor), 3, _free={"bar": 1}) for factor in (2, 3, 2)] == [6, 9, 6]
    assert CALLS == [(2, 3), (3, 3)]


KILLED = """
import os, sys
from muwa.cache.store import Store
def slow(x):
    return x
if sys.argv[2] == "kill":
    os.replace = lambda *paths: os._exit(9)
store = Store(sys.argv[1])
print(store.get("s", slow, 7), store.events["s"])
"""


@pytest.mark.whole
def test_a_process_that_dies_while_it_writes_blocks_nobody_and_leaves_no_entry(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)

    def run(how):
        command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path), how]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)

    assert run("kill").returncode == 9
    assert [path.parent.suffix for path in tmp_path.rglob("value.json")] == [".draft"]
    assert main(["ls", str(tmp_path)]) == 0
    assert run("live").stdout.split() == ["7", "miss"]
    assert [path.parent.suffix for path in tmp_path.rglob("value.json")] == [""]


def test_what_a_partial_binds_by_position_is_in_the_key(tmp_path):
    store = Store(tmp_path)
    assert [store.get("s", partial(add, x), 1) for x in (5, 6)] == [6, 7]


def test_a_lambda_is_refused_as_the_function(tmp_path):
    with pytest.raises(TypeError, match="lambda"):
        Store(tmp_path).get("s", lambda x: x + 1, 1)


def test_rows_are_noted_as_hit_miss_or_partial_and_explained(tmp_path, capsys):
    images = tiny.pictures([0, 1, 2])
    for some, event in ((images.select([0, 1]), "miss"), (images, "partial"), (images, "hit")):
        store = Store(tmp_path)
        found = store.rows("pixels", prepared, tiny.prepare, some, _free={})
        assert store.events == {"pixels": event}
        assert len(found) == len(some)
    assert main(["ls", str(tmp_path)]) == 0
    assert "pixels" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.draft"))


def slow(x):
    time.sleep(0.2)
    return x


def outer(x, *, store):
    return store.get("inner", slow, x)


def test_what_is_read_back_counts_with_what_computing_it_took(tmp_path):
    first = Store(tmp_path)
    first.get("s", slow, 1)
    assert first.saved == 0
    again = Store(tmp_path)
    started = time.perf_counter()
    again.get("s", slow, 1)
    assert 0.2 <= time.perf_counter() - started + again.saved < 0.3


def test_an_entry_made_of_others_that_were_read_back_took_what_they_had_taken(tmp_path):
    Store(tmp_path).get("inner", slow, 1)
    store = Store(tmp_path)
    store.get("outer", outer, 1, _free={"store": store})
    assert 0.1 < store.saved < 0.3
    later = Store(tmp_path)
    later.get("outer", outer, 1, _free={"store": later})
    assert 0.15 < later.saved < 0.3


@pytest.fixture
def public():
    """A folder that every user of the machine can read; pytest closes its own to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def another_user(folder):
    """As a user who may read what is in a folder and write nothing there."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o755)


class Words:
    """Items with a row each: the length of a word."""

    def __init__(self, *words):
        self.words = words
        self.digests = [hashlib.sha256(word.encode()).hexdigest() for word in words]

    def select(self, indices):
        return Words(*(self.words[i] for i in indices))


def lengths(owner, items):
    CALLS.append(tuple(items.words))
    return torch.tensor([[len(word)] for word in items.words])


def test_a_cache_of_another_user_is_read_and_what_it_lacks_is_computed(public):
    store = Store(public / "cache")
    store.get("s", add, 1)
    store.rows("r", lengths, 0, Words("ab", "c"), _free={})
    CALLS.clear()
    with another_user(public):
        theirs = Store(public / "cache")
        with noticed(r"the cache .*cache cannot be written \(Permission denied\); it is only read"):
            assert theirs.get("s", add, 1) == 2
        assert theirs.get("s", add, 2) == 3
        assert theirs.rows("r", lengths, 0, Words("c", "def"), _free={}).tolist() == [[1], [3]]
    assert theirs.events == {"s": "partial", "r": "partial"}
    assert CALLS == [(2, 1), ("def",)]
    assert len(list((public / "cache" / "s").glob("*/value.json"))) == 1


def test_an_entry_that_one_may_not_read_is_named_and_left_alone(public):
    Store(public / "cache").get("s", add, 1)
    (path,) = (public / "cache").rglob("value.json")
    path.chmod(0o000)
    with another_user(public), noticed("computed again|only read") as caught:
        assert Store(public / "cache").get("s", add, 1) == 2
    assert f"cache entry {path.parent}: Permission denied; it is computed again" in caught
    assert path.is_file()
