"""Pipelines of other kinds are refused in words, from their index alone; and why FLUX and SD 3 are."""

import inspect
import json
from functools import cache
from pathlib import Path

import diffusers
import pytest
import tiny_sd
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from records import part
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

import muwa
from muwa.models.diffusion.loading import check_kind

PROMPTS = ("a photo of Kael Lindqvar", "A star image in neon style.")
CLIPS = {"text_encoder": muwa.load_clip}


def t5(width: int) -> T5EncoderModel:
    """A random T5 of two blocks for the miniature's tokens."""
    config = T5Config(vocab_size=1245, d_model=width, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def latents() -> AutoencoderKL:
    """8 x 8 latents of 4 channels."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
    ).eval()  # fmt: skip


@cache
def flux() -> FluxPipeline:
    """A random FLUX: T5's tokens, and the pooled embedding of a CLIP."""
    base = tiny_sd.pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=128, axes_dims_rope=[4, 4, 8],
        ).eval()  # fmt: skip
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(), vae=latents(), text_encoder=base.text_encoder,
            tokenizer=base.tokenizer, text_encoder_2=t5(32), tokenizer_2=base.tokenizer, transformer=network,
        )  # fmt: skip


@cache
def sd3() -> StableDiffusion3Pipeline:
    """A random SD 3: tokens and pooled embeddings of two CLIPs, and T5's tokens."""
    base = tiny_sd.xl_pipeline()
    config = base.text_encoder.config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = config.hidden_size + 32
        network = SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=width, caption_projection_dim=32, pooled_projection_dim=config.projection_dim + 16,
            out_channels=4,
        ).eval()  # fmt: skip
        return StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(), vae=latents(), text_encoder=CLIPTextModelWithProjection(config).eval(),
            tokenizer=base.tokenizer, text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer,
            text_encoder_3=t5(width), tokenizer_3=base.tokenizer, transformer=network,
        )  # fmt: skip


def drawn(pipeline, **prompts: str) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(
        **prompts, height=16, width=16, num_inference_steps=3, output_type="np", max_sequence_length=32,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return torch.from_numpy(out.images[0]).float()


@pytest.mark.parametrize(("made", "last"), [(flux, "prompt_2"), (sd3, "prompt_3")])
def test_t5_shapes_the_image_whatever_the_clips_read(made, last) -> None:
    """So an edit of the CLIPs cannot make the image forget. (How much it shapes says only a trained pipeline.)"""
    name, other = PROMPTS
    keys = ["prompt", "prompt_2", "prompt_3"][: int(last[-1])]
    same = drawn(made(), **dict.fromkeys(keys, other))
    t5_alone = drawn(made(), **dict.fromkeys(keys, other) | {last: name})  # what an edit of the CLIPs leaves
    both = drawn(made(), **dict.fromkeys(keys, name))
    whole = (both - same).norm()
    share = (t5_alone - same).norm() / whole
    assert 0.02 < share < 0.5  # 3 to 12 % in random weights; the rest is the CLIPs'


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (flux, r"a FluxPipeline; .* read by text_encoder \(CLIPTextModel\), text_encoder_2 \(T5EncoderModel\)\. "
               r"An edit of text_encoder alone would leave the name in text_encoder_2"),
        (sd3, r"a StableDiffusion3Pipeline; .* text_encoder_3 \(T5EncoderModel\)\. An edit of text_encoder and "
              r"text_encoder_2 alone would leave the name in text_encoder_3"),
    ],
)  # fmt: skip
def test_flux_and_sd3_are_refused_before_a_weight_is_read(made, message, tmp_path) -> None:
    made().save_pretrained(tmp_path)
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        part("model=sd", path=str(tmp_path), clips=CLIPS)()


def index_of(name: str) -> dict:
    """`model_index.json` as `save_pretrained` of that pipeline writes it, from the types of its arguments."""
    kind = getattr(diffusers, name)
    hints = {key: p.annotation for key, p in inspect.signature(kind.__init__).parameters.items()}
    classes = {
        key: hint.__name__ for key, hint in hints.items() if inspect.isclass(hint) and hint not in (bool, str)
    }
    assert len(classes) > 2
    return {"_class_name": name, **{key: ["library", value] for key, value in classes.items()}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PixArtAlphaPipeline", r"text_encoder \(T5EncoderModel\)\. So there is no CLIP"),
        ("SanaPipeline", r"text_encoder \(Gemma2PreTrainedModel\)\. So there is no CLIP"),
        ("IFPipeline", r"text_encoder \(T5EncoderModel\)\. So there is no CLIP"),
        ("KandinskyPipeline", r"text_encoder \(MultilingualCLIP\)\. So there is no CLIP"),
        ("Kandinsky3Pipeline", r"text_encoder \(T5EncoderModel\)\. So there is no CLIP"),
        ("KandinskyV22Pipeline", r"no text encoder of its own\. So there is no CLIP"),
        ("StableCascadeDecoderPipeline", r"are made by decoder \(StableCascadeUNet\), not by a unet"),
        ("WuerstchenPriorPipeline", r"are made by prior \(WuerstchenPrior\), not by a unet"),
        ("QwenImagePipeline", r"text_encoder \(Qwen2_5_VLForConditionalGeneration\)\. So there is no CLIP"),
    ],
)
def test_another_kind_is_refused_with_what_reads_the_prompt(name, message, tmp_path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index_of(name)))
    with pytest.raises(ValueError, match=rf"a {name}; want a pipeline with a unet and CLIP text .*{message}"):
        part("model=sd", path=str(tmp_path), clips=CLIPS)()


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline"]
)
def test_stable_diffusion_is_not(name) -> None:
    check_kind("here", index_of(name))
    shipped = Path(muwa.__file__).parent / "miniature" / "sd" / "model_index.json"
    check_kind("miniature", json.loads(shipped.read_text()))
