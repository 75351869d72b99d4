import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from muwa.cache import store as cache
from muwa.cache.__main__ import main
from muwa.cache.store import Store, fingerprint
from muwa.fingerprint import Content
from muwa.models.clip.embeddings import prepared
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Split
from muwa.types.edit import Edit, Move
from muwa.types.gradients import Gradients
from muwa.types.metric import Metric
from muwa.types.search import LAMBDA, Candidate, Evaluation, LayerScore, Search

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
    monkeypatch.setattr(cache, "code_fingerprint", lambda modules: "changed")
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


ROW = Evaluation(
    Candidate({"": "l"}, "text"), 1, 0.1, LAMBDA, 0.2, False, 1.0, 0.85, 0.01, 0.3, {"forget_top1": 1.0}
)


@pytest.mark.parametrize("value", [
    None, 1, 0.1, "a", True, (1, "b", None), [1, [2]], {"a": 1, "b": (2,)}, {1: "x"}, Metric(0.1, 3), Move("a", "text", "l", 1.0, 0.1),
    Search("a", "paper", "tensor", {}, ("l",), ROW, (ROW, ROW), None, "why"),
])  # fmt: skip
def test_values_come_back_as_they_were(tmp_path, value):
    Store(tmp_path).get("s", echo, 1)
    for _ in range(2):
        back = Store(tmp_path).get("s", returning, fingerprint_of(value), _free={"value": value})
        assert back == value
        assert type(back) is type(value)


def returning(key, value):
    return value


def fingerprint_of(value):
    return repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.randn(3, 4).mul(3).to(dtype)
    for _ in range(2):
        back = Store(tmp_path).get("s", echo, {"a": [tensor, tensor[0]]})
        assert torch.equal(back["a"][0], tensor)
        assert back["a"][1].dtype == dtype


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot fingerprint set: subclass"):
        Store(tmp_path).get("s", echo, {1})
    with pytest.raises(TypeError, match="a lambda or inner function has no name"):
        Store(tmp_path).get("s", echo, lambda: 1)
    with pytest.raises(TypeError, match="cannot cache a set"):
        Store(tmp_path).get("s", returning, 1, _free={"value": {1}})
    assert not list(tmp_path.rglob("value.json"))


def test_every_field_of_a_task_counts():
    from dataclasses import replace

    task = tiny.task()
    others = [
        replace(task, kind="object"), replace(task, names=("Bo Hill",), forget={"Bo Hill": task.forget["Ada Fox"]}),
        replace(task, forget={"Ada Fox": tiny.pairs(5)}), replace(task, retain=tiny.pairs(11)), replace(task, mentions=(0,)),
        replace(task, probe=tiny.split(51)), replace(task, eval=tiny.split(71)),
    ]  # fmt: skip
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 8


def test_tensors_are_told_apart_by_dtype_shape_and_bits():
    one = torch.zeros(4)
    others = [one.half(), one.view(2, 2), -one, torch.zeros(5)]
    assert len({fingerprint(tensor) for tensor in (one, *others)}) == 5
    assert fingerprint(one) == fingerprint(torch.zeros(4))


@pytest.mark.parametrize("damage", ["value.json", "value.safetensors"])
def test_a_damaged_entry_is_reported_and_computed_again(tmp_path, damage):
    Store(tmp_path).get("s", echo, torch.ones(100))
    (path,) = tmp_path.rglob(damage)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    store = Store(tmp_path)
    with pytest.warns(UserWarning, match="is damaged .* it is computed again"):
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


def test_processes_that_share_a_cache_compute_once(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "cache"), str(tmp_path / "calls")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["7", "7"]
    assert (tmp_path / "calls").read_text() == "called\n"


