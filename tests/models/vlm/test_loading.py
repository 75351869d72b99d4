"""Loading a vision-language model from a folder, and what is refused."""

import argparse
import json
import re

import pytest
import tiny
import tiny_vlm
import torch
from models.vlm.test_model import answered, asked
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
from weight_files.spoiled import SPOILED

from muwa.config import CONF, part
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
    with pytest.raises(
        ValueError, match=r"model\.path: .*llava/model\.safetensors: the file is cut off: 1,000 bytes"
    ):
        load(folder)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype: got 'int8'"):
        load("here", dtype="int8")
    with pytest.raises(ValueError, match=r"model\.max_new_tokens: got 0"):
        load("here", max_new_tokens=0)


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("muwa")]


def rewritten(folder, name, write):
    """The folder with its weights in the file `name`, as `write(tensors, path)` writes them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(tensors, folder / name)


def in_shards(tensors, path):
    tiny_vlm.parts()[0].save_pretrained(path.parent, max_shard_size="100KB")
    assert len(list(path.parent.glob("model-*.safetensors"))) > 1


FORMS = {
    "a .bin file": ("pytorch_model.bin", torch.save, []),
    "shards": ("shards", in_shards, []),
    "half alone": (
        "model.fp16.safetensors",
        lambda tensors, path: save_file(tensors, path, {"format": "pt"}),
        ["its weights are there as fp16 alone; these are read"],
    ),
    "compiled": (
        "model.safetensors",
        lambda tensors, path: save_file(
            {f"_orig_mod.{k}": t for k, t in tensors.items()}, path, {"format": "pt"}
        ),
        [],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form_that_they_come_in(folder, form, caplog) -> None:
    name, write, said = FORMS[form]
    rewritten(folder, name, write)
    assert load(folder).fingerprint == tiny_vlm.vlm().fingerprint
    assert warned(caplog) == [f"model.path={folder}: {line}" for line in said]


@pytest.mark.parametrize("name", ["pointer.bin", "page.safetensors", "empty.bin", "denied.bin"])
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(folder, name) -> None:
    content, message = SPOILED[name]
    (folder / "model.safetensors").unlink()
    file = folder / ("pytorch_model.bin" if name.endswith("bin") else "model.safetensors")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"model.path: {file}: the file {message}"):
        load(folder)


def test_a_pickle_with_foreign_objects_is_refused_by_name(folder) -> None:
    rewritten(
        folder, "pytorch_model.bin", lambda t, path: torch.save({**t, "args": argparse.Namespace()}, path)
    )
    with pytest.raises(
        ValueError, match=r"model.path: .*pytorch_model.bin: .* it holds argparse.Namespace, whose code"
    ):
        load(folder)


def test_weights_that_do_not_fit_are_named(folder) -> None:
    def change(tensors, path):
        del tensors["multi_modal_projector.linear_1.bias"]
        save_file({**tensors, "extra": torch.ones(1)}, path, {"format": "pt"})

    rewritten(folder, "model.safetensors", change)
    message = r"1 missing: model.multi_modal_projector.linear_1.bias; 1 unexpected: extra$"
    with pytest.raises(ValueError, match=message):
        load(folder)


def configured(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


# The keys that LLaVA's own code writes; v1.0's model type is that of transformers, too.
ORIGINAL = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_hidden_size": 1024,
    "mm_use_im_start_end": False,
}


@pytest.mark.parametrize("kind", ["llava_llama", "llava", "llava_mistral", "llava_qwen"])
def test_llavas_original_format_is_named_with_what_is_wanted(folder, kind) -> None:
    for path in folder.iterdir():
        path.unlink()  # such a folder has no processor: that must not be asked for first
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 4096, **ORIGINAL}))
    torch.save({}, folder / "pytorch_model-00001-of-00002.bin")
    message = rf"a LLaVA in its original format \(model_type {kind}\), want the converted one, .*model=llava15_7b .*docs/vlm.md"
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_the_docs_have_the_section_that_the_message_names() -> None:
    assert "\n## LLaVA's original format\n" in (CONF.parents[1] / "docs" / "vlm.md").read_text()


def test_a_type_that_transformers_has_not_is_named(folder) -> None:
    configured(folder, model_type="seer")
    with pytest.raises(
        ValueError, match=r"transformers \d\S+ has no model of type 'seer'; want a type that it has"
    ) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_code_of_a_folder_is_not_run_and_not_asked_for(folder, caplog) -> None:
    code = {"AutoConfig": "mine.MyConfig", "AutoModelForImageTextToText": "mine.MyModel"}
    (folder / "mine.py").write_text("raise RuntimeError('this must not run')")
    configured(folder, auto_map=code)
    assert load(folder).fingerprint
    assert warned(caplog) == [
        f"model.path={folder}: the code that its config.json names (mine.MyConfig, mine.MyModel) is not run; "
        "transformers' own llava is taken"
    ]
    configured(folder, model_type="seer")
    with pytest.raises(
        ValueError, match=r"wants code of its own \(mine.MyConfig, mine.MyModel\) for the model type 'seer'"
    ):
        load(folder)


def test_a_pipeline_in_place_of_a_vision_language_model_is_named():
    pipeline = CONF.parent / "miniature" / "sd"
    wanted = f"model.path={pipeline}: no config.json with a model_type, so no vision-language model of transformers"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}; found .*'model_index.json'.*: model=sd$"):
        load(pipeline)
