"""Whole runs on the miniature: what a user types, and the files in the run's folder afterwards."""

import base64
import csv
import json
import re
import shutil
import signal
import time
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from muwa import config, pipeline
from muwa.models.vlm.loading import MINIATURE
from muwa.patch.__main__ import main
from muwa.patch.apply import read_patch

ROOT = Path(__file__).parent.parent
SMALL = (
    "task.limits.forget_pairs=24",
    "task.limits.retain_pairs=48",
    "layer_search.max_evals=3",
    "layer_search.towers=[vision]",
    "task.limits.eval_retain=1",
    "dataset.utility=0.1",
    "dataset.utility_probe=0.05",
    "runtime.progress=false",
)
FEW = "eval=[forget,retain]"  # metrics, where a test is about something else


def run(composed, miniature, *overrides, small=True):
    """One run in this process; returns (objective, results.json)."""
    cfg = composed(f"dataset.root={miniature}", *(SMALL if small else ()), *overrides)
    score = pipeline.run(config.build(cfg), config.settings(cfg))
    return score, json.loads((Path(cfg.paths.run) / "results.json").read_text())


def launch(miniature, out, *overrides):
    """The program of `python launch.py OVERRIDES`."""
    fixed = (f"paths.outputs={out}", f"dataset.root={miniature}")
    return forked.start(forked.LAUNCH, *overrides, *fixed, cwd=out)


def launched(miniature, out, *overrides):
    """Its exit code, and what it wrote to stderr."""
    program = launch(miniature, out, *overrides)
    _, stderr = program.communicate()
    return program.poll(), stderr


@pytest.fixture(scope="module")
def straight(miniature, tmp_path_factory):
    """The folder of a small run from a cold cache to its end."""
    out = tmp_path_factory.mktemp("straight")
    code, stderr = launched(miniature, out, *SMALL, FEW)
    assert code == 0, stderr
    return out


@pytest.fixture
def warm(straight):
    """The cache of that run, for tests that are about something else."""
    return f"paths.cache={straight}/cache"


def test_the_default_forgets_and_keeps(default_run):
    found = json.loads((default_run[0] / "results.json").read_text())
    before, after = found["metrics"]["before"], found["metrics"]["after"]
    assert before["forget/top1"]["value"] > 0.9
    assert after["forget/top1"]["value"] == after["forget/top5"]["value"] == 0
    assert before["retain/top1"]["value"] - after["retain/top1"]["value"] <= 0.03
    assert before["utility/top1"]["value"] - after["utility/top1"]["value"] <= 0.03
    assert found["objective"] <= 0.06


