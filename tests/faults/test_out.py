"""An --out that lies in what is read, or is what is read: refused, and the source stays as it was."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import save_file
from special_files import SPECIAL, folder, in_time

from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.types.edit import Edit, Move


@pytest.fixture
def source(tmp_path):
    """An open_clip folder of the tiny model, and a patch of it beside the folder."""
    model = tiny.clip()
    base = tmp_path / "base"
    (base / "more").mkdir(parents=True)
    save_file(dict(model.weights), base / "open_clip_model.safetensors")
    name = "visual.proj"
    edit = Edit({name: torch.ones_like(model.weights[name])}, (Move("Ada Fox", "vision", name, 1.0, 0.1),))
    write_patch(tmp_path / "p.safetensors", edit, model)
    return base


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "out",
    [
        "base",
        "base/x",
        "base/more",
        "base/more/x/y",
        "other/../base/x",
        "link/x",
        "base/open_clip_model.safetensors",
    ],
)
def test_an_out_inside_the_source_is_refused_and_the_source_stays(out, source, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(source)
    before = files(tmp_path)
    with in_time(20):
        assert (
            main(["apply", str(tmp_path / "p.safetensors"), str(source), "--out", str(tmp_path / out)]) == 2
        )
    said = capsys.readouterr().err.strip()
    assert str(tmp_path / out) in said
    assert "--out wants a" in said
    assert len(said.splitlines()) == 1
    assert files(tmp_path) == before
    assert not list(tmp_path.rglob("*.draft"))


@pytest.mark.parametrize(
    "kind", [kind for kind in SPECIAL if kind is not folder], ids=lambda kind: kind.__name__
)
def test_a_special_file_in_the_source_is_named(kind, source, tmp_path, capsys):
    kind(source / "more" / "strange")
    with in_time(20):
        assert (
            main(["apply", str(tmp_path / "p.safetensors"), str(source), "--out", str(tmp_path / "out")]) == 2
        )
    assert "more/strange: not a regular file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_patch_elsewhere_is_written(source, tmp_path):
    assert main(["apply", str(tmp_path / "p.safetensors"), str(source), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "open_clip_model.safetensors").is_file()


def test_a_patch_is_not_written_over_a_folder(source, tmp_path, capsys):
    assert main(["add", str(tmp_path / "p.safetensors"), "--out", str(source)]) == 2
    said = capsys.readouterr().err.strip()
    assert str(source) in said
    assert len(said.splitlines()) == 1
    assert (source / "open_clip_model.safetensors").is_file()
