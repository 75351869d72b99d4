import hashlib
from dataclasses import replace

import pytest
from report.finished import report

from muwa.report import wandb_content as content
from muwa.types.edit import Move


def test_a_name_holds_at_most_three_names_and_128_letters():
    assert content.run_name("ga", ["A", "B", "C", "D"]) == "ga · A and 3 others"
    assert content.run_name("", ["A"]) == "A"
    assert len(content.run_name("slug", ["x" * 200])) == 128
    assert len(content.tag("y" * 70)) == 64


def test_several_layers_of_one_encoder_and_a_unet_keep_their_names():
    unet = Move("A", "unet", "down_blocks.0.attentions.0.to_k.weight", 1.0, 0.1)
    assert content.short_layer(unet) == "unet down_blocks.0.attentions.0.to_k"
    two = Move("A", "text", "layers.0.fc1 + layers.1.fc1", 1.0, 0.1)
    assert content.short_layer(two) == "text layers.0.fc1 + layers.1.fc1"


def test_the_summary_says_what_changed_and_where(tmp_path):
    found = content.summary(report(tmp_path))
    assert found["change/forget/top1"] == -1.0
    assert found["change/retain/top1"] == pytest.approx(-0.02)
    assert (found["edit/layer"], found["edit/tower"], found["evaluations"]) == ("visual.proj", "vision", 2)
    assert "edit/layer" not in content.summary(report(tmp_path, chosen=None))


def test_the_notes_are_the_verdict_with_a_line_for_each_part(tmp_path):
    lines = content.notes(report(tmp_path)).splitlines()
    assert lines[0].startswith(
        "Neither that it is forgotten nor that the rest is kept is shown. Ada Fox is no longer"
    )
    assert lines[1] == ""
    assert all(line.startswith("- ") for line in lines[2:])
    assert content.summary(report(tmp_path))["verdict"] == "not shown"


def test_the_search_is_curves_of_numbers_and_a_table_of_everything():
    row = {"concept": "Ada Fox", "layer": "a.b", "tower": "text", "iteration": 3, "step": 0.5, "step_unit": "lambda",
           "relative_norm": 0.1, "forgotten": 0.0, "kept": 0.9, "feasible": True, "kept_margin": None}  # fmt: skip
    assert content.search_point(row, 7) == {
        "search/step": 0.5, "search/relative_norm": 0.1, "search/forgotten": 0.0, "search/kept": 0.9,
        "search/evaluation": 7,
    }  # fmt: skip
    values = ["Ada Fox", 7, "text", "a.b", 3, 0.5, "lambda", 0.1, 0.0, 0.9, True]
    assert content.search_row(row, 7) == values
    assert len(content.SEARCH) == len(values)


def test_how_to_send_one_log_several_and_those_of_a_sweep(tmp_path):
    folder = tmp_path / "a run"
    assert content.how_to_send(folder) is None
    (folder / "wandb" / "offline-run-1-x").mkdir(parents=True)
    said = "W&B was logged offline; to send it: wandb sync "
    assert content.how_to_send(folder) == f"{said}'{folder}/wandb/offline-run-1-x'"
    (folder / "wandb" / "offline-run-2-x").mkdir()
    assert content.how_to_send(folder) == f"{said}'{folder}'/wandb/offline-run-*"
    assert content.how_to_send(tmp_path, "*/") == f"{said}{tmp_path}/*/wandb/offline-run-*"


def test_the_patch_has_a_description_and_metadata_without_folders(tmp_path):
    patch = tmp_path / "patch.safetensors"
    patch.write_bytes(b"abc")
    done = replace(report(tmp_path), provenance={"model": {"source": "/models/mine.pt"}, "method": "slug"})
    found = content.patch_metadata(patch, done)
    assert (found["bytes"], found["sha256"]) == (3, hashlib.sha256(b"abc").hexdigest())
    assert found["model"] == {"source": "…/mine.pt"}
    assert found["after"] == {"forget/top1": 0.0, "retain/top1": 0.88}
    assert [move["layer"] for move in found["moves"]] == ["visual.proj"]
    text = content.patch_description(done)
    assert text.startswith(f"Makes a model forget {done.task.names[0]}")
    assert "an edit of vision visual.proj. Apply: python -m muwa.patch apply" in text


def test_wandb_takes_the_description_and_the_metadata(tmp_path):
    wandb = pytest.importorskip("wandb")
    patch = tmp_path / "patch.safetensors"
    patch.write_bytes(b"abc")
    done = report(tmp_path)
    artifact = wandb.Artifact(
        "patch-1",
        "patch",
        description=content.patch_description(done),
        metadata=content.patch_metadata(patch, done),
    )
    assert artifact.metadata["bytes"] == 3