def test_the_default_leaves_every_file_and_says_where(default_run):
    folder, stdout = default_run
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {".hydra/config.yaml", ".hydra/overrides.yaml", "results.json", "metrics.jsonl", "patch.safetensors", "report.html", "card.md",
            "figures/gains.png", "figures/trace.png", "figures/metrics.png", "figures/similarity.png"} <= there  # fmt: skip
    files = "report.html, card.md, results.json, patch.safetensors"
    assert re.search(rf"^Finished in \d+\.\d s\. Output in {re.escape(str(folder))}: {files}$", stdout, re.M)
    assert "Kael Lindqvar is no longer the model's first guess" in stdout
    events = [json.loads(line)["event"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = json.loads((folder / "results.json").read_text())
    assert events.count("evaluation") == len(found["trace"])
    assert [events[0], *events[-2:]] == ["config", "metrics", "metrics"]


def test_every_key_of_the_results_is_documented(default_run):
    found = json.loads((default_run[0] / "results.json").read_text())
    text = (ROOT / "docs" / "results_schema.md").read_text()
    documented = set(re.findall(r"`([^`\s]+)`", text))
    nested = {f"metrics.{key}" for key in found["metrics"]}
    missing = (set(found) - {"metrics"} | nested | set(found["edit"]) | set(found["trace"][0]) | set(found["scores"][0])
               | set(found["metrics"]["after"]) | set(found["metrics"]["after"]["forget/top1"]) | set(found["provenance"])
               | set(found["similarity"]) | set(found["search"][0])) - documented  # fmt: skip
    assert not missing
    top = re.findall(r"^\| `([a-z_]+)", text.split("## A metric")[0], re.M)
    assert set(top) == set(found)


@pytest.mark.whole
def test_the_second_run_reads_everything_back_and_ends_with_the_same_patch(
    composed, miniature, default_run, tmp_path
):
    """The first run was the default's, in another process."""
    folder, _ = default_run
    first = json.loads((folder / "results.json").read_text())
    _, second = run(composed, miniature, f"paths.cache={folder.parents[2]}/cache", small=False)
    assert set(first["cache"].values()) <= {"miss", "partial"}
    assert set(second["cache"].values()) == {"hit"}
    assert (tmp_path / "run" / "patch.safetensors").read_bytes() == (
        folder / "patch.safetensors"
    ).read_bytes()
    parts = ("open", "libraries", "data", "moments/inputs", "search")
    assert first["seconds"]["total"] > sum(first["seconds"][part] for part in parts) > 0
    same = set(first) - {"seconds", "cache", "peak_memory_bytes", "cost", "provenance"}
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    own = {"command": "", "machine": ""}  # the numbers of threads may differ
    assert first["provenance"] | own == second["provenance"] | own


@pytest.mark.whole
def test_what_a_library_warns_of_and_unedited_weights_are_in_the_results(
    composed, miniature, tmp_path, caplog
):
    """open_clip ignores `pretrained` for a folder, and says so in its log."""
    folder = shutil.copytree(ROOT / "muwa" / "miniature" / "clip", tmp_path / "clip")
    (folder / "clip.onnx").write_bytes(bytes(1_000_000))  # weights in a format that muwa does not write
    ignored = (f"model.name=local-dir:{folder}", "model.pretrained=openai")
    quick = [one for one in SMALL if not one.startswith("layer_search.")]
    quick += [
        "layer_search=fixed",
        "layer_search.layer=visual.proj",
        "layer_search.relative_step=0.2",
        "method=slug",
    ]
    _, found = run(composed, miniature, *ignored, *quick, FEW, small=False)
    said, unedited = found["provenance"]["warnings"]
    assert unedited.startswith(
        f"{folder}: clip.onnx brings the forgotten back to whoever loads it (an ONNX model)"
    )
    assert said == "Ignoring `pretrained='openai'` because `model_name` has 'local-dir' schema."
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        said,
        unedited,
    ]


@pytest.mark.whole
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(miniature, straight, tmp_path):
    program = launch(miniature, tmp_path, *SMALL, FEW)
    forget = "cache/gradients/forget/*/value.json"
    while not [path for path in tmp_path.glob(forget) if path.parent.suffix != ".draft"]:
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    program.process.kill()
    program.communicate()
    assert program.poll() == -signal.SIGKILL
    assert not list(tmp_path.glob("runs/*/*/results.json"))
    code, stderr = launched(miniature, tmp_path, *SMALL, FEW)
    assert code == 0, stderr
    (resumed,), (whole,) = (list(out.glob("runs/*/*/results.json")) for out in (tmp_path, straight))
    assert json.loads(resumed.read_text())["cache"]["gradients/forget"] == "hit"
    first, second = (one.parent / "patch.safetensors" for one in (resumed, whole))
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture(scope="module")
def sweep(miniature, tmp_path_factory):
    """A multirun over two people and an unknown one: (exit code, what it wrote to stderr, the path of its table)."""
    out = tmp_path_factory.mktemp("sweep")
    people = "task.identity=Nobody_Atall,Kael_Lindqvar,Lior_Garrowby"
    code, stderr = launched(miniature, out, "-m", *SMALL, FEW, people)
    (table,) = out.glob("runs/*/*/sweep.csv")
    return code, stderr, table


@pytest.mark.whole
def test_a_multirun_takes_the_moments_of_the_retain_set_once_and_writes_one_table(sweep):
    _, _, table = sweep
    _, *rows = csv.DictReader(table.read_text().splitlines())
    assert [row["task.identity"] for row in rows] == ["Kael_Lindqvar", "Lior_Garrowby"]
    assert [row["status"] for row in rows] == ["done", "done"]
    caches = [json.loads((table.parent / row["run"] / "results.json").read_text())["cache"] for row in rows]
    # the sum over the whole retain set is read back, that over the pairs that mention the name is computed
    assert [cache["moments/inputs"] for cache in caches] == ["miss", "partial"]
    assert "2 of 3 runs are done" in (table.parent / "sweep.html").read_text()


@pytest.mark.whole
def test_a_failed_run_of_a_multirun_keeps_its_row(sweep):
    code, stderr, table = sweep
    assert code != 0
    assert "Unknown name 'Nobody_Atall'" in stderr
    rows = csv.DictReader(table.read_text().splitlines())
    assert [row["status"] for row in rows] == ["failed", "done", "done"]


def test_bad_input_is_one_line_and_no_compute(miniature, tmp_path):
    code, stderr = launched(miniature, tmp_path, "task.identity=Kael_Lindqvist")
    assert code == 2
    assert re.match(
        r"muwa: Unknown name 'Kael_Lindqvist': not among the 100 names of .*Nearest: Kael_Lindqvar", stderr
    )
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_weights_with_nan_are_refused_by_name_before_any_compute(composed, miniature, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(ROOT / "muwa" / "miniature" / "clip", folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, file)
    cfg = composed(f"dataset.root={miniature}", f"model.name=local-dir:{folder}")
    with pytest.raises(ValueError, match=r"weight visual.proj: 1 of \d+ values are NaN or infinite"):
        pipeline.run(config.build(cfg), config.settings(cfg))
    assert not list(tmp_path.rglob("patch.safetensors"))


@pytest.mark.whole
def test_images_of_the_forget_set_leave_the_data_set_only_when_asked(composed, miniature, warm, tmp_path):
    def shown():
        """How many images of the forget set are in any file of the run."""
        cfg = composed(f"dataset.root={miniature}", "runtime.progress=false")
        task = config.build(cfg)["task"](config.build(cfg)["dataset"]())
        images = [path.read_bytes() for path in (*task.eval.forget.images, *task.probe.forget.images)]
        images += task.forget["Kael Lindqvar"].images
        files = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
        return sum(image in file or base64.b64encode(image) in file for image in images for file in files)

    run(composed, miniature, FEW, warm)
    assert shown() == 0
    run(composed, miniature, FEW, warm, "report.show_forget=true")
    assert shown() == 8


@pytest.mark.whole
def test_gradients_can_be_handed_on(composed, miniature, warm, tmp_path, capsys):
    from omegaconf import OmegaConf

    from muwa.gradients.__main__ import main

    _, first = run(composed, miniature, FEW, warm)
    cfg = composed(f"dataset.root={miniature}", *SMALL, FEW, warm)
    (tmp_path / "run" / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")  # as Hydra does for a real run
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "g.safetensors")]) == 0
    assert "MB" in capsys.readouterr().out
    fresh = (FEW, f"paths.cache={tmp_path}/other", f"gradients={tmp_path}/g.safetensors")
    _, second = run(composed, miniature, *fresh)
    assert second["trace"] == first["trace"]
    assert not [stage for stage in second["cache"] if stage.startswith("gradients")]
    message = "computed from something else than this run .batch_size: file has 32, this run has 16"
    with pytest.raises(ValueError, match=message):
        run(composed, miniature, *fresh, "method.batch_size=16")
    assert main(["export", str(tmp_path), "x"]) == 2
    assert "want the folder of a run" in capsys.readouterr().err


