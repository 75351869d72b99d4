"""The card in an edited folder, by the commands that a user types."""

import hashlib
import json

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.types.edit import Edit, Move

OWN = "---\nlicense: openrail++\nlibrary_name: open_clip\npipeline_tag: zero-shot-image-classification\n---\n# Base\n"


@pytest.fixture
def base(tmp_path):
    """A model's folder with a card of its own."""
    (tmp_path / "base").mkdir()
    save_file(dict(tiny.clip().weights), tmp_path / "base/open_clip_model.safetensors")
    (tmp_path / "base/README.md").write_text(OWN)
    return tmp_path / "base"


def patch(path, key="visual.proj", name="Ada Fox"):
    clip = tiny.clip()
    edit = Edit({key: torch.ones_like(clip.weights[key])}, (Move(name, "vision", key, 1.0, 0.5),))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_patch(path, edit, clip, {"task": "identity", "names": [name]})
    return path


def run(command, patch, on, out):
    assert main([command, str(patch), str(on), "--out", str(out)]) == 0
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_edited_folder_has_the_card_and_removing_the_patch_brings_the_base_back(base, tmp_path):
    made = patch(tmp_path / "run/patch.safetensors")
    out = run("apply", made, base, tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("openrail++", "open_clip")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert {"machine-unlearning", "muwa"} <= {*card.data.tags}
    weights = (out / "open_clip_model.safetensors").read_bytes()
    for text in (
        "# Unlearning card: Ada Fox",
        f"| `open_clip_model.safetensors` | `{hashlib.sha256(weights).hexdigest()}` |",
        f"| SHA-256 of the patch | `{hashlib.sha256(made.read_bytes()).hexdigest()}` |",
        "openrail++, as the base's own card says",
        "this card cannot say how well it works",
    ):
        assert text in card.content
    assert (out / "README.base.md").read_text() == OWN
    assert contents(run("remove", made, out, tmp_path / "back")) == contents(base)


def test_the_results_beside_the_patch_are_told_and_those_of_another_edit_are_not(base, tmp_path):
    made = patch(tmp_path / "run/patch.safetensors")
    moves = [{"concept": "Ada Fox", "tower": "vision", "layer": "visual.proj", "step": 1.0}]
    value = {"value": 0.0, "n": 8, "better": "lower"}
    results = {
        "edit": {"moves": moves},
        "metrics": {"before": {"forget/top1": {**value, "value": 1.0}}, "after": {"forget/top1": value}},
        "request": {"id": "17", "operator": "Example Ltd"},
    }
    path = made.with_name("results.json")
    path.write_text(json.dumps(results))
    text = (run("apply", made, base, tmp_path / "one") / "README.md").read_text()
    assert "| `forget/top1` |  | 100.0 % | 0.0 % |" in text
    assert "| Carried out by | Example Ltd |" in text
    for other in ({**results, "edit": {"moves": []}}, []):
        path.write_text(json.dumps(other))
        text = (run("apply", made, base, tmp_path / f"other{len(other)}") / "README.md").read_text()
        assert "Example Ltd" not in text
        assert "# Unlearning card: Ada Fox" in text


def test_a_base_without_a_card_gets_one_and_loses_it_again(base, tmp_path):
    (base / "README.md").unlink()
    made = patch(tmp_path / "run/patch.safetensors")
    out = run("apply", made, base, tmp_path / "out")
    assert (out / "README.md").is_file()
    assert not (out / "README.base.md").exists()
    assert contents(run("remove", made, out, tmp_path / "back")) == contents(base)
    alone = run("apply", made, base / "open_clip_model.safetensors", tmp_path / "file")
    assert "# Unlearning card: Ada Fox" in (alone / "README.md").read_text()


def test_a_folder_of_an_earlier_version_keeps_its_own_card(base, tmp_path):
    """Such a folder has the record, and README.md is the base's."""
    made = patch(tmp_path / "run/patch.safetensors")
    out = run("apply", made, base, tmp_path / "out")
    record = json.loads((out / "muwa_patch.json").read_text())
    del record["card"]
    (out / "muwa_patch.json").write_text(json.dumps(record))
    (out / "README.base.md").rename(out / "README.md")
    assert contents(run("remove", made, out, tmp_path / "back")) == contents(base)
