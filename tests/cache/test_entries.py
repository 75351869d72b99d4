import hashlib
import json
import os
import time

import pytest
import torch
from noticed import noticed

from muwa.cache.entries import compute_seconds, read_entry, start_attempt, write_entry
from muwa.types.edit import Edit, Move
from muwa.types.gradients import Gradients
from muwa.types.metric import Metric
from muwa.types.search import LAMBDA, Candidate, Evaluation, LayerScore, Search

ROW = Evaluation(
    Candidate({"": "l"}, "text"), 1, 0.1, LAMBDA, 0.2, False, 1.0, 0.85, 0.01, 0.3, {"forget_top1": 1.0}
)
MOVE = Move("a", "text", "l", 1.0, 0.1)


def written_and_read(folder, value):
    """The value as an entry gives it back."""
    write_entry(folder, value, {"key": folder.name})
    found, back = read_entry(folder)
    assert found
    return back


@pytest.mark.parametrize("value", [
    None, 1, 0.1, "a", True, (1, "b", None), [1, [2]], {"a": 1, "b": (2,)}, {1: "x"}, Metric(0.1, 3), MOVE,
    Search("a", "paper", "tensor", {}, ("l",), ROW, (ROW, ROW), None, "why"),
])  # fmt: skip
def test_values_come_back_as_they_were(tmp_path, value):
    back = written_and_read(tmp_path / "entry", value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.randn(3, 4).mul(3).to(dtype)
    back = written_and_read(tmp_path / "entry", {"a": [tensor, tensor[0]]})
    assert torch.equal(back["a"][0], tensor)
    assert torch.equal(back["a"][1], tensor[0])
    assert back["a"][0].dtype == back["a"][1].dtype == dtype


def test_dataclasses_of_tensors_come_back_with_their_types(tmp_path):
    score = LayerScore(0.5, 0.25, -0.25, 2.0, 1.0, 4.0, "text")
    search = Search("a", "paper", "tensor", {"l": score}, ("l",), ROW, (ROW,), 0, "why")
    edit = Edit({"w": torch.arange(6.0).view(2, 3)}, (MOVE,), (search,))
    gradients = Gradients({"w": torch.ones(2)}, {"w": -torch.ones(2)}, 3, 4, {"model": "m"})
    back, other = written_and_read(tmp_path / "entry", (edit, gradients))
    assert (type(back), type(other), type(back.searches[0].scores["l"])) == (Edit, Gradients, LayerScore)
    assert (back.moves, back.searches) == (edit.moves, edit.searches)
    assert torch.equal(back.deltas["w"], edit.deltas["w"])
    assert torch.equal(other.retain["w"], gradients.retain["w"])
    assert (other.n_forget, other.n_retain, other.origin) == (3, 4, {"model": "m"})


@pytest.mark.parametrize(
    ("value", "kind"), [({1}, "set"), ([object()], "object"), ({"a": torch.Size([2, 3])}, "Size")]
)
def test_other_kinds_are_refused_and_nothing_is_written(tmp_path, value, kind):
    with pytest.raises(TypeError, match=f"cannot cache a {kind}: want tensors, plain values or the"):
        write_entry(tmp_path / "entry", value, {})
    assert not list(tmp_path.iterdir())


def test_an_entry_holds_its_key_and_its_seconds(tmp_path):
    write_entry(tmp_path / "entry", 1, {"stage": "s", "seconds": 2.5})
    about = json.loads((tmp_path / "entry" / "key.json").read_text())
    digest = hashlib.sha256(b'{"plain": 1}').hexdigest()
    assert about == {"stage": "s", "seconds": 2.5, "sha256": {"value.json": digest}}
    assert compute_seconds(tmp_path / "entry") == 2.5


def test_a_second_write_replaces_the_entry(tmp_path):
    write_entry(tmp_path / "entry", torch.ones(2), {"key": "entry"})
    assert written_and_read(tmp_path / "entry", 3) == 3
    assert sorted(path.name for path in (tmp_path / "entry").iterdir()) == ["key.json", "value.json"]


def test_an_entry_that_is_not_there_is_not_found(tmp_path):
    assert read_entry(tmp_path / "entry") == (False, None)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"[]",
        b"3",
        b"{}",
        b"\xff\xfe",
        b'{"tensor": "9"}',
        b'{"type": "Nothing", "fields": {}}',
        b'{"list": [' * 100_000,
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_garbage_is_reported_and_not_found(tmp_path, garbage, signed):
    """Also if its checksum is that of the garbage."""
    write_entry(tmp_path / "entry", torch.ones(2), {"key": "entry"})
    (tmp_path / "entry" / "value.json").write_bytes(garbage)
    if signed:
        about = json.loads((tmp_path / "entry" / "key.json").read_text())
        about["sha256"]["value.json"] = hashlib.sha256(garbage).hexdigest()
        (tmp_path / "entry" / "key.json").write_text(json.dumps(about))
    with noticed("cache entry entry is damaged .* it is computed again"):
        assert read_entry(tmp_path / "entry") == (False, None)


@pytest.mark.parametrize("name", ["value.json", "value.safetensors", "key.json"])
def test_one_changed_bit_is_reported_and_not_found(tmp_path, name):
    """A digit of a value, an element of a tensor, a letter of the key."""
    write_entry(tmp_path / "entry", [0.25, torch.ones(2)], {"key": "entry"})
    path = tmp_path / "entry" / name
    raw = bytearray(path.read_bytes())
    place = {
        "value.json": raw.find(b"25"),
        "value.safetensors": len(raw) - 1,
        "key.json": raw.find(b'entry"'),
    }[name]
    raw[place] ^= 1
    path.write_bytes(raw)
    with noticed("cache entry entry is damaged .* it is computed again"):
        assert read_entry(tmp_path / "entry") == (False, None)


@pytest.mark.parametrize(
    "kind", ["file for the folder", "folder for the value", "folder for the key", "no key", "empty"]
)
def test_what_is_no_entry_is_reported_and_can_be_written_again(tmp_path, kind):
    folder = tmp_path / "entry"
    if kind == "file for the folder":
        folder.write_text("not a folder")
    else:
        write_entry(folder, 1, {"key": "entry"})
        for path in (
            folder.iterdir()
            if kind == "empty"
            else [folder / {"folder for the value": "value.json"}.get(kind, "key.json")]
        ):
            path.unlink()
        if kind.startswith("folder"):
            (folder / ("value.json" if "value" in kind else "key.json")).mkdir()
    with noticed("is damaged"):
        assert read_entry(folder) == (False, None)
    assert written_and_read(folder, 2) == 2


def test_an_entry_of_another_key_is_not_read(tmp_path):
    write_entry(tmp_path / "one", 1, {"key": "one"})
    os.rename(tmp_path / "one", tmp_path / "two")
    with noticed("cache entry two is damaged .it holds the value of one"):
        assert read_entry(tmp_path / "two") == (False, None)


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_entry(tmp_path / "entry", torch.ones(2), {"key": "entry"})
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "entry").iterdir()} == {
        "key.json": "0o640",
        "value.json": "0o640",
        "value.safetensors": "0o640",
    }


