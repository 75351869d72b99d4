"""Which weights of a CLIP a pipeline reads, and that the CLIP is its text encoder's."""

import pytest
import tiny_sd
import torch
from models.diffusion.test_model import FUSED, PROJ, PROMPTS, edit
from transformers import CLIPTextModel

from muwa.library import load_clip as load
from muwa.models.diffusion.model import Diffusion, Sampling
from muwa.patch.names import convert_to_target
from muwa.types.edit import Edit


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


@pytest.fixture(scope="module")
def xl():
    return tiny_sd.xl()


def candidates(clip):
    return {layer.name for layer in clip.layers("tensor")}


def test_only_what_the_pipeline_has_and_reads_can_be_chosen(model):
    found = candidates(model.clip)
    text = {name for name in candidates(load()) if not name.startswith("visual")}
    assert text - found == {"text_projection"}
    assert found <= text
    assert PROJ in found


def test_a_text_encoder_without_its_last_block_does_not_offer_it(model):
    pipeline = tiny_sd.pipeline()
    config = pipeline.text_encoder.config
    config.num_hidden_layers -= 1
    shorter = CLIPTextModel(config).eval()
    shorter.load_state_dict(
        {n: t for n, t in pipeline.text_encoder.state_dict().items() if ".layers.3." not in n}
    )
    pipeline.text_encoder = shorter
    short = Diffusion(pipeline, {"text_encoder": load()}, Sampling(2, 2.0), source="like Stable Diffusion 2")
    lost = candidates(model.clip) - candidates(short.clip)
    assert lost == {name for name in candidates(model.clip) if ".resblocks.3." in name}
    assert len(lost) == 6
    step = edit(short, FUSED)
    assert not torch.equal(short.edited(step).generate(PROMPTS), short.generate(PROMPTS))
    with pytest.raises(KeyError, match=r"layers.3.mlp.fc2.weight: not in this model"):
        short.edited(edit(short, PROJ))


def test_a_clip_that_is_not_the_encoders_is_refused():
    clip = load()
    name = "transformer.resblocks.1.mlp.c_fc.bias"
    other = clip.with_weights({name: clip.weights[name] + 1e-3})
    message = r"model.clips.text_encoder: the miniature is not the text_encoder of x: .*1.mlp.fc1.bias differs \(1 of 68 do"
    with pytest.raises(ValueError, match=message):
        Diffusion(tiny_sd.pipeline(), {"text_encoder": other}, Sampling(2, 2.0), source="x")
    with pytest.raises(ValueError, match=r"second is not the text_encoder of x: .* differs \(68 of 68 do\)"):
        Diffusion(tiny_sd.pipeline(), {"text_encoder": tiny_sd.second_clip()}, Sampling(2, 2.0), source="x")


def test_the_clip_of_a_pipeline_stored_in_half_precision_is_the_full_one():
    pipeline = tiny_sd.pipeline().to(torch.float16).to(torch.float32)
    clip = load()
    noisy = clip.with_weights(
        {n: w * (1 + 1e-5) for n, w in clip.weights.items()}
    )  # no longer what half can hold
    assert not torch.equal(noisy.weights[PROJ], noisy.weights[PROJ].half().float())
    half = {
        name: w.half().float()
        for name, w in convert_to_target(text_of(noisy), pipeline.text_encoder.state_dict()).items()
    }
    pipeline.text_encoder.load_state_dict(half)
    assert (
        Diffusion(pipeline, {"text_encoder": noisy}, Sampling(2, 2.0), source="x").clip.weights[PROJ].dtype
        == torch.float32
    )


def text_of(clip):
    return {n: w for n, w in clip.weights.items() if not n.startswith(("visual", "logit", "text_projection"))}


def test_xl_reads_before_the_last_block_but_for_the_second_pooled_text(xl):
    first, second = candidates(xl.clip), candidates(xl.clips["text_encoder_2"])
    assert {name.split(".")[2] for name in first if "resblocks" in name} == {"0", "1", "2"}
    assert {name.split(".")[2] for name in second if "resblocks" in name} == {"0", "1"}
    assert "text_projection" in second
    assert not {"ln_final.weight", "text_projection"} & first
    images = xl.generate(PROMPTS)
    unread = Edit({PROJ: torch.randn(xl.clip.weights[PROJ].shape)}, ())
    assert torch.equal(xl.edited(unread).generate(PROMPTS), images)
