"""task=prompts on the miniature, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
FEW = (
    "task.limits.probe_forget=10", "task.limits.eval_forget=8", "task.limits.probe_retain=30", "task.limits.eval_retain=8",
    "model.steps=8", "layer_search.candidates=1", "layer_search.pictures=14", "layer_search.retain_pictures=14",
    "layer_search.sampling_steps=6", "eval.token_attack.prompts=1", "eval.token_attack.search.steps=1",
)  # fmt: skip
DETECTOR = """
import csv, pathlib, sys
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from muwa.miniature.classifier import load
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.png"))
images = torch.stack([pil_to_tensor(Image.open(path)) for path in paths])
found = load(folder=None, device="cpu")
place = found.labels["class"].index("Kael Lindqvar")
scores = found.logits(images, "class").softmax(1)[:, place].tolist()
csv.writer(sys.stdout).writerows([("name", "score"), *((p.name, s) for p, s in zip(paths, scores))])
"""


def launched(miniature, out, *words):
    line = [
        sys.executable,
        str(ROOT / "launch.py"),
        "model=sd",
        "task=prompts",
        "eval=[prompts,token_attack]",
    ]
    line += [*FEW, f"dataset.root={miniature}", f"paths.outputs={out}", "runtime.progress=false", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.glob("runs/*/*/results.json")
    return json.loads(results.read_text()), results.with_name("report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slug", "slug_whitened"])
@pytest.mark.parametrize("detector", ["miniature", "command"])
def test_a_concept_of_a_prompt_file_is_forgotten(miniature, tmp_path, method, detector):
    (tmp_path / "detect.py").write_text(DETECTOR)
    words = [f"method={method}", f"classifier={detector}"]
    if detector == "command":
        words.append(f"classifier.command='{sys.executable} {tmp_path / 'detect.py'} {{folder}}'")
        words.append("classifier.threshold=0.1")  # a probability among 200 labels; chance is 0.005
    found, page = launched(miniature, tmp_path / "out", *words)
    before, after = (found["metrics"][when] for when in ("before", "after"))
    assert before["forget/detected"]["value"] >= 0.6
    assert found["search"][0]["chosen"] is not None
    assert after["forget/detected"]["value"] <= before["forget/detected"]["value"] - 0.5
    assert after["retain/matched"]["value"] >= 0.5
    probe, report = (found["task"]["prompts"][when] for when in ("probe", "eval"))
    assert (probe["forget"], report["forget"], report["retain"]) == (10, 8, 8)
    rows = [row for row in found["samples"] if row["metric"] == "forget/detected"]
    assert len(rows) == 8
    assert all(row["seed"] > 10_000 and row["guidance"] in (4.0, 5.0, 6.0) for row in rows)
    (kael,) = [row for row in found["detections"] if row["metric"] == "forget/detected"]
    assert (kael["n"], kael["change"]) == (
        8,
        pytest.approx(after["forget/detected"]["value"] - before["forget/detected"]["value"]),
    )
    assert before["attack/asr"]["n"] == 1
    assert "The same prompts and seeds, before and after" in page
    assert ("retain/detected" in before) == (detector == "miniature")  # the program knows one concept


def test_a_gradient_of_pairs_is_refused_before_anything_is_generated(miniature, tmp_path):
    words = ["model=sd", "task=prompts", "gradient_source=clip", f"dataset.root={miniature}"]
    done = forked.run(forked.LAUNCH, *words, f"paths.outputs={tmp_path}", "runtime.progress=false")
    assert done.returncode == 2
    assert "task=prompts has prompts and no image-text pairs; take gradient_source=prompts" in done.stderr
