import importlib.util
import json

import pytest
import tiny
import tiny_sd
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from muwa.patch import names
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.patch.lora import truncated
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts

FUSED, FC = "transformer.resblocks.2.attn.in_proj_weight", "transformer.resblocks.3.mlp.c_proj.weight"
TO_K = "unet/up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight"
SECOND = "text_encoder_2/transformer.resblocks.1.mlp.c_fc.weight"
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def make(path, model, *keys, rank=None):
    """A patch of random deltas, of full or of a given rank."""
    weights = model.patch_base(Edit({key: torch.zeros(1) for key in keys}, ())).weights
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for key in keys:
        shape = weights[key].shape
        deltas[key] = 0.1 * torch.randn(shape, generator=generator)
        if rank:
            a, b = (torch.randn(n, rank, generator=generator) for n in shape)
            deltas[key] = 0.3 * a @ b.T
    step = Edit(deltas, ())
    write_patch(path, step, model.patch_base(step))
    return step


def factors(found, layer):
    kinds = (
        ("lora_A", "lora_B")
        if layer.startswith("unet.")
        else ("lora_linear_layer.down", "lora_linear_layer.up")
    )
    return tuple(found[f"{layer}.{kind}.weight"] for kind in kinds)


def lora(patch, rank, out):
    return main(["lora", str(patch), "--rank", str(rank), "--out", str(out)])


def test_the_factors_of_a_matrix_by_hand():
    a, b, error = truncated(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 1)
    assert torch.allclose(b @ a, torch.tensor([[0.0, 0.0], [0.0, 4.0]]), atol=1e-6)
    assert error == pytest.approx(3 / 5)
    a, b, error = truncated(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 3)
    assert (a.shape, b.shape, error) == ((3, 2), (2, 3), 0)
    assert torch.allclose(b @ a, torch.tensor([[3.0, 0.0], [0.0, 4.0]]), atol=1e-6)


def test_the_file_holds_the_nearest_matrices_and_their_errors(tmp_path, capsys):
    model = tiny_sd.diffusion()
    step = make(tmp_path / "p", model, FUSED, FC, TO_K)
    assert lora(tmp_path / "p", 4, tmp_path / "l.safetensors") == 0
    said = capsys.readouterr().out
    found = load_file(tmp_path / "l.safetensors")
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        about = json.loads(file.metadata()["muwa.lora/1"])
    wanted = {
        f"text_encoder.{name.removesuffix('.weight')}": delta
        for name, delta in names.to_hf({key: step.deltas[key] for key in (FUSED, FC)}).items()
    } | {f"unet.{TO_K.removeprefix('unet/').removesuffix('.weight')}": step.deltas[TO_K]}
    assert set(about["relative_frobenius_error"]) == set(wanted)
    assert len(found) == 2 * 5
    for layer, delta in wanted.items():
        a, b = factors(found, layer)
        product = b @ a
        error = ((delta - product).norm() / delta.norm()).item()
        assert torch.linalg.matrix_rank(product) == 4
        assert about["relative_frobenius_error"][layer] == pytest.approx(error, rel=1e-3)
        assert f"{error:.3f}" in said or f"{error:.4f}"[:5] in said
        assert layer in said
    assert about["rank"] == 4


def test_a_delta_of_that_rank_is_exact(tmp_path):
    step = make(tmp_path / "p", tiny_sd.diffusion(), FC, rank=3)
    assert lora(tmp_path / "p", 3, tmp_path / "l.safetensors") == 0
    a, b = factors(load_file(tmp_path / "l.safetensors"), "text_encoder.text_model.encoder.layers.3.mlp.fc2")
    assert torch.allclose(b @ a, step.deltas[FC], atol=1e-4)


@pytest.mark.parametrize("key", [
    "unet/conv_in.weight", "transformer.resblocks.0.mlp.c_fc.bias", "token_embedding.weight", "ln_final.weight",
])  # fmt: skip
def test_what_is_no_linear_layer_is_refused(key, tmp_path, capsys):
    make(tmp_path / "p", tiny_sd.diffusion(), FC, key)
    assert lora(tmp_path / "p", 3, tmp_path / "l.safetensors") == 2
    said = capsys.readouterr().err
    assert key.partition("/")[2] or key in said
    assert "a LoRA of diffusers holds linear layers of text encoders and UNets" in said
    assert not (tmp_path / "l.safetensors").exists()


def test_vision_layers_and_ranks_below_one_are_refused(tmp_path, capsys):
    clip = tiny.clip()
    write_patch(tmp_path / "p", Edit({"visual.proj": torch.ones_like(clip.weights["visual.proj"])}, ()), clip)
    assert lora(tmp_path / "p", 3, tmp_path / "l") == 2
    assert "text_encoder/visual.proj" in capsys.readouterr().err
    assert lora(tmp_path / "p", 0, tmp_path / "l") == 2
    assert "--rank: got 0, want at least 1" in capsys.readouterr().err
    write_patch(
        tmp_path / "q",
        Edit({FC.replace(".3.", ".1."): torch.zeros_like(clip.weights[FC.replace(".3.", ".1.")])}, ()),
        clip,
    )
    assert lora(tmp_path / "q", 3, tmp_path / "l") == 2
    assert "the patch changes nothing" in capsys.readouterr().err


@needs_peft
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("xl", [False, True])
def test_diffusers_loads_it_and_generates_as_the_edited_pipeline(xl, tmp_path):
    model = tiny_sd.xl() if xl else tiny_sd.diffusion()
    keys = (FUSED, SECOND, TO_K) if xl else (FUSED, FC, TO_K)
    step = make(tmp_path / "p", model, *keys, rank=2)
    assert lora(tmp_path / "p", 3, tmp_path / "l.safetensors") == 0
    prompts = Prompts(("a photo of a dog", "red"), (3, 4))
    want, before = model.edited(step).generate(prompts), model.generate(prompts)
    pipeline = tiny_sd.xl_pipeline() if xl else tiny_sd.pipeline()
    pipeline.load_lora_weights(str(tmp_path), weight_name="l.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in prompts.seeds]
    images = pipeline(
        list(prompts.texts), generator=noise, num_inference_steps=2, guidance_scale=2.0, output_type="pt"
    ).images
    found = (images * 255).round()
    assert (found - want.float()).abs().max() <= 1
    assert (before.float() - want.float()).abs().max() > 5