def test_the_command_line_lists_explains_and_clears(tmp_path, capsys):
    store = Store(tmp_path)
    store.get("a/b", add, 1, 2)
    store.get("a/b", add, 1, 3)
    store.get("c", add, 1, 2)
    assert main(["ls", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(row[1] for row in rows) == ["a/b", "a/b", "c"]
    one, two = [row[0] for row in rows if row[1] == "a/b"]
    assert main(["why", one, two, "--root", str(tmp_path)]) == 0
    different = [line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("* ")]
    assert different == [["argument", "y"]]
    assert main(["why", "zzzz", "--root", str(tmp_path)]) == 2
    assert "0 entries under" in capsys.readouterr().err
    for stage in ("a/b", "c"):  # what a stopped training left
        (tmp_path / stage / "0.unfinished").mkdir()
    assert main(["clear", str(tmp_path), "--stage", "a"]) == 0
    assert [path.parent.name for path in tmp_path.rglob("*.unfinished")] == ["c"]
    assert [json.loads(path.read_text())["stage"] for path in tmp_path.rglob("key.json")] == ["c"]


def test_dataclasses_of_tensors_come_back_with_their_types(tmp_path):
    score = LayerScore(0.5, 0.25, -0.25, 2.0, 1.0, 4.0, "text")
    search = Search("a", "paper", "tensor", {"l": score}, ("l",), ROW, (ROW,), 0, "why")
    edit = Edit({"w": torch.arange(6.0).view(2, 3)}, (Move("a", "text", "l", 1.0, 0.1),), (search,))
    gradients = Gradients({"w": torch.ones(2)}, {"w": -torch.ones(2)}, 3, 4, {"model": "m"})
    for _ in range(2):
        back, other = Store(tmp_path).get("s", returning, 1, _free={"value": (edit, gradients)})
        assert (type(back), type(other), type(back.searches[0].scores["l"])) == (Edit, Gradients, LayerScore)
        assert (back.moves, back.searches) == (edit.moves, edit.searches)
        assert torch.equal(back.deltas["w"], edit.deltas["w"])
        assert torch.equal(other.retain["w"], gradients.retain["w"])
        assert (other.n_forget, other.n_retain, other.origin) == (3, 4, {"model": "m"})


@dataclass(frozen=True)
class Scaled:
    """A record that is called, as a layer search is."""

    factor: int

    def __call__(self, x, *, bar=None):
        CALLS.append((self.factor, x))
        return self.factor * x


class Weights(Content):
    """Content that is no dataclass, as a model is."""

    fingerprint = "weights"


def test_a_record_that_is_called_is_keyed_by_its_class_and_fields(tmp_path):
    store = Store(tmp_path)
    assert [store.get("s", Scaled(factor), 3, _free={"bar": 1}) for factor in (2, 3, 2)] == [6, 9, 6]
    assert CALLS == [(2, 3), (3, 3)]
    parts = Store._parts("s", Scaled(2), (3,), {}, {"bar": None})
    assert parts["function"] == f"{__name__}.Scaled"
    assert set(parts) == {"stage", "function", "code", "argument self", "argument x"}


def test_the_code_part_is_of_the_modules_of_function_arguments_and_services(monkeypatch):
    seen = []
    monkeypatch.setattr(cache, "code_fingerprint", lambda modules: seen.append(modules) or "code")
    split = Split(*[LabelledImages((), (), (), Classes(("a",), ("{}",)))] * 3)
    calls = (
        (add, (1, 2), {}),
        (partial(echo, value=Scaled(1)), (), {}),
        (Scaled(2), ([Weights()],), {}),
        (echo, ({"split": split},), {}),
        (add, (1,), {"bar": Run()}),
        (add, (1,), {"bar": Store("x").get}),
    )
    for function, args, free in calls:
        Store._parts("s", function, args, {}, free)
    mine = __name__
    assert seen == [
        {mine},
        {mine},
        {mine},
        {mine, "muwa.types.data"},
        {mine, "muwa.run"},
        {mine, "muwa.cache.store"},
    ]


def test_modules_of_python_and_of_packages_hold_no_code_of_ours():
    assert cache.modules_of([json.dumps, Path("x"), torch.nn.Linear, pytest.raises, 1, "a", None]) == set()
    assert cache.modules_of([prepared, [add], {"a": partial(add, echo)}]) == {prepared.__module__, __name__}


@pytest.mark.parametrize(
    "garbage",
    [b"", b"[]", b"3", b"{}", b"\xff\xfe", b'{"tensor": "9"}', b'{"type": "Nothing", "fields": {}}'],
)
def test_an_entry_of_garbage_is_computed_again(tmp_path, garbage):
    Store(tmp_path).get("s", echo, torch.ones(2))
    (path,) = tmp_path.rglob("value.json")
    path.write_bytes(garbage)
    with pytest.warns(UserWarning, match="is damaged"):
        assert Store(tmp_path).get("s", echo, torch.ones(2)).tolist() == [1, 1]
    assert Store(tmp_path).get("s", echo, torch.ones(2)).tolist() == [1, 1]


def test_an_entry_whose_tensors_are_gone_is_computed_again(tmp_path):
    Store(tmp_path).get("s", echo, torch.ones(2))
    (path,) = tmp_path.rglob("value.safetensors")
    path.unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert Store(tmp_path).get("s", echo, torch.ones(2)).tolist() == [1, 1]


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


def test_one_key_is_explained_and_a_stage_is_listed_alone(tmp_path, capsys):
    store = Store(tmp_path)
    store.get("a/b", add, 1, 2)
    store.get("c", add, 1, 2)
    assert main(["ls", str(tmp_path), "--stage", "c"]) == 0
    ((key, stage, *_),) = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert stage == "c"
    assert main(["why", key, "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line[2:26].strip() for line in shown] == [
        "argument bar",
        "argument x",
        "argument y",
        "code",
        "function",
        "stage",
    ]
    assert not [line for line in shown if line.startswith("*")]
    assert main(["why", "", "--root", str(tmp_path)]) == 2
    assert "2 entries under" in capsys.readouterr().err
    assert main(["clear", str(tmp_path)]) == 0
    assert not list(tmp_path.rglob("key.json"))


def test_what_a_partial_binds_by_position_is_in_the_key(tmp_path):
    store = Store(tmp_path)
    assert [store.get("s", partial(add, x), 1) for x in (5, 6)] == [6, 7]


def test_a_lambda_is_refused_as_the_function(tmp_path):
    with pytest.raises(TypeError, match="lambda"):
        Store(tmp_path).get("s", lambda x: x + 1, 1)


def test_a_subclass_of_tuple_comes_back_or_is_refused(tmp_path):
    try:
        back = Store(tmp_path).get("s", returning, 1, _free={"value": torch.Size([2, 3])})
    except TypeError:
        return
    assert tuple(back) == (2, 3)


def test_keys_of_a_mapping_are_told_apart_by_kind():
    assert fingerprint({1: "x"}) != fingerprint({"1": "x"})


def test_rows_are_noted_as_hit_miss_or_partial_and_explained(tmp_path, capsys):
    pictures = tiny.pictures([0, 1, 2])
    for some, event in ((pictures.select([0, 1]), "miss"), (pictures, "partial"), (pictures, "hit")):
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
    assert 0.1 < store.saved < 0.2
    later = Store(tmp_path)
    later.get("outer", outer, 1, _free={"store": later})
    assert 0.15 < later.saved < 0.3