def test_curation_alone_writes_a_forget_set(composed, miniature, tmp_path):
    cfg = composed(
        f"dataset.root={miniature}",
        f"dataset.curated={tmp_path}/sets",
        "stages=[curate]",
        "runtime.progress=false",
    )
    assert pipeline.run(config.build(cfg), config.settings(cfg)) == 0
    manifest = json.loads((tmp_path / "sets" / "Kael_Lindqvar" / "manifest.json").read_text())
    assert len(manifest["matches"]) == 72
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stages", ["unlearn", "unlearn,eval", "unlearn,report"])
@pytest.mark.whole
def test_the_last_line_lists_only_what_was_written(composed, miniature, warm, tmp_path, capsys, stages):
    cfg = composed(
        f"dataset.root={miniature}",
        *SMALL,
        warm,
        "layer_search.max_evals=1",
        "eval=[forget]",
        f"stages=[{stages}]",
    )
    pipeline.run(config.build(cfg), config.settings(cfg))
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"Finished in \d+\.\d s\. Output in {tmp_path / 'run'}: patch\.safetensors", last)
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert "patch.safetensors" in there
    assert not there & {"report.html", "results.json"}


@pytest.mark.parametrize(("method", "figure"), [("slug_whitened", "trace.png"), ("slug", "trace_2.png")])
@pytest.mark.whole
def test_objects_and_several_names_go_the_same_way(composed, miniature, warm, tmp_path, method, figure):
    """Whitened names are one edit found by one search; SLUG has a search for each name."""
    more = ["layer_search.candidates=1", *(["layer_search.max_evals=7"] if method == "slug_whitened" else [])]
    _, found = run(
        composed,
        miniature,
        "task=object",
        "task.object=[red_star,blue_ring]",
        f"method={method}",
        FEW,
        warm,
        *more,
    )
    assert found["task"]["names"] == ["red star", "blue ring"]
    assert [move["concept"] for move in found["edit"]["moves"]] == ["red star", "blue ring"]
    assert len(read_patch(tmp_path / "run" / "patch.safetensors").deltas) in (1, 2)
    assert (tmp_path / "run" / "figures" / figure).is_file()


