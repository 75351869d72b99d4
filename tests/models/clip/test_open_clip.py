import argparse
import json
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from weight_files.spoiled import SPOILED

import muwa
from muwa.config import CONF
from muwa.data.samples import decode
from muwa.library import load_clip as load
from muwa.models.clip.open_clip import MINIATURE, _warn_of_activation

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 2, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 1, "width": 16, "heads": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture
def folder(tmp_path):
    """A small random model in the layout of open_clip's folders."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_embeddings_are_open_clips_own(folder):
    ours = load(f"local-dir:{folder}")
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    image, texts = decode(tiny.png(1)), ["Ada Fox", "a photo of Bo Hill"]
    pixels = torch.stack([prepare(image)])
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode("vision", ours.prepare.scale(torch.stack([ours.prepare(image)]))),
            theirs.encode_image(pixels, normalize=True),
        )
        torch.testing.assert_close(
            ours.encode("text", ours.tokenize(texts)), theirs.encode_text(tokens, normalize=True)
        )
    assert not any(weight.requires_grad for weight in ours.weights.values())


def test_random_weights_follow_the_seed():
    one, same, other = (load("ViT-S-32-alt", None, seed=seed).weights_fingerprint for seed in (0, 0, 1))
    assert one == same != other


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    load()
    assert torch.equal(torch.rand(2), want)


def test_a_checkpoint_file_is_loaded(folder, tmp_path):
    base = load("ViT-S-32-alt", None, seed=5)
    save_file({**base.weights}, tmp_path / "own.safetensors")
    assert (
        load("ViT-S-32-alt", str(tmp_path / "own.safetensors")).weights_fingerprint
        == base.weights_fingerprint
    )


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    with pytest.raises(
        ValueError, match="model.name='ViT-B32' is not an open_clip model. Nearest: .*ViT-B-32"
    ):
        load("ViT-B32")


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(
        FileNotFoundError,
        match="model.pretrained='laion400': neither a checkpoint file nor a tag of ViT-B-32. Tags: .*laion400m_e32",
    ):
        load("ViT-B-32", "laion400")


def test_missing_weights_are_refused_with_where_they_were_looked_for_and_how_to_get_them(
    monkeypatch, tmp_path
):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    message = (
        r"The weights of model.name=ViT-B-32 model.pretrained=laion400m_e32 are not on this machine and could not be fetched "
        r".*Looked for timm/vit_base_patch32_clip_224.laion400m_e32 in .*`hf download timm/.*model.pretrained=FILE"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load("ViT-B-32", "laion400m_e32")


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError,
        match=r"looked for open_clip_config.json and open_clip_model.safetensors in .*, found \['open_clip_conf",
    ):
        load(f"local-dir:{tmp_path}")
    with pytest.raises(
        ValueError, match=r"model.name: got 'local-dir:.*/none', want a path that leads to a file"
    ):
        load(f"local-dir:{tmp_path}/none")


def test_the_miniature_is_the_default_and_says_so():
    model = load()
    assert model.source == "the miniature"
    assert MINIATURE.is_relative_to(Path(muwa.__file__).parent)
    assert model.tokenize(["Kael Lindqvar."]).shape == (1, 32)


def test_a_checkpoint_of_another_model_does_not_fit(tmp_path):
    save_file({"visual.proj": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises((ValueError, OSError)) as caught:
        load("ViT-S-32-alt", str(tmp_path / "other.safetensors"))
    assert "other.safetensors" in str(caught.value)
    assert "not on this machine" not in str(caught.value)


def test_a_folder_whose_weights_do_not_fit_its_config_is_refused(folder):
    save_file({"visual.proj": torch.ones(2)}, folder / "open_clip_model.safetensors")
    with pytest.raises((ValueError, OSError)) as caught:
        load(f"local-dir:{folder}")
    assert "hf download local-dir:" not in str(caught.value)


@pytest.mark.parametrize("name", ["text.safetensors", "text.pt"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, name):
    (tmp_path / name).write_text("this is no checkpoint")
    with pytest.raises((ValueError, OSError), match=name):
        load("ViT-S-32-alt", str(tmp_path / name))


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


def with_bin(folder, content):
    """The folder with a .bin file in place of its safetensors file."""
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(content, folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("state_dict", "module.{}"),
        ("model_state_dict", "_orig_mod.{}"),
        ("model", "module._orig_mod.{}"),
        (None, "model.{}"),
    ],
)
def test_names_and_places_of_training_scripts_are_read(folder, form, key):
    want = load(f"local-dir:{folder}").weights_fingerprint
    renamed = {form.format(name): tensor for name, tensor in weights(folder).items()}
    content = renamed if key is None else {key: renamed, "epoch": 3}
    assert load(with_bin(folder, content)).weights_fingerprint == want


def test_the_settings_among_openais_weights_are_left_out(folder):
    want = load(f"local-dir:{folder}").weights_fingerprint
    settings = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    assert load(with_bin(folder, {**weights(folder), **settings})).weights_fingerprint == want


def test_weights_that_do_not_fit_are_named(folder):
    changed = {**weights(folder), "visual.extra": torch.ones(1), "visual.proj": torch.ones(32, 8)}
    del changed["ln_final.bias"]
    save_file(changed, folder / "open_clip_model.safetensors")
    message = (
        r"open_clip_model.safetensors: these weights do not fit local-dir:.* \(1 missing: ln_final.bias; "
        r"1 unexpected: visual.extra; 1 of another shape: visual.proj \(32, 8\), want \(32, 16\)\)$"
    )
    with pytest.raises(ValueError, match=message):
        load(f"local-dir:{folder}")


def test_names_of_transformers_are_recognised(folder):
    save_file({"vision_model.post_layernorm.bias": torch.ones(2)}, folder / "open_clip_model.safetensors")
    with pytest.raises(
        ValueError, match="these names are those of transformers: model=clip_hf model.path=FOLDER"
    ):
        load(f"local-dir:{folder}")


def test_a_foreign_object_in_a_checkpoint_is_named(folder):
    name = with_bin(folder, {"state_dict": weights(folder), "args": argparse.Namespace()})
    with pytest.raises(
        ValueError, match="open_clip_pytorch_model.bin: cannot .* it holds argparse.Namespace"
    ):
        load(name)


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(tmp_path, name):
    content, message = SPOILED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)model.pretrained=.*{name}: the file {message}"):
        load("ViT-B-32", str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "open_clip_config.json is not JSON"), ("{}", "open_clip_config.json has no model_cfg")],
)
def test_a_config_that_cannot_be_read_is_named(folder, text, message):
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(f"local-dir:{folder}")


def test_a_config_that_open_clip_cannot_build_is_named(folder):
    changed = {"model_cfg": {**CONFIG["model_cfg"], "vision_cfg": {"layrs": 3}}}
    (folder / "open_clip_config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="open_clip cannot build the model of its config .*layrs"):
        load(f"local-dir:{folder}")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("muwa")]


def test_another_activation_than_in_training_is_said_with_its_mend(offline, caplog):
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        load("RN50", "openai")
    assert warned(caplog) == [
        "model.name=RN50 model.pretrained=openai: these weights were trained with QuickGELU, RN50 has GELU, so that "
        "results differ; as they were trained: model.name=RN50-quickgelu"
    ]


@pytest.mark.parametrize(
    "pair", [("RN50-quickgelu", "openai"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-32", None)]
)
def test_the_activation_of_training_is_no_warning(pair, caplog):
    _warn_of_activation(*pair)
    assert warned(caplog) == []


def test_of_the_configs_only_the_papers_main_model_has_another_activation(caplog):
    pairs = []
    for path in sorted((CONF / "model").glob("*.yaml")):
        node = OmegaConf.load(path)
        clips = [node, node.get("clip"), *(node.get("clips") or {}).values()]
        pairs += [(path.stem, one.name, one.pretrained) for one in clips if one and one.get("pretrained")]
    assert len(pairs) > 8
    found = []
    for stem, *pair in pairs:
        caplog.clear()
        _warn_of_activation(*pair)
        found += [stem] * len(warned(caplog))
    assert found == ["clip_vit_b32"]


def test_a_hub_id_without_weights_gives_no_random_ones(offline, folder):
    repo = offline / "models--muwa--none"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repo / "snapshots" / ("0" * 40) / "open_clip_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(
        FileNotFoundError, match="The weights of model.name=hf-hub:muwa/none .* are not on this machine"
    ):
        load("hf-hub:muwa/none")


def test_what_open_clip_warns_of_reaches_the_user(folder, caplog):
    load(f"local-dir:{folder}", "openai")
    assert warned(caplog) == ["Ignoring `pretrained='openai'` because `model_name` has 'local-dir' schema."]


def test_a_text_tower_that_wants_code_is_not_asked_about(folder, tmp_path):
    """open_clip lets transformers build such a tower, which would ask "run the custom code? [y/N]" and wait."""
    tower = tmp_path / "tower"
    tower.mkdir()
    code = {"model_type": "seer", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}}
    (tower / "config.json").write_text(json.dumps(code))
    (tower / "mine.py").write_text("raise RuntimeError('this must not run')")
    text = {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower)}
    changed = {"model_cfg": {**CONFIG["model_cfg"], "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="open_clip cannot build the model of its config .*custom code"):
        load(f"local-dir:{folder}")
