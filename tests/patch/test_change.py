import json
import shutil

import pytest
import single_files
import tiny
import tiny_sd
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from muwa.library import load_clip as load
from muwa.patch import names
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.patch.change import read_record, uneditable
from muwa.types.edit import Edit, Move

FUSED, FC = "transformer.resblocks.2.attn.in_proj_weight", "transformer.resblocks.3.mlp.c_proj.weight"
SECOND = "text_encoder_2/transformer.resblocks.1.attn.in_proj_weight"
CONV, ATTENTION = (
    "unet/conv_in.weight",
    "unet/up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight",
)


def clips():
    return {
        "text_encoder": dict(load("miniature").weights),
        "text_encoder_2": dict(tiny_sd.second_clip().weights),
    }


def make_patch(path, model, *keys):
    """A patch of these tensors with random deltas."""
    weights = model.patch_base(Edit({key: torch.zeros(1) for key in keys}, ())).weights
    generator = torch.Generator().manual_seed(0)
    deltas = {key: 0.3 * torch.randn(weights[key].shape, generator=generator) for key in keys}
    step = Edit(deltas, (Move("Ada Fox", "text", keys[0], 1.0, norm(deltas[keys[0]], weights[keys[0]])),))
    write_patch(path, step, model.patch_base(step), {"task": "celeba"})
    return step


def norm(delta, weight):
    return (delta.norm() / weight.float().norm()).item()


def run(command, patch, on, out, *more):
    return main([command, str(patch), str(on), "--out", str(out), *more])


def weights_of(pipeline):
    return {
        f"{name}/{key}": tensor
        for name in ("text_encoder", "text_encoder_2", "unet", "vae")
        if getattr(pipeline, name, None) is not None
        for key, tensor in getattr(pipeline, name).named_parameters()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("layout", "keys"), [
    ("sd1", (FUSED, FC, CONV, ATTENTION)),
    ("sd2", (FUSED, FC, CONV, ATTENTION)),
    ("xl", (FUSED, SECOND, "text_encoder_2/text_projection", ATTENTION)),
])  # fmt: skip
def test_a_single_file_is_edited_as_diffusers_reads_it_and_restored(layout, keys, dtype, tmp_path, capsys):
    xl = layout == "xl"
    model = tiny_sd.xl() if xl else tiny_sd.diffusion()
    make = tiny_sd.xl_pipeline if xl else tiny_sd.pipeline
    half = make().to(dtype)
    path = single_files.write(tmp_path / "one.safetensors", half, layout, clips())
    folder = single_files.configs(half, tmp_path / "configs")
    step = make_patch(tmp_path / "p", model, *keys)
    assert run("apply", tmp_path / "p", path, tmp_path / "out") == 0
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    given = {} if xl else {"safety_checker": None, "requires_safety_checker": False}
    edited = tmp_path / "out/one.safetensors"
    found = weights_of(
        kind.from_single_file(str(edited), config=str(folder), local_files_only=True, dtype=dtype, **given)
    )
    before = weights_of(half)
    deltas = {
        f"{component}/{name}": delta
        for component, own in names.by_component(step.deltas).items()
        for name, delta in (
            own
            if component == "unet"
            else names.convert_to_target(own, getattr(half, component).state_dict())
        ).items()
    }
    assert set(deltas) < set(before)
    for key, tensor in before.items():
        want = (tensor.float() + deltas[key]).to(dtype) if key in deltas else tensor
        assert torch.equal(found[key], want), key
    assert run("apply", tmp_path / "p", edited, tmp_path / "twice") == 2
    assert "the patch is applied already" in capsys.readouterr().err
    assert run("remove", tmp_path / "p", tmp_path / "out", tmp_path / "back") == 0
    assert (tmp_path / "back/one.safetensors").read_bytes() == path.read_bytes()
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["one.safetensors"]


def test_comfyuis_names_and_its_loose_text_encoder_are_edited(tmp_path):
    model = tiny_sd.diffusion()
    stored = single_files.tensors(model.pipeline, "comfy", clips())
    save_file(stored, tmp_path / "all.safetensors")
    prefix = "text_encoders.clip_l.transformer."
    loose = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    save_file(loose, tmp_path / "clip_l.safetensors")
    step = make_patch(tmp_path / "p", model, FUSED)
    want = names.convert_to_target(step.deltas, loose)
    for name, start, base in (("all", prefix, stored), ("clip_l", "", loose)):
        assert run("apply", tmp_path / "p", tmp_path / f"{name}.safetensors", tmp_path / name) == 0
        found = load_file(tmp_path / name / f"{name}.safetensors")
        differ = {k for k in base if not torch.equal(found[k], base[k])}
        assert differ == {start + k for k in want}
        assert all(torch.equal(found[start + k], base[start + k] + delta) for k, delta in want.items())