def random_llava(folder):
    """A LLaVA folder: the vision tower of the shipped one, and a random language model of one block."""
    config = LlavaConfig.from_pretrained(MINIATURE)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 32, 64, 1
    text.num_attention_heads = text.num_key_value_heads = 2
    text.head_dim = 16
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    tower = LlavaForConditionalGeneration.from_pretrained(MINIATURE).model.vision_tower
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.save_pretrained(folder)
    LlavaProcessor.from_pretrained(MINIATURE).save_pretrained(folder)
    return folder


@pytest.mark.whole
def test_a_whole_run_on_a_llava_of_ones_own(composed, miniature, tmp_path):
    """A run from questions to report; its patch gives a folder that plain transformers loads."""
    folder = random_llava(tmp_path / "llava")
    weights = LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")  # the same weights once more
    _, found = run(
        composed, miniature, "model=vlm", f"model.path={folder}", "model.max_new_tokens=3",
        "eval=[answers,answer_attacks,benchmarks]", f"eval.benchmarks.gqa={miniature}/world/vqa/questions.json",
        "eval.benchmarks.limit=4", "eval.answers.retain=4", "eval.answers.utility=4",
        "layer_search.start=ratio",
        "layer_search.candidates=1", "layer_search.max_evals=2", "layer_search.search_wordings=1",
        "layer_search.retain_pictures=4", "layer_search.forget_at_most=0.9", "task.limits.retain_pairs=96",
        "dataset.utility=0.1", "dataset.utility_probe=0.05", "runtime.progress=false", f"paths.run={tmp_path / 'run'}",
        small=False,
    )  # fmt: skip
    assert {"forget/answered", "retain/answered", "attack/reworded", "gqa/accuracy"} <= set(
        found["metrics"]["after"]
    )
    assert found["said"]
    assert found["provenance"]["warnings"] == [
        f"{folder}: pytorch_model.bin brings the forgotten back to whoever loads it (pickled weights with "
        "the original tensors); `python -m muwa.patch apply` leaves it out of its copy"
    ]
    patch, out = tmp_path / "run" / "patch.safetensors", tmp_path / "out"
    assert main(["apply", str(patch), str(folder), "--out", str(out)]) == 0
    before, after = (LlavaForConditionalGeneration.from_pretrained(one).state_dict() for one in (folder, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("vision_tower" in name for name in moved)
