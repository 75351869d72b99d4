"""The hub's own client against a server on this machine; each command in its own process, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import tiny
import torch
from huggingface_hub import ModelCard

from muwa.patch import hub
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.types.edit import Edit, Move

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    with hub_server.running() as running:
        yield running


@pytest.fixture
def patch(tmp_path):
    """A run's folder: the patch and its results."""
    clip = tiny.clip()
    move = Move("Ada Fox", "vision", "visual.proj", 1.5, 0.1)
    edit = Edit({"visual.proj": torch.ones_like(clip.weights["visual.proj"])}, (move,))
    story = {"model": "open_clip ViT-B-32", "task": "identity", "method": "muwa.methods.slug"}
    write_patch(tmp_path / "run/patch.safetensors", edit, clip, story)
    metric = {"n": 40, "low": 0.0, "high": 0.0881, "better": "lower"}
    results = {
        "edit": {"moves": [{"concept": "Ada Fox", "tower": "vision", "layer": "visual.proj", "step": 1.5}]},
        "metrics": {
            "before": {"forget/top1": {**metric, "value": 0.975}},
            "after": {"forget/top1": {**metric, "value": 0.025}},
        },
    }
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    return tmp_path / "run/patch.safetensors"


def command(server, home, *words, token=hub_server.TOKEN, url=None, **environment):
    """(exit code, stdout, stderr) of one command in a fresh process."""
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": url or server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {}), **environment,
    }  # fmt: skip
    line = [sys.executable, "-m", "muwa.patch", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert hub_server.TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def here(server, tmp_path, monkeypatch):
    """The client of this process talks to the server, with a token."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for module in ("constants", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)


@pytest.mark.usefixtures("here")
@pytest.mark.whole
def test_a_patch_goes_to_the_hub_and_comes_back(server, patch, tmp_path):
    server.repos["org/base"] = {"README.md": b"---\nlicense: openrail++\n---\n# base"}
    code, out, err = command(
        server, tmp_path / "hf", "push", patch, "org/forgot", "--base-model", "org/base", "--private"
    )
    assert (code, err) == (0, "")
    assert out == f"{patch}: pushed to {server.url}/org/forgot/commit/{hub_server.COMMIT}\n"
    assert set(server.repos["org/forgot"]) >= {"patch.safetensors", "README.md"}
    assert server.repos["org/forgot"]["patch.safetensors"] == patch.read_bytes()
    assert "org/forgot" in server.private
    assert any("lfs" in request for request in server.requests)
    card = ModelCard(server.repos["org/forgot"]["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.library_name) == (
        "org/base",
        "openrail++",
        "muwa",
    )
    assert "machine-unlearning" in card.data.tags
    for text in ("# Unlearning card: Ada Fox", "| `forget/top1` |  | 97.5 % (0.0 to 8.8) | 2.5 % (0.0 to 8.8) |", "`visual.proj`",
                 "patch pull org/forgot", "apply patch.safetensors org/base", "remove patch.safetensors"):  # fmt: skip
        assert text in card.text
    code, out, err = command(
        server, tmp_path / "hf", "pull", "org/forgot", "--out", tmp_path / "again.safetensors"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "again.safetensors").read_bytes() == patch.read_bytes()


@pytest.mark.usefixtures("here")
def test_what_the_hub_refuses_is_said_in_one_line(server, patch, tmp_path, capsys, monkeypatch):
    server.repos["org/other"] = {"README.md": b"no metadata"}
    server.repos["org/wrong"] = {"patch.safetensors": b"hello"}
    out = tmp_path / "x"

    def refused(*words):
        assert main([*map(str, words)]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1), said
        assert hub_server.TOKEN not in said.err
        return said.err

    pulled = ("--out", out)
    assert "pull from org/none: there is no such repository" in refused("pull", "org/none", *pulled)
    assert "pull from org/other: the repository holds no patch.saf" in refused("pull", "org/other", *pulled)
    assert "the repository has no such revision" in refused("pull", "org/other", "--revision", "v9", *pulled)
    assert "is a text, not weights" in refused("pull", "org/wrong", *pulled)
    assert "pull from a b: want ORG/NAME, or a folder" in refused("pull", "a b", *pulled)
    assert "--base-model org/none: there is no such" in refused(
        "push", patch, "org/new", "--base-model", "org/none"
    )
    monkeypatch.setattr(server, "read_only", True)
    assert "push to org/new: the token may not do this" in refused("push", patch, "org/new")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "push to org/new: the hub wants a token that it knows" in refused("push", patch, "org/new")
    monkeypatch.delenv("HF_TOKEN")
    assert "push to org/new: the hub wants a token that it knows" in refused("push", patch, "org/new")
    assert not out.exists()


@pytest.mark.slow
def test_without_a_network_it_says_so(server, patch, tmp_path):
    """The client tries for half a minute."""
    for words, options, message in (
        (["pull", "org/x", "--out", tmp_path / "x"], {"url": "http://127.0.0.1:9"}, "the hub could not be reached"),
        (["push", patch, "org/new"], {"url": "http://127.0.0.1:9"}, "the hub could not be reached"),
        (["push", patch, "org/new"], {"HF_HUB_OFFLINE": "1"}, "push to org/new: HF_HUB_OFFLINE is set"),
    ):  # fmt: skip
        code, said, err = command(server, tmp_path / "hf", *words, **options)
        assert (code, said, err.count("\n")) == (2, "", 1), err
        assert message in err


def test_a_folder_serves_as_well(patch, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/README.md").write_text("---\nlicense: mit\n---\n")
    assert main(["push", str(patch), "./shared", "--base-model", str(tmp_path / "base")]) == 0
    assert capsys.readouterr().out == f"{patch}: pushed to ./shared\n"
    card = ModelCard.load(tmp_path / "shared/README.md")
    assert (card.data.license, card.data.base_model) == ("mit", None)
    assert main(["pull", "./shared", "--out", "again"]) == 0
    assert (tmp_path / "again").read_bytes() == patch.read_bytes()
    assert main(["pull", "./shared", "--out", "again"]) == 2
    assert "again: exists already" in capsys.readouterr().err
    assert main(["pull", "./nowhere", "--out", "more"]) == 2
    assert "nowhere/patch.safetensors: no such patch file" in capsys.readouterr().err


def test_only_a_patch_is_pushed(patch, tmp_path, capsys):
    (tmp_path / "none").write_text("x")
    assert main(["push", str(tmp_path / "none"), "./shared"]) == 2
    assert "is a text, not weights" in capsys.readouterr().err
    assert not hub.is_folder("org/name")