def test_averaged_weights_are_edited_too_or_named(tmp_path, capsys):
    model = tiny_sd.diffusion()
    stored = single_files.tensors(model.pipeline, "sd1", clips())
    flat = single_files.averaged(stored)
    make_patch(tmp_path / "p", model, CONV)
    at = "model_ema.diffusion_modelinput_blocks00weight"
    save_file(stored | flat, tmp_path / "same.safetensors")
    assert run("apply", tmp_path / "p", tmp_path / "same.safetensors", tmp_path / "a") == 0
    found = load_file(tmp_path / "a/same.safetensors")
    assert torch.equal(found[at], found["model.diffusion_model.input_blocks.0.0.weight"])
    assert not torch.equal(found[at], flat[at])
    assert "UNEDITED" not in capsys.readouterr().out
    save_file(stored | flat | {at: flat[at] + 1}, tmp_path / "other.safetensors")
    assert run("apply", tmp_path / "p", tmp_path / "other.safetensors", tmp_path / "b") == 0
    assert (
        "UNEDITED: other.safetensors (its averaged weights (model_ema) are others" in capsys.readouterr().out
    )
    assert list(read_record(tmp_path / "b")[0]["unedited"]) == ["other.safetensors"]
    assert run("remove", tmp_path / "p", tmp_path / "b", tmp_path / "c") == 0
    assert (tmp_path / "c/other.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_a_file_that_lacks_a_component_is_refused(tmp_path, capsys):
    path = single_files.write(tmp_path / "one.safetensors", tiny_sd.pipeline(), "sd1", clips())
    make_patch(tmp_path / "p", tiny_sd.xl(), FUSED, SECOND)
    assert run("apply", tmp_path / "p", path, tmp_path / "out") == 2
    assert "one.safetensors: holds no text_encoder_2, which the patch edits" in capsys.readouterr().err
    other = single_files.tensors(tiny_sd.pipeline(), "sd2", clips())
    other["cond_stage_model.model." + FUSED] += 1
    save_file(other, tmp_path / "other.safetensors")
    make_patch(tmp_path / "q", tiny_sd.diffusion(), FUSED)
    assert run("apply", tmp_path / "q", tmp_path / "other.safetensors", tmp_path / "out") == 2
    assert "wrong base: 1 of the 1 tensors to edit differ in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_ckpt_says_why_not_and_how_to_convert_it(tmp_path, capsys):
    stored = single_files.tensors(tiny_sd.pipeline(), "sd1", clips())
    torch.save({"state_dict": stored, "epoch": 3}, tmp_path / "FILE.ckpt")
    make_patch(tmp_path / "p", tiny_sd.diffusion(), FUSED)
    assert run("apply", tmp_path / "p", tmp_path / "FILE.ckpt", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "FILE.ckpt: a .ckpt file is a pickle, which can run code when it is read" in said
    code = said.partition('python -c "')[2].partition('"')[0]
    here = code.replace("FILE.", f"{tmp_path}/FILE.")
    exec(here, {})  # the command that the message gives
    assert run("apply", tmp_path / "p", tmp_path / "FILE.safetensors", tmp_path / "out") == 0


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


@pytest.fixture
def sd(tmp_path, model):
    """A pipeline's folder as the official ones are: the same weights in many files."""
    folder = tmp_path / "sd"
    model.pipeline.save_pretrained(folder)
    single_files.write(folder / "v1-5-pruned-emaonly.safetensors", model.pipeline, "sd1", clips())
    stored = single_files.tensors(model.pipeline, "sd1", clips())
    torch.save({"state_dict": stored}, folder / "v1-5-pruned-emaonly.ckpt")
    text = load_file(folder / "text_encoder/model.safetensors")
    save_file({k: v.half() for k, v in text.items()}, folder / "text_encoder/model.fp16.safetensors")
    torch.save(text, folder / "text_encoder/pytorch_model.bin")
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    save_file(
        {k: v + 1 for k, v in unet.items()}, folder / "unet/diffusion_pytorch_model.non_ema.safetensors"
    )
    for name in (
        "text_encoder/flax_model.msgpack",
        "unet/openvino.onnx",
        "vae/flax_model.msgpack",
        "q4.gguf",
    ):
        (folder / name).write_bytes(bytes(200_000))
    (folder / "onnx/text_encoder").mkdir(parents=True)
    (folder / "onnx/text_encoder/model.onnx").write_bytes(bytes(200_000))
    (folder / ".git/lfs").mkdir(parents=True)
    (folder / ".git/lfs/1234").write_bytes(bytes(10))
    (folder / "README.md").write_text("words")
    return folder


def relative(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_nothing_in_a_pipelines_folder_brings_the_forgotten_back_unsaid(sd, model, tmp_path, capsys):
    step = make_patch(tmp_path / "p", model, FUSED)
    assert run("apply", tmp_path / "p", sd, tmp_path / "out") == 0
    said = capsys.readouterr().out
    left = {
        "text_encoder/pytorch_model.bin": "pickled weights with the original tensors",
        "text_encoder/flax_model.msgpack": "Flax weights",
        "onnx/text_encoder/model.onnx": "an ONNX model",
        "q4.gguf": "GGUF weights",
        "v1-5-pruned-emaonly.ckpt": "pickled weights with the original tensors",
        ".git": "the repository's history, which holds the original weights",
    }
    lines = [line.strip() for line in said.splitlines()[1:]]
    assert sorted(line for line in lines if not line.startswith(("check it: ", "undo it: "))) == [
        f"left out: {k} ({v})" for k, v in sorted(left.items())
    ]
    assert relative(sd) - relative(tmp_path / "out") == {*left, ".git/lfs/1234"} - {".git"}
    assert relative(tmp_path / "out") - relative(sd) == {"muwa_patch.json", "README.base.md"}
    (record,) = read_record(tmp_path / "out")
    assert (record["left_out"], record["unedited"]) == (left, {})
    assert uneditable(tmp_path / "p", sd) == left
    edited = [
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "v1-5-pruned-emaonly.safetensors",
    ]
    assert record["edited"] == edited
    assert record["moves"][0]["concept"] == "Ada Fox"
    assert record["story"]["task"] == "celeba"
    loose = load_file(tmp_path / "out/v1-5-pruned-emaonly.safetensors")
    folder = load_file(tmp_path / "out/text_encoder/model.safetensors")
    for name, delta in names.convert_to_target(step.deltas, folder).items():
        at = f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"
        assert torch.equal(loose[at], folder[name])
        base = load_file(sd / "text_encoder/model.safetensors")[name]
        assert torch.equal(folder[name], base + delta)
    assert run("remove", tmp_path / "p", tmp_path / "out", tmp_path / "back") == 0
    assert all(
        (tmp_path / "back" / name).read_bytes() == (sd / name).read_bytes()
        for name in relative(tmp_path / "back")
    )
    assert "muwa_patch.json" not in relative(tmp_path / "back")


def test_variants_with_other_weights_are_left_out_or_kept_on_request(sd, model, tmp_path, capsys):
    make_patch(tmp_path / "p", model, CONV)
    assert run("apply", tmp_path / "p", sd, tmp_path / "out") == 0
    why = "holds other weights of unet than the patch was made for"
    other = "unet/diffusion_pytorch_model.non_ema.safetensors"
    assert f"left out: {other} ({why})" in capsys.readouterr().out
    assert other not in relative(tmp_path / "out")
    assert "text_encoder/pytorch_model.bin" in relative(tmp_path / "out")  # not edited, so no danger
    assert run("apply", tmp_path / "p", sd, tmp_path / "kept", "--keep-unedited") == 0
    assert f"UNEDITED: {other} ({why})" in capsys.readouterr().out
    assert relative(tmp_path / "kept") == relative(sd) | {"muwa_patch.json", "README.base.md"}
    assert read_record(tmp_path / "kept")[0]["unedited"][other] == why
    assert run("remove", tmp_path / "p", tmp_path / "kept", tmp_path / "back") == 0
    assert all((tmp_path / "back" / name).read_bytes() == (sd / name).read_bytes() for name in relative(sd))


def test_the_plain_variant_decides_whether_the_base_is_right(sd, model, tmp_path, capsys):
    make_patch(tmp_path / "p", model, CONV)
    shutil.copy(
        sd / "unet/diffusion_pytorch_model.non_ema.safetensors",
        sd / "unet/diffusion_pytorch_model.safetensors",
    )
    assert run("apply", tmp_path / "p", sd, tmp_path / "out") == 2
    assert (
        "wrong base: 1 of the 1 tensors to edit differ in unet/diffusion_pytorch_model.saf"
        in capsys.readouterr().err
    )


def clip_folder(folder, clip):
    """As laion's repositories: open_clip's and Hugging Face's names, each as safetensors and pickled, and more."""
    (folder / "onnx").mkdir(parents=True)
    theirs = {k: v.contiguous() for k, v in names.to_hf(clip.weights).items()}
    save_file(dict(clip.weights), folder / "open_clip_model.safetensors")
    save_file(theirs, folder / "model.safetensors", {"format": "pt"})
    save_file({k: v.half() for k, v in theirs.items()}, folder / "model.fp16.safetensors")
    torch.save(dict(clip.weights), folder / "open_clip_pytorch_model.bin")
    torch.save(theirs, folder / "pytorch_model.bin")
    torch.save({"step": torch.ones(9000)}, folder / "optimizer.pt")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    for name in ("tf_model.h5", "onnx/model.onnx", "rust_model.ot"):
        (folder / name).write_bytes(bytes(100_000))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("key", ["visual.proj", "transformer.resblocks.1.attn.in_proj_weight"])
def test_a_clips_folder_has_every_safetensors_file_edited(key, tmp_path, capsys):
    clip = tiny.clip()
    folder = clip_folder(tmp_path / "base", clip)
    step = make_patch(tmp_path / "p", type("One", (), {"patch_base": staticmethod(lambda edit: clip)}), key)
    assert run("apply", tmp_path / "p", folder, tmp_path / "out") == 0
    said = capsys.readouterr().out
    gone = {
        "open_clip_pytorch_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
        "onnx/model.onnx", "rust_model.ot",
    }  # fmt: skip
    assert relative(folder) - relative(tmp_path / "out") == gone
    assert all(f"left out: {name} (" in said for name in gone)
    assert torch.equal(
        load_file(tmp_path / "out/open_clip_model.safetensors")[key], clip.weights[key] + step.deltas[key]
    )
    theirs = names.to_hf({key: clip.weights[key]})
    for name, delta in names.to_hf(step.deltas).items():
        assert torch.equal(load_file(tmp_path / "out/model.safetensors")[name], theirs[name] + delta)
        half = load_file(tmp_path / "out/model.fp16.safetensors")[name]
        assert torch.equal(half, (theirs[name].half().float() + delta).half())
    assert run("remove", tmp_path / "p", tmp_path / "out", tmp_path / "back") == 0
    assert relative(tmp_path / "back") == relative(folder) - gone
    assert all(
        (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
        for name in relative(folder) - gone
    )


def test_a_pickled_file_without_a_safetensors_twin_becomes_one(tmp_path):
    clip = tiny.clip()
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(dict(clip.weights), folder / "open_clip_model.safetensors")
    torch.save(names.to_hf(clip.weights), folder / "pytorch_model.bin")
    step = make_patch(
        tmp_path / "p", type("One", (), {"patch_base": staticmethod(lambda edit: clip)}), "visual.proj"
    )
    assert run("apply", tmp_path / "p", folder, tmp_path / "out") == 0
    assert relative(tmp_path / "out") == {
        "open_clip_model.safetensors",
        "model.safetensors",
        "muwa_patch.json",
        "README.md",
    }
    found = load_file(tmp_path / "out/model.safetensors")["visual_projection.weight"]
    assert torch.equal(found, (clip.weights["visual.proj"] + step.deltas["visual.proj"]).T)
    assert read_record(tmp_path / "out")[0]["edited"] == ["model.safetensors", "open_clip_model.safetensors"]


def test_a_pickle_that_runs_code_is_left_out_unread(tmp_path, capsys):
    class Runs:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    clip = tiny.clip()
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(dict(clip.weights), folder / "open_clip_model.safetensors")
    torch.save({"a": Runs(), "b": torch.ones(9000)}, folder / "old.ckpt")
    make_patch(
        tmp_path / "p", type("One", (), {"patch_base": staticmethod(lambda edit: clip)}), "visual.proj"
    )
    assert run("apply", tmp_path / "p", folder, tmp_path / "out") == 0
    assert (
        "left out: old.ckpt (pickled, and cannot be read without running its code)" in capsys.readouterr().out
    )


def test_the_record_keeps_every_patch_on_the_folder(model, tmp_path):
    model.pipeline.save_pretrained(tmp_path / "sd")
    make_patch(tmp_path / "p", model, FUSED)
    make_patch(tmp_path / "q", model, CONV)
    assert run("apply", tmp_path / "p", tmp_path / "sd", tmp_path / "one") == 0
    assert run("apply", tmp_path / "q", tmp_path / "one", tmp_path / "two") == 0
    assert [one["moves"][0]["layer"] for one in read_record(tmp_path / "two")] == [FUSED, CONV]
    assert run("remove", tmp_path / "p", tmp_path / "two", tmp_path / "three") == 0
    assert [one["moves"][0]["layer"] for one in read_record(tmp_path / "three")] == [CONV]
    (tmp_path / "two/muwa_patch.json").write_text("{")
    assert run("remove", tmp_path / "p", tmp_path / "two", tmp_path / "four") == 2
    with pytest.raises(ValueError, match="muwa_patch.json: not a record of muwa's patches"):
        read_record(tmp_path / "two")
    assert json.loads((tmp_path / "three/muwa_patch.json").read_text())["format"] == "muwa.patch.record/1"