def test_an_entry_whose_tensors_are_gone_is_reported_and_not_found(tmp_path):
    write_entry(tmp_path / "entry", torch.ones(2), {"key": "entry"})
    (tmp_path / "entry" / "value.safetensors").unlink()
    with noticed("is damaged"):
        assert read_entry(tmp_path / "entry") == (False, None)


def test_each_stopped_attempt_counts_up_to_the_last_file_that_it_wrote(tmp_path):
    """Two attempts: of 30 s (it wrote state) and of 0 s (it wrote nothing). The third starts with 30 s spent."""
    folder = tmp_path / "unfinished"
    assert start_attempt(folder) == 0
    began, spent = json.loads((folder / "attempts.json").read_text())
    assert spent == 0
    assert abs(time.time() - began) < 60
    (folder / "state").write_text("")
    os.utime(folder / "state", (began + 30,) * 2)
    assert start_attempt(folder) == pytest.approx(30, abs=1e-3)
    os.utime(folder / "state", (began - 5,) * 2)
    assert start_attempt(folder) == pytest.approx(30, abs=1e-3)


@pytest.mark.parametrize("text", ["", "[1", "[1]", '["a", null]', "[" * 100_000, "\x80"])
def test_a_damaged_note_of_attempts_counts_as_none(tmp_path, text):
    (tmp_path / "attempts.json").write_text(text, "latin-1")
    assert start_attempt(tmp_path) == 0
    assert json.loads((tmp_path / "attempts.json").read_text())[1] == 0
