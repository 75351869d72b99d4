import json
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import save_file

import muwa
from muwa.data.samples import decode
from muwa.library import load_clip as load
from muwa.models.clip.open_clip import MINIATURE

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
    with pytest.raises(FileNotFoundError, match="found no such folder"):
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
