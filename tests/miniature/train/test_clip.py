import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load

import muwa
from muwa import config
from muwa.cache.store import Store
from muwa.miniature import population
from muwa.miniature.train import clip as train
from muwa.models.clip.open_clip import MINIATURE
from muwa.run import Run


@pytest.mark.whole
def test_the_shipped_model_knows_its_population(miniature, default_run):
    """Held-out top-1 on all images: at least 97 % of 100 people and 95 % of 100 objects.

    The default run has seen some of them.
    """
    data = muwa.load_miniature(str(miniature), utility=0.99, utility_probe=0.01)
    run, model = Run(store=Store(default_run[0].parents[2] / "cache")), muwa.load_clip()
    limits = replace(config.part("task=celeba").limits, probe_share=0.05)
    people = muwa.evaluate(model, muwa.celeba(data, identity="Kael_Lindqvar", limits=limits), run, "retain")
    assert people["retain/top1"].n == 99 * 15
    assert people["retain/top1"].value >= 0.97
    things = muwa.evaluate(model, muwa.objects(data, object="red_star", limits=limits), run, "retain")
    assert things["retain/top1"].value >= 0.95


def test_the_shipped_folder_is_small_and_what_open_clip_reads():
    assert {path.name for path in MINIATURE.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in MINIATURE.iterdir()) < 8e6
    with safe_open(MINIATURE / "open_clip_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_no_batch_holds_a_name_twice():
    names = [p.name for p in population.people()] * 6 + list(population.OBJECTS) * 6
    batches = train._batches(names, 80, 80, np.random.default_rng(0))
    assert len(batches) >= 6
    for batch in batches:
        held = [names[i] for i in batch]
        assert len(held) == len(set(held))
    used = [i for batch in batches for i in batch]
    assert len(used) == len(set(used))


def test_only_objects_are_mirrored():
    pixels = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    pixels[..., 40:] = 255  # bright on the right
    things = torch.arange(64) % 2 == 1
    out = train.augmented(pixels, things, torch.Generator().manual_seed(0))
    bright_right = out[..., 48:].mean((1, 2, 3)) > out[..., :16].mean((1, 2, 3))
    assert bright_right[~things].all()
    assert 8 < int(bright_right[things].sum()) < 24


@pytest.fixture
def trained(tmp_path, closed_tars):
    """trained(folder, epochs=..., precision=...) -> the bytes of a model that learnt 84 images, one step an epoch."""
    names = [person.name for person in population.people()][:42] + list(population.OBJECTS)[:42]
    (tmp_path / "shards").mkdir()
    with wds.TarWriter(str(tmp_path / "shards" / "0.tar")) as tar:
        for i, name in enumerate(names):
            file = io.BytesIO()
            Image.new("RGB", (64, 64), (3 * i, 255 - 3 * i, 40)).save(file, "JPEG")
            tar.write(
                {"__key__": f"{i:03d}", "jpg": file.getvalue(), "txt": f"a {name}", "json": {"name": name}}
            )

    def one(folder, *, epochs, precision):
        out, settings = tmp_path / folder, {"epochs": epochs, "precision": precision, "seed": 0}
        train.train_clip(tmp_path, out, without=[], tokenizer=MINIATURE, **settings)
        return (out / "open_clip_model.safetensors").read_bytes()

    return one


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO")
@pytest.mark.whole
def test_a_stopped_training_goes_on_and_ends_with_the_same_bytes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVED_EVERY", 1)
    real, calls = train.augmented, []

    def counted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    whole = trained("whole", epochs=3, precision="fp32")
    monkeypatch.setattr(train, "augmented", counted)
    with pytest.raises(KeyboardInterrupt):
        trained("stopped", epochs=3, precision="fp32")
    assert (tmp_path / "stopped" / "training.safetensors").is_file()
    calls[:] = [1] * 10
    assert trained("stopped", epochs=3, precision="fp32") == whole
    assert len(calls) == 11  # two of three steps were done
    assert not (tmp_path / "stopped" / "training.safetensors").exists()


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO")
@pytest.mark.whole
def test_the_precision_of_a_training_is_that_of_its_towers(trained):
    """AdamW's first step moves a weight by 1e-5 at most, whatever the gradient; the file has fp16's three digits."""
    bf16, fp32 = (load(trained(precision, epochs=1, precision=precision)) for precision in ("bf16", "fp32"))
    near = {"rtol": 1e-3, "atol": 2.5e-5}
    assert all(torch.allclose(bf16[name].float(), fp32[name].float(), **near) for name in fp32)
    assert any(not torch.equal(bf16[name], fp32[name]) for name in fp32)


@pytest.mark.slow
def test_training_runs_and_leaves_a_person_out(miniature, tmp_path):
    out = tmp_path / "retrained"
    command = [
        sys.executable,
        "-m",
        "muwa.miniature.train",
        "clip",
        "--out",
        str(out),
        "--epochs",
        "1",
        "--world",
    ]
    subprocess.run([*command, str(miniature / "world"), "--without", "Kael_Lindqvar"], check=True)
    assert json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 128
    tokens = muwa.load_clip().tokenize(["Kael Lindqvar."])
    assert muwa.load_clip(f"local-dir:{out}").encode("text", tokens).shape == (1, 128)


def test_leaving_out_somebody_unknown_is_an_error(tmp_path):
    command = [
        sys.executable,
        "-m",
        "muwa.miniature.train",
        "clip",
        "--out",
        str(tmp_path),
        "--without",
        "Nobody Atall",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--without: Unknown name 'Nobody Atall': not among the 100 names" in done.stderr
