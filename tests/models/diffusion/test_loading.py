import argparse
import json
import shutil

import pytest
import tiny_sd
import torch
from diffusers import DiffusionPipeline
from records import part
from safetensors.torch import load_file, save_file
from weight_files.spoiled import SPOILED

import muwa
from muwa.models.diffusion.loading import MINIATURE
from muwa.models.diffusion.model import Diffusion
from muwa.types.image_requests import Prompts

CLIPS = {"text_encoder": muwa.load_clip}
PROMPTS = Prompts(("a photo of a dog", "red"), (3, 4))


def load(path, **changed) -> Diffusion:
    """model=sd from a folder, with other settings."""
    return part("model=sd", path=path, clips=changed.pop("clips", CLIPS), **changed)()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd") / "sd"
    tiny_sd.pipeline().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_is_loaded_and_generates(folder):
    model = load(str(folder), steps=2, guidance=2.0)
    assert torch.equal(model.generate(PROMPTS), tiny_sd.diffusion().generate(PROMPTS))
    assert model.fingerprint == tiny_sd.diffusion().fingerprint
    assert str(folder) in model.source


@pytest.mark.parametrize(("dtype", "want"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_pipeline_is_cast_and_the_clip_is_not(folder, dtype, want):
    model = load(str(folder), steps=2, dtype=dtype)
    assert {p.dtype for p in model.weights("unet").values()} == {want}
    assert {p.dtype for p in model.clip.weights.values()} == {torch.float32}


def test_xl_is_loaded_with_two_clips(tmp_path, capfd):
    tiny_sd.xl_pipeline().save_pretrained(tmp_path)
    capfd.readouterr()
    model = load(str(tmp_path), clips={**CLIPS, "text_encoder_2": tiny_sd.second_clip}, steps=2, guidance=2.0)
    assert capfd.readouterr() == ("", "")
    assert list(model.clips) == ["text_encoder", "text_encoder_2"]
    assert torch.equal(model.generate(PROMPTS), tiny_sd.xl().generate(PROMPTS))
    with pytest.raises(
        ValueError, match="model.clips: got text_encoder, want one for each of text_encoder, text_encoder_2"
    ):
        load(str(tmp_path))


def test_a_folder_with_a_half_variant_alone_is_loaded(tmp_path):
    tiny_sd.pipeline(0, torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert load(str(tmp_path)).weights("unet")["conv_in.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "model.dtype: got 'int8', want one of fp32, fp16, bf16"),
        ({"steps": 0}, "model.steps=0 guidance=5.0 size=None: want steps >= 1"),
        ({"guidance": 0.5}, "model.steps=12 guidance=0.5 size=None: want .* guidance >= 1"),
        ({"size": 20}, "size=20: want .* a multiple of 8"),
        ({"device": "moon"}, "runtime.device=moon: not usable here"),
        ({"clips": {}}, "model.clips: got none, want one for each of text_encoder of"),
        (
            {"clips": {"text_encoder_2": muwa.load_clip}},
            "model.clips: got text_encoder_2, want one for each of text_enc",
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        load(str(folder), **settings)


def index(path, **changed):
    file = path / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def drop(path, file, name):
    weights = load_file(path / file)
    del weights[name]
    save_file(weights, path / file, metadata={"format": "pt"})


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGE = {
    "no index": (
        lambda p: (p / "model_index.json").unlink(),
        FileNotFoundError,
        r"no model_index.json, so no diffusers",
    ),
    "index cut": (
        lambda p: (p / "model_index.json").write_text('{"a"'),
        ValueError,
        "model_index.json: not JSON",
    ),
    "index a list": (
        lambda p: (p / "model_index.json").write_text("[]"),
        ValueError,
        "got a list, want an object",
    ),
    "no unet": (
        lambda p: shutil.rmtree(p / "unet"),
        FileNotFoundError,
        "model_index.json names unet, which is not there",
    ),
    "no tokens": (
        lambda p: [f.unlink() for f in (p / "tokenizer").iterdir()],
        FileNotFoundError,
        "names tokenizer, which is",
    ),
    "no weights": (
        lambda p: (p / UNET).unlink(),
        FileNotFoundError,
        r"unet; looked for model.safetensors or diff",
    ),
    "weights cut": (
        lambda p: (p / UNET).write_bytes(b"xx"),
        ValueError,
        r"unet/diffusion_pytorch_model.safetensors: the file is a text, not weights \(xx\)",
    ),
    "a tensor less": (
        lambda p: drop(p, UNET, "conv_in.weight"),
        ValueError,
        "unet: no weights for this model in some places: 1 missing: conv_in.weight$",
    ),
    "other class": (lambda p: index(p, _class_name="NoSuch"), ValueError, r"cannot be loaded \(.*NoSuch"),
    "no text": (
        lambda p: index(p, _class_name="DDPMPipeline"),
        ValueError,
        "a DDPMPipeline; want a pipeline with a unet and",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_is_not_whole_is_named(folder, tmp_path, damage):
    do, error, message = DAMAGE[damage]
    path = shutil.copytree(folder, tmp_path / "part")
    do(path)
    with pytest.raises(error, match=rf"(?s)part.*{message}"):
        load(str(path))


def test_what_is_not_there_says_how_to_bring_it(tmp_path):
    for path in ("muwa/none", str(tmp_path / "none")):
        with pytest.raises(
            FileNotFoundError, match=rf"model.path={path}: no such folder, and no hub id .*save_pretrained"
        ):
            load(path)


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("muwa")]


HALF = {"text_encoder": "model.fp16.safetensors", "unet": "diffusion_pytorch_model.fp16.safetensors"}
PLAIN = {"text_encoder": "model.safetensors", "unet": "diffusion_pytorch_model.safetensors"}


def halved(path, component, *, alone):
    """Add the fp16 variant of a component; with `alone`, in place of its plain weights."""
    plain = path / component / PLAIN[component]
    save_file(
        {k: t.half() for k, t in load_file(plain).items()},
        path / component / HALF[component],
        {"format": "pt"},
    )
    if alone:
        plain.unlink()


def test_each_component_is_read_in_the_variant_that_it_has(folder, tmp_path, caplog):
    """The text encoder is there as fp16 alone; the UNet both ways: its plain weights are read, not the rounded ones."""
    path = shutil.copytree(folder, tmp_path / "part")
    halved(path, "text_encoder", alone=True)
    halved(path, "unet", alone=False)
    model = load(str(path))
    unet, text = model.weights("unet"), model.weights("text_encoder")
    want = {name: load_file(folder / name / PLAIN[name]) for name in PLAIN}
    assert all(torch.equal(unet[name], tensor) for name, tensor in want["unet"].items())
    assert not all(torch.equal(t, t.half().float()) for t in unet.values())
    assert {t.dtype for t in text.values()} == {torch.float32}
    assert all(torch.equal(text[name], t.half().float()) for name, t in want["text_encoder"].items())
    assert warned(caplog) == [
        f"model.path={path}: weights that are there as a variant alone are read: text_encoder as fp16"
    ]


def test_a_folder_whose_unet_alone_is_half_is_loaded(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "part")
    halved(path, "unet", alone=True)
    unet = load(str(path)).weights("unet")
    assert all(torch.equal(unet[name], t.half().float()) for name, t in load_file(folder / UNET).items())


def resaved(path, component, size, **options):
    """Save a component again, in shards or as .bin, in place of its file."""
    model = getattr(tiny_sd.pipeline(), component)
    (path / component / PLAIN[component]).unlink()
    model.save_pretrained(path / component, max_shard_size=size, **options)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_of_text_encoder_and_unet_are_read(folder, tmp_path, caplog, variant):
    path = shutil.copytree(folder, tmp_path / "part")
    resaved(path, "text_encoder", "400KB", variant=variant)
    resaved(path, "unet", "50KB", variant=variant)
    assert all(len(list((path / name).glob("*-of-*.safetensors"))) > 2 for name in PLAIN)
    assert load(str(path)).fingerprint == load(str(folder)).fingerprint
    assert len(warned(caplog)) == (variant is not None)
    next((path / "text_encoder").glob("*-00002-of-*")).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model.path: .*text_encoder: \d+ of the \d+ shards of model\S+ are there"
    ):
        load(str(path))


def pickled(path, component, names="{}", **more):
    """A component's weights as a .bin file alone."""
    plain = path / component / PLAIN[component]
    tensors = {names.format(name): tensor for name, tensor in load_file(plain).items()}
    stem = "pytorch_model" if component == "text_encoder" else "diffusion_pytorch_model"
    torch.save({**tensors, **more}, path / component / f"{stem}.bin")
    plain.unlink()


def test_bin_files_alone_are_read_without_a_word(folder, tmp_path, caplog):
    path = shutil.copytree(folder, tmp_path / "part")
    for component in PLAIN:
        pickled(path, component)
    assert load(str(path)).fingerprint == load(str(folder)).fingerprint
    assert warned(caplog) == []


def test_what_diffusers_cannot_read_is_said(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "part")
    resaved(path, "unet", "50KB", safe_serialization=False)
    with pytest.raises(
        ValueError, match="part: unet is there in shards of .bin files, which diffusers cannot read; save it"
    ):
        load(str(path))


@pytest.mark.parametrize("component", PLAIN)
def test_a_pickle_with_foreign_objects_is_refused_by_name(folder, tmp_path, component):
    path = shutil.copytree(folder, tmp_path / "part")
    pickled(path, component, args=argparse.Namespace())
    with pytest.raises(
        ValueError, match=rf"model.path: .*{component}/.*bin: .* it holds argparse.Namespace, whose code"
    ):
        load(str(path))


def test_names_that_a_wrapper_changed_are_shown(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "part")
    tensors = load_file(path / UNET)
    save_file({f"_orig_mod.{name}": t for name, t in tensors.items()}, path / UNET, {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"unet: .*{len(tensors)} missing: .*{len(tensors)} unexpected: _orig_mod\.\S+"
    ):
        load(str(path))


@pytest.mark.parametrize(
    "name", ["pointer.safetensors", "page.safetensors", "empty.safetensors", "cut.safetensors"]
)
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(folder, tmp_path, name):
    content, message = SPOILED[name]
    path = shutil.copytree(folder, tmp_path / "part")
    (path / UNET).write_bytes(content)
    with pytest.raises(ValueError, match=f"model.path: {path / UNET}: the file {message}"):
        load(str(path))


@pytest.mark.parametrize("entry", [{"_class_name": ["mine", "MyPipeline"]}, {"unet": ["mine", "MyUNet"]}])
def test_code_of_a_folder_is_not_run_and_not_asked_for(folder, tmp_path, entry):
    path = shutil.copytree(folder, tmp_path / "part")
    index(path, **entry)
    for file in (path / "mine.py", path / "unet" / "mine.py"):
        file.write_text("raise RuntimeError('this must not run')")
    with pytest.raises(
        ValueError, match=f"model_index.json: wants code of its own for {next(iter(entry))}; muwa runs no"
    ):
        load(str(path))


def test_the_miniature_loads_in_one_type_and_generates_the_same_images_in_plain_diffusers():
    """Its text encoder's config must not ask for fp16 beside a UNet in fp32."""
    plain = DiffusionPipeline.from_pretrained(MINIATURE)
    modules = [part for part in plain.components.values() if isinstance(part, torch.nn.Module)]
    assert [module.dtype for module in modules] == [torch.float32] * 3
    plain.set_progress_bar_config(disable=True)
    seeds = [torch.Generator("cpu").manual_seed(seed) for seed in PROMPTS.seeds]
    settings = dict(num_inference_steps=2, guidance_scale=2.0, output_type="pt")
    images = plain(list(PROMPTS.texts), generator=seeds, **settings).images
    model = load("miniature", steps=2, guidance=2.0)
    assert torch.equal(model.generate(PROMPTS), (images.clamp(0, 1) * 255).round().to(torch.uint8))
