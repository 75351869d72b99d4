import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from muwa.gradients.files import FORMAT, read_gradients, write_gradients
from muwa.types.gradients import FORGET_ALONE, Gradients

ORIGIN = {"model": "a" * 64, "seed": "0"}
GRADIENTS = Gradients(
    {"visual.proj": torch.tensor([[1.0, 2.0]]), "logit_scale": torch.tensor(3.0)},
    {"visual.proj": torch.tensor([[4.0, 5.0]]).T, "logit_scale": torch.tensor(6.0)},
    7,
    8,
    ORIGIN,
)


def test_gradients_come_back_whole(tmp_path):
    path = tmp_path / "new" / "g.safetensors"
    write_gradients(path, GRADIENTS)
    for expected in (ORIGIN, None):
        back = read_gradients(path, expected)
        assert (back.n_forget, back.n_retain, back.origin) == (7, 8, ORIGIN)
        for side in ("forget", "retain"):
            got, want = getattr(back, side), getattr(GRADIENTS, side)
            assert got.keys() == want.keys()
            assert all(torch.equal(got[name], want[name]) for name in want)
    assert list(path.parent.iterdir()) == [path]


def test_a_difference_in_origin_is_named_part_by_part(tmp_path):
    write_gradients(tmp_path / "g", GRADIENTS)
    with pytest.raises(
        ValueError,
        match=r"gradients=.*g: computed from something else than this run \(seed: file has 0, this run has 1\)\. "
        "Take the same model, data and losses, or leave gradients=null",
    ):
        read_gradients(tmp_path / "g", {**ORIGIN, "seed": "1"})
    with pytest.raises(
        ValueError, match=r"model: file has a{12}, this run has b{12}; precision: file has None"
    ):
        read_gradients(tmp_path / "g", {"model": "b" * 64, "seed": "0", "precision": "fp32"})


def test_a_retain_gradient_that_is_not_asked_for_is_left_out(tmp_path):
    asked = {**ORIGIN, **FORGET_ALONE}
    alone = GRADIENTS.without_retain()
    for i, written in enumerate((GRADIENTS, alone)):
        write_gradients(tmp_path / str(i), written)
        back = read_gradients(tmp_path / str(i), asked)
        assert (back.n_forget, back.n_retain, back.retain, back.origin) == (7, 0, {}, asked)
        assert all(torch.equal(back.forget[name], g) for name, g in GRADIENTS.forget.items())
    assert back.fingerprint == alone.fingerprint != GRADIENTS.fingerprint
    assert read_gradients(tmp_path / "1", None).origin == asked
    with pytest.raises(
        ValueError, match="1: it has no retain gradient, which this run needs; take a file from"
    ):
        read_gradients(tmp_path / "1", ORIGIN)
    with pytest.raises(ValueError, match="seed: file has 0, this run has 1"):
        read_gradients(tmp_path / "1", {**asked, "seed": "1"})


@pytest.mark.parametrize("changed", [
    {"n_forget": 0}, {"n_retain": 0}, {"n_retain": -1}, {"n_forget": 2.0}, {"origin": "here"},
])  # fmt: skip
def test_a_file_without_its_counts_or_origin_is_refused(tmp_path, changed):
    about = {"n_forget": 7, "n_retain": 8, "origin": ORIGIN, **changed}
    tensors = {"forget/w": torch.ones(1), "retain/w": torch.ones(1)}
    save_file(tensors, tmp_path / "g", metadata={FORMAT: json.dumps(about)})
    with pytest.raises(ValueError, match="g: its metadata has no origin or no counts, want what muwa writes"):
        read_gradients(tmp_path / "g", None)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a tensor file")
    save_file({"w": torch.zeros(1)}, tmp_path / "tensors")
    with pytest.raises(ValueError, match=r"gradients=.*text: the file is a text, not weights"):
        read_gradients(tmp_path / "text", ORIGIN)
    with pytest.raises(ValueError, match="gradients=nowhere: not a readable gradient file"):
        read_gradients(Path("nowhere"), ORIGIN)
    with pytest.raises(
        ValueError, match="no muwa gradients in it; write one: python -m muwa.gradients export RUN"
    ):
        read_gradients(tmp_path / "tensors", ORIGIN)
