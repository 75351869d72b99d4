import shutil
from functools import partial

import pytest
import tiny
import tiny_sd
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from muwa.library import load_clip as load
from muwa.models.diffusion import loading
from muwa.patch import names
from muwa.patch.__main__ import main
from muwa.patch.apply import read_patch, write_patch
from muwa.patch.files import read_weights
from muwa.patch.folders import variants
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts

PROMPTS = Prompts(("a photo of a dog", "red"), (3, 4))
FUSED, PROJ = "transformer.resblocks.2.attn.in_proj_weight", "transformer.resblocks.3.mlp.c_proj.weight"
CONV = "unet/conv_in.weight"
TEXT, UNET = "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


@pytest.fixture(scope="module")
def base(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("base") / "sd"
    model.pipeline.save_pretrained(path)
    return path


def edit(weights, *keys, size=0.3):
    generator = torch.Generator().manual_seed(0)
    return Edit({key: size * torch.randn(weights[key].shape, generator=generator) for key in keys}, ())


def base_weights(model, *keys):
    """Unedited tensors under the names of deltas."""
    return model.patch_base(Edit({key: torch.zeros(1) for key in keys}, ())).weights


def run(command, patch, on, out):
    return main([command, str(patch), str(on), "--out", str(out)])


def files(folder):
    """Name -> bytes of all files but the record of the patch (test_change.py) and its card (test_readme.py)."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("muwa_patch.json", "README.md")
    }


def changed(a, b):
    return sorted(name for name in a if a[name] != b.get(name))


def plain(folder, **options):
    """The images that diffusers alone generates with the folder."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in PROMPTS.seeds]
    out = pipeline(
        list(PROMPTS.texts), generator=noise, num_inference_steps=2, guidance_scale=2.0, output_type="pt"
    )
    return (out.images.float() * 255).round().to(torch.uint8)


@pytest.mark.parametrize("keys", [(FUSED, PROJ), (FUSED, CONV)])
def test_a_pipelines_folder_is_edited_and_restored(model, base, tmp_path, keys, capsys):
    step = edit(base_weights(model, *keys), *keys)
    write_patch(tmp_path / "p", step, model.patch_base(step))
    assert run("apply", tmp_path / "p", base, tmp_path / "out") == 0
    assert f"{3 + 1} tensors edited" in capsys.readouterr().out
    before, after = files(base), files(tmp_path / "out")
    assert set(before) == set(after)
    assert changed(before, after) == sorted([TEXT, *([UNET] if CONV in keys else [])])
    old, new = load_file(base / TEXT), load_file(tmp_path / "out" / TEXT)
    differ = {name for name in old if not torch.equal(old[name], new[name])}
    assert differ == set(names.convert_to_target({key: step.deltas[key] for key in keys if key != CONV}, old))
    assert len(differ) == (3 if CONV in keys else 4)
    assert torch.equal(plain(tmp_path / "out"), model.edited(step).generate(PROMPTS))
    assert not torch.equal(plain(tmp_path / "out"), model.generate(PROMPTS))
    assert run("apply", tmp_path / "p", tmp_path / "out", tmp_path / "twice") == 2
    assert "the patch is applied already" in capsys.readouterr().err
    assert run("remove", tmp_path / "p", tmp_path / "out", tmp_path / "back") == 0
    assert files(tmp_path / "back") == before
    assert not (tmp_path / "back/muwa_patch.json").exists()
    assert run("remove", tmp_path / "p", base, tmp_path / "none") == 2
    assert "the patch is not on text_encoder/model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()
    assert not (tmp_path / "none").exists()


def test_both_spellings_of_a_patch_edit_the_same_bytes(model, base, tmp_path):
    step = edit(model.clip.weights, FUSED, PROJ)
    write_patch(tmp_path / "a", step, model.clip)
    theirs = model.clip.with_weights({})
    theirs.weights = names.to_hf(model.clip.weights)
    write_patch(tmp_path / "b", Edit(names.to_hf(step.deltas), ()), theirs)
    for name in "ab":
        assert run("apply", tmp_path / name, base, tmp_path / f"out_{name}") == 0
    assert files(tmp_path / "out_a") == files(tmp_path / "out_b") != files(base)


def test_any_other_pipeline_is_refused(model, base, tmp_path, capsys):
    step = edit(model.clip.weights, FUSED)
    other = {n: w + 1e-3 if n == FUSED else w for n, w in model.clip.weights.items()}
    write_patch(tmp_path / "p", step, model.clip.with_weights(other))
    assert run("apply", tmp_path / "p", base, tmp_path / "out") == 2
    assert (
        "wrong base: 3 of the 3 tensors to edit differ in text_encoder/model.safetensors"
        in capsys.readouterr().err
    )
    for key, weights, message in (
        (
            "visual.proj",
            model.clip.weights,
            "text_encoder/model.safetensors: visual_projection.weight: not in this model",
        ),
        (
            "unet/none",
            {"unet/none": torch.ones(2)},
            "unet/diffusion_pytorch_model.safetensors: none: not in this model",
        ),
        (
            "text_encoder_2/ln_final.bias",
            {"text_encoder_2/ln_final.bias": torch.ones(2)},
            "text_encoder_2: looked for diffusion_pytorch_model.safetensors, model.safetensors, their variants",
        ),
    ):
        held = model.clip.with_weights({})
        held.weights = weights if key != "visual.proj" else model.clip.weights
        write_patch(tmp_path / "q", edit(held.weights, key), held)
        assert run("apply", tmp_path / "q", base, tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_variant_is_edited_and_a_pickled_twin_left_out(model, base, tmp_path):
    sd = shutil.copytree(base, tmp_path / "sd")
    weights = load_file(base / TEXT)
    save_file(
        {n: w.half() for n, w in weights.items()},
        sd / "text_encoder/model.fp16.safetensors",
        {"format": "pt"},
    )
    torch.save(weights, sd / "text_encoder/pytorch_model.bin")
    torch.save(
        {n: w.half() for n, w in load_file(base / UNET).items()}, sd / "unet/diffusion_pytorch_model.fp16.bin"
    )
    step = edit(base_weights(model, FUSED, CONV), FUSED, CONV)
    write_patch(tmp_path / "p", step, model.patch_base(step))
    assert run("apply", tmp_path / "p", sd, tmp_path / "out") == 0
    before, after = files(sd), files(tmp_path / "out")
    assert set(before) - set(after) == {
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
    }
    assert set(after) - set(before) == {"unet/diffusion_pytorch_model.fp16.safetensors"}
    half = load_file(tmp_path / "out/text_encoder/model.fp16.safetensors")
    for name, delta in names.convert_to_target({FUSED: step.deltas[FUSED]}, half).items():
        assert torch.equal(half[name], (weights[name].half().float() + delta).half())
    unet = load_file(tmp_path / "out/unet/diffusion_pytorch_model.fp16.safetensors")["conv_in.weight"]
    assert torch.equal(
        unet, (model.weights("unet")["conv_in.weight"].half().float() + step.deltas[CONV]).half()
    )
    assert torch.equal(plain(tmp_path / "out"), model.edited(step).generate(PROMPTS))
    assert run("remove", tmp_path / "p", tmp_path / "out", tmp_path / "back") == 0
    again = files(tmp_path / "back")
    assert all(again[name] == before[name] for name in before if not name.endswith(".bin"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_in_half_precision_generates_what_the_edited_pipeline_generates(tmp_path, dtype):
    model = tiny_sd.diffusion(0, dtype)
    model.pipeline.save_pretrained(tmp_path / "sd")
    step = edit(model.clip.weights, FUSED, PROJ)
    write_patch(tmp_path / "p", step, model.patch_base(step))
    assert run("apply", tmp_path / "p", tmp_path / "sd", tmp_path / "out") == 0
    assert {t.dtype for t in load_file(tmp_path / "out" / TEXT).values()} == {dtype}
    assert torch.equal(plain(tmp_path / "out", dtype=dtype), model.edited(step).generate(PROMPTS))
    assert run("remove", tmp_path / "p", tmp_path / "out", tmp_path / "back") == 0
    assert files(tmp_path / "back") == files(tmp_path / "sd")


def test_both_encoders_of_xl_are_edited_in_a_folder(tmp_path):
    model = tiny_sd.xl()
    model.pipeline.save_pretrained(tmp_path / "xl")
    keys = (FUSED, f"text_encoder_2/{FUSED.replace('.2.', '.1.')}", "text_encoder_2/text_projection")
    step = edit(base_weights(model, *keys), *keys)
    write_patch(tmp_path / "p", step, model.patch_base(step))
    assert run("apply", tmp_path / "p", tmp_path / "xl", tmp_path / "out") == 0
    assert changed(files(tmp_path / "xl"), files(tmp_path / "out")) == [
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    ]
    now = type(model.pipeline).from_pretrained(tmp_path / "out")
    for component in ("text_encoder", "text_encoder_2"):
        want, found = model.edited(step).weights(component), dict(getattr(now, component).named_parameters())
        assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


def test_shards_are_edited_and_missing_ones_named(model, base, tmp_path):
    sd = shutil.copytree(base, tmp_path / "sd")
    weights = load_file(sd / TEXT)
    (sd / TEXT).unlink()
    for i in range(2):
        part = dict(sorted(weights.items())[i::2])
        save_file(part, sd / f"text_encoder/model-0000{i + 1}-of-00002.safetensors", {"format": "pt"})
    step = edit(model.clip.weights, FUSED, PROJ)
    write_patch(tmp_path / "p", step, model.clip)
    assert run("apply", tmp_path / "p", sd, tmp_path / "out") == 0
    found = {
        n: t
        for path in (tmp_path / "out/text_encoder").glob("*.safetensors")
        for n, t in load_file(path).items()
    }
    want = model.edited(step).weights("text_encoder")
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())
    (sd / "text_encoder/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="1 of the 2 shards of model-00001-of-00002.safetensors are there"
    ):
        variants(sd / "text_encoder")
    for i in range(2):
        torch.save({}, sd / f"unet/diffusion_pytorch_model.ema-0000{i + 1}-of-00002.bin")
    with pytest.raises(ValueError, match="pickled weights in shards; save them as safetensors first"):
        variants(sd / "unet")


def test_files_of_other_kinds_do_not_count_as_weights(tmp_path):
    for name in (
        "openvino_model.bin",
        "model.onnx",
        "flax_model.msgpack",
        "model.safetensors.index.json",
        "config.json",
    ):
        (tmp_path / name).touch()
    with pytest.raises(
        FileNotFoundError, match=r"or .bin twins; found \['config.json', 'flax_model.msgpack'"
    ):
        variants(tmp_path)
    for name in (
        "model.fp16-00001-of-00001.safetensors",
        "model.safetensors",
        "model.bin",
        "pytorch_model.fp16.bin",
    ):
        (tmp_path / name).touch()
    sets, twins = variants(tmp_path)
    assert sorted(path.name for one in sets for path in one) == [
        "model.fp16-00001-of-00001.safetensors",
        "model.safetensors",
    ]
    assert sorted(path.name for path in twins) == ["model.bin", "pytorch_model.fp16.bin"]


def test_a_patch_fits_the_other_librarys_checkpoint(tmp_path, capsys):
    clip = tiny.clip()
    theirs = clip.with_weights({})
    theirs.weights = names.to_hf(clip.weights)
    save_file({n: w.clone() for n, w in clip.weights.items()}, tmp_path / "open.safetensors")
    save_file(theirs.weights, tmp_path / "hf.safetensors")
    q = "text_model.encoder.layers.1.self_attn.q_proj.weight"
    step = edit(theirs.weights, q, "visual_projection.weight")
    write_patch(tmp_path / "from_hf", step, theirs)
    other = edit(clip.weights, "transformer.resblocks.0.attn.in_proj_weight", "visual.proj")
    write_patch(tmp_path / "from_open", other, clip)
    want = names.to_full_names(names.to_hf(clip.weights))
    for patch, on, deltas in (
        ("from_hf", "open", step.deltas),
        ("from_open", "hf", names.to_hf(other.deltas)),
    ):
        file = f"{on}.safetensors"
        assert run("apply", tmp_path / patch, tmp_path / file, tmp_path / f"out_{on}") == 0
        found = names.to_full_names(read_weights(tmp_path / f"out_{on}" / file))
        assert all(torch.equal(found[n], want[n] + deltas[n] if n in deltas else want[n]) for n in want)
        assert run("apply", tmp_path / patch, tmp_path / f"out_{on}" / file, tmp_path / "twice") == 2
        assert "the patch is applied already" in capsys.readouterr().err
        assert run("remove", tmp_path / patch, tmp_path / f"out_{on}" / file, tmp_path / f"back_{on}") == 0
        assert (tmp_path / f"back_{on}" / file).read_bytes() == (tmp_path / file).read_bytes()
    save_file(names.to_hf(tiny.clip(1).weights), tmp_path / "else.safetensors")
    assert run("apply", tmp_path / "from_open", tmp_path / "else.safetensors", tmp_path / "out") == 2
    assert "wrong base: 4 of the 4 tensors to edit differ" in capsys.readouterr().err


def test_a_tower_under_another_name_prefix_is_edited(tmp_path):
    clip = tiny.clip()
    eye = {n: t for n, t in names.to_hf(clip.weights).items() if n.startswith("vision_model.")}
    llava = {f"vision_tower.{n}": t for n, t in eye.items()} | {
        "language_model.layers.0.mlp.up_proj.weight": torch.ones(2)
    }
    save_file(llava, tmp_path / "model.safetensors")
    step = edit(clip.weights, "visual.transformer.resblocks.1.attn.in_proj_weight")
    write_patch(tmp_path / "p", step, clip)
    assert run("apply", tmp_path / "p", tmp_path / "model.safetensors", tmp_path / "out") == 0
    found = load_file(tmp_path / "out/model.safetensors")
    deltas = names.convert_to_target(step.deltas, llava)
    assert len(deltas) == 3
    assert all(torch.equal(found[n], llava[n] + deltas[n] if n in deltas else llava[n]) for n in llava)


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
def test_weights_that_were_rounded_to_bf16_before_are_edited_and_restored(tmp_path, kept):
    """A model that was trained in bf16 and stored in another dtype: rounded more than once."""
    clip = tiny.clip()
    rounded = {n: t.bfloat16().to(kept) for n, t in names.to_hf(clip.weights).items()}
    save_file(rounded, tmp_path / "model.safetensors")
    step = edit(clip.weights, "visual.transformer.resblocks.1.attn.in_proj_weight")
    write_patch(tmp_path / "p", step, clip)
    assert run("apply", tmp_path / "p", tmp_path / "model.safetensors", tmp_path / "out") == 0
    found = load_file(tmp_path / "out/model.safetensors")
    for name, delta in names.convert_to_target(step.deltas, rounded).items():
        assert torch.equal(found[name], (rounded[name].float() + delta).to(kept))
    assert run("remove", tmp_path / "p", tmp_path / "out/model.safetensors", tmp_path / "back") == 0
    back = load_file(tmp_path / "back/model.safetensors")
    assert all(torch.equal(back[name], rounded[name]) for name in rounded)


def test_a_patch_of_a_pipeline_is_read_as_it_was_written(model, tmp_path):
    step = edit(base_weights(model, FUSED, CONV), FUSED, CONV)
    write_patch(tmp_path / "p", step, model.patch_base(step))
    patch = read_patch(tmp_path / "p")
    assert patch.base_fingerprint == model.patch_base(step).weights_fingerprint
    assert torch.equal(patch.base[CONV], model.weights("unet")["conv_in.weight"])
    assert set(patch.deltas) == {FUSED, CONV}


def test_muwa_loads_an_edited_folder_with_the_edited_clip(model, base, tmp_path):
    step = edit(model.clip.weights, FUSED)
    write_patch(tmp_path / "p", step, model.clip)
    assert run("apply", tmp_path / "p", base, tmp_path / "out") == 0
    clips = {"text_encoder": lambda: load().edited(step)}
    load_pipeline = partial(
        loading.load,
        str(tmp_path / "out"),
        config=None,
        steps=2,
        guidance=2.0,
        size=None,
        dtype="fp32",
        device="cpu",
    )
    again = load_pipeline(clips=clips)
    assert torch.equal(again.generate(PROMPTS), model.edited(step).generate(PROMPTS))
    taken_up = load_pipeline(clips={"text_encoder": load})  # its record says which tensors differ
    assert torch.equal(taken_up.generate(PROMPTS), again.generate(PROMPTS))
    (tmp_path / "out" / "muwa_patch.json").unlink()
    with pytest.raises(ValueError, match="is not the text_encoder of"):
        load_pipeline(clips={"text_encoder": load})
