import pytest
import tiny_sd
import torch

from muwa.eval.images.clips import unedited_clip
from muwa.models.clip import open_clip
from muwa.types.edit import Edit

LAYER = "transformer.resblocks.2.attn.in_proj_weight"


def load(model, name=None, pretrained=None):
    return unedited_clip(model, name=name, pretrained=pretrained, device="cpu")


def test_the_pipelines_clip_is_the_unedited_one():
    model = tiny_sd.diffusion()
    edited = model.edited(Edit({LAYER: torch.ones_like(model.clip.weights[LAYER])}, ()))
    assert (
        load(edited).weights_fingerprint == load(model).weights_fingerprint == model.clip.weights_fingerprint
    )
    assert edited.clip.weights_fingerprint != model.clip.weights_fingerprint


def test_xl_is_scored_by_the_clip_of_its_first_encoder():
    model = tiny_sd.xl()
    assert load(model).weights_fingerprint == model.clips["text_encoder"].weights_fingerprint


def test_another_clip_is_loaded_by_its_name():
    model = tiny_sd.xl()
    want = open_clip.load("miniature", None, device="cpu", seed=0)
    assert load(model, "miniature").fingerprint == want.fingerprint


def test_random_weights_and_weights_of_nothing_are_refused():
    with pytest.raises(
        ValueError, match="clip.name=ViT-B-32: without clip.pretrained its weights are random"
    ):
        load(None, "ViT-B-32")
    with pytest.raises(ValueError, match="clip.pretrained=openai: of which model"):
        load(None, None, "openai")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint file nor a tag of ViT-B-32"):
        load(None, "ViT-B-32", "nobody")
