import argparse
import json
import shutil

import chained
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from weight_files.spoiled import SPOILED

from muwa.data.samples import decode
from muwa.layer_search.steps import step_deltas
from muwa.library import load_clip_hf as load
from muwa.miniature.train.clip import train_tokenizer
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.patch.files import read_weights
from muwa.patch.weights import weights_fingerprint
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients

TEXTS = ["Ada Fox", "a photo of Bo Hill"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random CLIPModel with tokenizer and image processor, written by save_pretrained."""
    path = tmp_path_factory.mktemp("hf")
    tokenizer = train_tokenizer([f"a photo of {name}" for name in tiny.NAMES], path)
    block = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, **special}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**block, **words},
        vision_config={**block, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        path
    )
    return path


def test_embeddings_are_those_of_transformers(folder):
    ours, theirs = load(str(folder)), CLIPModel.from_pretrained(folder).eval()
    pixels = ours.prepare.scale(torch.stack([ours.prepare(decode(tiny.png(i))) for i in (1, 200)]))
    tokens = ours.tokenize(TEXTS)
    assert tokens.shape == (2, 24)
    with torch.no_grad():
        want = theirs(input_ids=tokens, pixel_values=pixels)
        torch.testing.assert_close(ours.encode("vision", pixels), F.normalize(want.image_embeds, dim=-1))
        torch.testing.assert_close(ours.encode("text", tokens), F.normalize(want.text_embeds, dim=-1))


def test_one_projection_is_scored_and_all_three_are_edited_together(folder):
    layers = {layer.name: layer for layer in load(str(folder)).layers("tensor")}
    q = layers["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
    assert [part.name.split(".")[-2] for part in q.scored] == ["q_proj"]
    assert [part.name.split(".")[-2] for part in q.edited] == ["q_proj", "k_proj", "v_proj"]
    fc2 = layers["text_model.encoder.layers.0.mlp.fc2.weight"]
    assert [part.name.split(".")[-2] for part in fc2.edited] == ["fc1", "fc2"]
    assert not any("norm" in name or "bias" in name or "embedding" in name for name in layers)


def test_a_patch_goes_through_the_folder_and_back(folder, tmp_path):
    model = load(str(folder))
    layer = next(
        layer for layer in model.layers("tensor") if layer.name.endswith("layers.1.self_attn.k_proj.weight")
    )
    ones = {name: torch.ones_like(weight) for name, weight in model.weights.items()}
    edit = Edit(step_deltas(model, Gradients(ones, ones, 1, 1, {}), layer, 0.01), ())
    write_patch(tmp_path / "p", edit, model)
    assert weights_fingerprint(read_weights(folder)) == model.weights_fingerprint
    assert main(["apply", str(tmp_path / "p"), str(folder), "--out", str(tmp_path / "edited")]) == 0
    edited = load(str(tmp_path / "edited"))
    assert edited.weights_fingerprint == model.edited(edit).weights_fingerprint
    changed = [name for name in model.weights if not torch.equal(model.weights[name], edited.weights[name])]
    assert sorted(name.split(".")[-2] for name in changed) == ["k_proj", "q_proj", "v_proj"]
    assert (
        main(["remove", str(tmp_path / "p"), str(tmp_path / "edited"), "--out", str(tmp_path / "back")]) == 0
    )
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_a_missing_model_is_refused_with_where_it_was_looked_for(tmp_path, monkeypatch):
    (tmp_path / "readme.md").touch()
    with pytest.raises(
        FileNotFoundError,
        match=r"looked for config.json, model.safetensors, .* missing, found \['readme.md'\]",
    ):
        load(str(tmp_path))
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError,
        match=r"model.path=muwa/none: no such folder, and no hub id that is in .*`hf download muwa/none`",
    ):
        load("muwa/none")


def without(folder, to, *names):
    """A copy of `folder` without some files."""
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*names))


def test_all_projections_together_are_one_step_along_the_gradient(folder):
    model = load(str(folder))
    layer = next(
        one
        for one in model.layers("tensor")
        if one.name.endswith("text_model.encoder.layers.1.mlp.fc1.weight")
    )
    ones = {name: torch.ones_like(weight) for name, weight in model.weights.items()}
    deltas = step_deltas(model, Gradients(ones, ones, 1, 1, {}), layer, 0.5)
    assert sorted(name.split(".")[-2] for name in deltas) == ["fc1", "fc2"]
    assert {value for delta in deltas.values() for value in delta.unique().tolist()} == {0.5}


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_not_reported_as_missing(folder, tmp_path, name):
    path = without(folder, tmp_path / "part", name)
    with pytest.raises(FileNotFoundError) as caught:
        load(str(path))
    assert "no such folder" not in str(caught.value)
    assert "hf download /" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    path = without(folder, tmp_path / "part", "tokenizer*", "vocab*", "merges*", "special*")
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        load(str(path))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(folder, tmp_path):
    path = without(folder, tmp_path / "part", "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((OSError, ValueError), match="visual_projection.weight"):
        load(str(path))


@pytest.mark.parametrize("damage", ["shape", "cut"])
def test_a_damaged_checkpoint_is_named(folder, tmp_path, damage):
    path = without(folder, tmp_path / "part", "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "visual_projection.weight": torch.ones(8, 32)},
        path / "model.safetensors",
        {"format": "pt"},
    )
    if damage == "cut":
        raw = (folder / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises((OSError, ValueError), match="part"):
        load(str(path))


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("muwa")]


def replaced(folder, to, name, write):
    """A copy of `folder` whose weights `write(tensors, path)` wrote to the file `name`."""
    path = without(folder, to, "model.safetensors")
    write(load_file(folder / "model.safetensors"), path / name)
    return path


def written(tensors, path):
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("form", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}"])
def test_what_wrappers_add_to_names_is_removed(folder, tmp_path, form, caplog):
    path = replaced(
        folder,
        tmp_path / "part",
        "model.safetensors",
        lambda tensors, to: written({form.format(name): one for name, one in tensors.items()}, to),
    )
    assert load(str(path)).weights_fingerprint == load(str(folder)).weights_fingerprint
    assert said(caplog) == []


def test_a_bin_file_is_read(folder, tmp_path, caplog):
    path = replaced(folder, tmp_path / "part", "pytorch_model.bin", torch.save)
    assert load(str(path)).weights_fingerprint == load(str(folder)).weights_fingerprint
    assert said(caplog) == []


def test_a_variant_is_read_where_it_is_alone_and_said(folder, tmp_path, caplog):
    path = replaced(folder, tmp_path / "part", "model.fp16.safetensors", written)
    assert load(str(path)).weights_fingerprint == load(str(folder)).weights_fingerprint
    assert said(caplog) == [f"model.path={path}: its weights are there as fp16 alone; these are read"]


def test_weights_that_do_not_fit_are_named(folder, tmp_path, caplog):
    def change(tensors, to):
        del tensors["visual_projection.weight"]
        written({**tensors, "extra": torch.ones(1), "text_projection.weight": torch.ones(8, 32)}, to)

    path = replaced(folder, tmp_path / "part", "model.safetensors", change)
    message = (
        r"1 missing: visual_projection.weight; 1 unexpected: extra; 1 of another shape: text_projection.weight "
        r"\(8, 32\), want \(16, 32\)$"
    )
    with pytest.raises(ValueError, match=message):
        load(str(path))
    path = replaced(
        folder,
        tmp_path / "more",
        "model.safetensors",
        lambda t, to: written({**t, "extra": torch.ones(1)}, to),
    )
    caplog.clear()
    load(str(path))
    assert said(caplog) == [f"model.path={path}: weights that the model does not use: 1 unexpected: extra"]


def test_a_pickle_with_foreign_objects_is_refused_by_name(folder, tmp_path):
    def with_settings(tensors, to):
        torch.save({**tensors, "args": argparse.Namespace()}, to)

    path = replaced(folder, tmp_path / "part", "pytorch_model.bin", with_settings)
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: cannot .* it holds argparse.Namespace, whose code"
    ) as caught:
        load(str(path))
    assert "safe_globals" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["pointer.safetensors", "page.safetensors", "empty.safetensors", "cut.safetensors"]
)
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(folder, tmp_path, name):
    content, message = SPOILED[name]
    path = replaced(folder, tmp_path / "part", "model.safetensors", lambda _, to: to.write_bytes(content))
    with pytest.raises(ValueError, match=f"model.path: .*part/model.safetensors: the file {message}"):
        load(str(path))


CODE = {"AutoConfig": "configuration_mine.MyConfig", "AutoModel": "modeling_mine.MyModel"}


def configured(folder, to, **changed):
    path = shutil.copytree(folder, to)
    (path / "config.json").write_text(
        json.dumps({**json.loads((path / "config.json").read_text()), **changed})
    )
    (path / "modeling_mine.py").write_text("raise RuntimeError('this must not run')")
    (path / "configuration_mine.py").write_text("raise RuntimeError('this must not run')")
    return path


def test_code_of_a_folder_is_not_run_and_not_asked_for(folder, tmp_path, caplog):
    path = configured(folder, tmp_path / "known", auto_map=CODE)
    assert load(str(path)).weights_fingerprint == load(str(folder)).weights_fingerprint
    assert said(caplog) == [
        f"model.path={path}: the code that its config.json names (configuration_mine.MyConfig, "
        "modeling_mine.MyModel) is not run; transformers' own clip is taken"
    ]
    path = configured(folder, tmp_path / "unknown", auto_map=CODE, model_type="mine")
    with pytest.raises(
        ValueError, match=r"wants code of its own \(configuration_mine.MyConfig, .*model type 'mine'"
    ):
        load(str(path))


def test_a_tokenizer_that_wants_code_is_transformers_own_and_that_is_said(folder, tmp_path, caplog):
    path = shutil.copytree(folder, tmp_path / "part")
    file = path / "tokenizer_config.json"
    changed = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    (path / "mine.py").write_text("raise RuntimeError('this must not run')")
    assert torch.equal(load(str(path)).tokenize(TEXTS), load(str(folder)).tokenize(TEXTS))
    assert said(caplog)[0] == (
        f"model.path={path}: the code that its tokenizer_config.json names (mine.MyTokenizer) is not run; "
        "transformers' own classes are taken"
    )


def test_an_edited_folder_knows_its_requests_and_takes_the_next_patch(folder, tmp_path):
    model, tensor = load(str(folder)), "text_model.encoder.layers.1.mlp.fc2.weight"
    paths, states = chained.chain(tmp_path, model, [tensor], [tensor])
    on = folder
    for i, path in enumerate(paths):
        assert main(["apply", str(path), str(on), "--out", str(tmp_path / f"on{i}")]) == 0
        on = tmp_path / f"on{i}"
        found = load(str(on))
        assert [one.names[0] for one in found.requests] == list(chained.NAMES[: i + 1])
        assert found.weights_fingerprint == states[i].weights_fingerprint
    assert main(["verify", str(on), *map(str, paths), "--base", str(folder)]) == 0
    assert (
        main(["remove", str(paths[0]), str(on), "--out", str(tmp_path / "off"), "--others", str(paths[1])])
        == 0
    )
    assert main(["verify", str(tmp_path / "off"), str(paths[1]), "--base", str(folder)]) == 0
