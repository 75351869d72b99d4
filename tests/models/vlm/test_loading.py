"""Loading a vision-language model from a folder, and what is refused."""

import json

import pytest
import tiny
import tiny_vlm
import torch
from models.vlm.test_model import answered, asked
from transformers import AutoProcessor

from muwa.config import part
from muwa.models.vlm.model import Vlm


def load(path, **changed) -> Vlm:
    """model=vlm from a folder, under the tiny CLIP, with other settings."""
    return part("model=vlm", path=str(path), **{"clip": tiny.clip, "max_new_tokens": 6, **changed})()


@pytest.fixture
def folder(tmp_path):
    model, processor = tiny_vlm.parts()
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def test_a_folder_answers_as_the_model_that_was_saved(folder) -> None:
    found = load(folder)
    processor = AutoProcessor.from_pretrained(folder)  # the class of its image processor differs by version
    saved = Vlm(tiny_vlm.parts()[0], processor, tiny.clip(), max_new_tokens=6, source="tiny")
    assert found.fingerprint == saved.fingerprint
    assert torch.equal(answered(found, asked()), answered(tiny_vlm.vlm(), asked()))
    assert found.source == f"transformers {folder}"


def test_an_older_processor_is_given_the_values_of_its_model(folder) -> None:
    """As files were written before transformers knew of them: no patch size, no strategy, no class token."""
    path = folder / "processor_config.json"
    kept = json.loads(path.read_text())
    for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del kept[key]
    path.write_text(json.dumps(kept))
    assert torch.equal(answered(load(folder), asked()),
                       answered(tiny_vlm.vlm(), asked()))  # fmt: skip


def test_half_precision_keeps_the_deltas_whole(folder) -> None:
    found = load(folder, max_new_tokens=2, dtype="bf16")
    assert next(iter(found.tower.values())).dtype == torch.bfloat16
    assert next(iter(found.clip.weights.values())).dtype == torch.float32
    assert answered(found, asked()).shape == (5, 2)


def test_missing_parts_are_named(folder, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json missing, found"):
        load(folder)
    with pytest.raises(FileNotFoundError, match=r"no such folder, and no hub id .*hf download"):
        load("nobody/absent")


def test_damaged_weights_are_refused(folder) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:1000])
    with pytest.raises(ValueError, match=r"model\.path=.*llava: cannot be loaded"):
        load(folder)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype: got 'int8'"):
        load("here", dtype="int8")
    with pytest.raises(ValueError, match=r"model\.max_new_tokens: got 0"):
        load("here", max_new_tokens=0)
