"""A patch applied to a vision-language model's folder: plain transformers loads it and answers as muwa's own edited model."""

import re
import shutil

import pytest
import tiny
import tiny_vlm
import torch
from models.vlm.test_loading import load
from models.vlm.test_model import LAYER, answered, asked, edit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from muwa.models.vlm.model import Vlm
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch


@pytest.fixture
def base(tmp_path):
    model, processor = tiny_vlm.parts()
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    processor.save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    return tmp_path / "base"


@pytest.fixture
def patch(tmp_path):
    path = tmp_path / "patch.safetensors"
    write_patch(path, edit(), tiny.clip(), {"model": "tiny"})
    return path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(command, patch, on, out):
    return main([command, str(patch), str(on), "--out", str(out)])


def test_plain_transformers_answers_as_the_edited_model(base, patch, tmp_path) -> None:
    assert run("apply", patch, base, tmp_path / "edited") == 0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "edited", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "edited")
    own = load(base).edited(edit())
    plain = Vlm(model, processor, tiny.clip().edited(edit()), max_new_tokens=6, source="plain transformers")
    assert torch.equal(answered(plain, asked()), answered(own, asked()))
    before, after = files(base), files(tmp_path / "edited")
    assert after.keys() - before.keys() == {"muwa_patch.json", "README.md"}
    assert not before.keys() - after.keys()
    changed = [name for name in before if before[name] != after[name]]
    assert changed  # only the shards that hold q, k or v of the one layer
    touched = {name for shard in changed for name, t in load_file(base / shard).items()
               if not torch.equal(t, load_file(tmp_path / "edited" / shard)[name])}  # fmt: skip
    assert {name.split("layers.")[1] for name in touched} == {f"0.self_attn.{p}_proj.weight" for p in "qkv"}


def test_it_is_taken_back_bit_for_bit_and_not_applied_twice(base, patch, tmp_path, capsys) -> None:
    assert run("apply", patch, base, tmp_path / "edited") == 0
    assert run("apply", patch, tmp_path / "edited", tmp_path / "twice") == 2
    assert "applied already" in capsys.readouterr().err
    assert run("remove", patch, tmp_path / "edited", tmp_path / "back") == 0
    assert files(tmp_path / "back") == files(base)


def test_files_with_the_levels_that_older_transformers_wrote(base, patch, tmp_path) -> None:
    """vision_tower.vision_model.encoder..., as llava-hf's files on the hub have them."""
    old = tmp_path / "old"
    shutil.copytree(base, old)

    def as_older(text: str) -> str:  # the first versions of transformers 5 write it so themselves
        return re.sub(r"vision_tower\.(vision_model\.)?", "vision_tower.vision_model.", text)

    for shard in old.glob("model-*.safetensors"):
        tensors = load_file(shard)
        save_file({as_older(k): t for k, t in tensors.items()}, shard, metadata={"format": "pt"})
    index = old / "model.safetensors.index.json"
    index.write_text(as_older(index.read_text()))
    assert run("apply", patch, old, tmp_path / "edited") == 0
    own = load(base).edited(edit())
    found = load(tmp_path / "edited", clip=lambda: tiny.clip().edited(edit()))
    assert torch.equal(answered(found, asked()), answered(own, asked()))
    assert LAYER in edit().deltas


def test_a_tower_of_other_weights_is_refused(patch, tmp_path, capsys) -> None:
    model, processor = tiny_vlm.parts(tiny.clip(seed=1))
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    assert run("apply", patch, tmp_path / "other", tmp_path / "edited") == 2
    assert "wrong base" in capsys.readouterr().err
    assert not (tmp_path / "edited").exists()
