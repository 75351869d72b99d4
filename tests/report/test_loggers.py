import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from report.finished import report
from report.offline import offline_file, settled_records

from muwa import config, pipeline
from muwa.report.loggers import Jsonl, Loggers, Wandb, run_id
from muwa.runtime.stopping import Stopped
from muwa.types.example import Example
from muwa.types.search import LayerScore

wandb = pytest.importorskip("wandb")
ROOT = Path(__file__).parent.parent.parent
SMALL = (
    "task.limits.forget_pairs=24",
    "task.limits.retain_pairs=48",
    "layer_search.max_evals=2",
    "layer_search.towers=[vision]",
    "task.limits.eval_retain=1",
    "dataset.utility=0.1",
    "dataset.utility_probe=0.05",
    "runtime.progress=false",
)


@pytest.mark.filterwarnings("default")
@pytest.mark.whole
def test_an_offline_run_holds_the_whole_story(composed, miniature, tmp_path):
    cfg = composed(f"dataset.root={miniature}", *SMALL, "logger=[jsonl,wandb]")
    pipeline.run(config.build(cfg), config.settings(cfg))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    records = settled_records(tmp_path / "run")
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    steps = [row for row in rows if "search/step" in row]
    assert [row["search/step"] for row in steps] == [row["step"] for row in found["trace"]]
    assert [row["search/forget_top5"] for row in steps] == [row["forget_top5"] for row in found["trace"]]
    keys = {key for row in rows for key in row}
    assert {"before/forget/top1", "after/forget/top1", "after/retain/top1"} <= keys
    sent = {key: value for row in rows for key, value in row.items()}
    assert sent["scores/nrows"] == len(found["scores"])
    assert sent["gradients/nrows"] > len(found["scores"])
    assert sent["metrics/nrows"] == 2 * len([key for key in keys if key.startswith("after/")])
    assert sent["figures/gains/_type"] == "image-file"
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {one.host for one in runs} == {"muwa"}  # not the name of this machine
    assert runs[0].run_group == "/".join(tmp_path.parts[-3:])
    named = ("slug_whitened · Kael Lindqvar", "unlearn")  # no step forgot, so no layer was edited
    assert (runs[-1].display_name, runs[-1].job_type) == named
    assert list(runs[-1].tags) == ["slug_whitened", "identity", found["provenance"]["model"]["source"]]
    curves = {m.glob_name or m.name: m for m in (r.metric for r in records) if m.glob_name or m.name}
    assert not {"before/*", "after/*"} & set(curves)  # a summary of them would nest: {"last": 1.0}
    assert curves["search/*"].step_metric == "search/evaluation"
    changes = {key: sent[key] for key in sent if key.startswith("change/")}
    assert changes == {
        f"change/{name}": metric["value"] - found["metrics"]["before"][name]["value"]
        for name, metric in found["metrics"]["after"].items()
    }
    assert sent["search/nrows"] == len(found["trace"])
    assert [row["search/evaluation"] for row in steps] == list(range(1, len(steps) + 1))
    files = [file.path for r in records if r.WhichOneof("record_type") == "files" for file in r.files.files]
    assert "patch.safetensors" in files
    (sent,) = (tmp_path / "run").glob("wandb/offline-run-*/files/patch.safetensors")
    assert sent.read_bytes() == (tmp_path / "run" / "patch.safetensors").read_bytes()
    assert not sent.is_symlink()  # the folder of the run may move
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    check_that_no_folder_is_told(tmp_path / "run", miniature)


def check_that_no_folder_is_told(run, miniature):
    """The bytes of the offline file, and of all that `wandb sync` uploads with it, without any folder of this machine."""
    here = offline_file(run)
    uploaded = [
        here,
        *(path for path in (here.parent / "files").rglob("*") if path.suffix in (".json", ".txt", ".yaml")),
    ]
    assert len(uploaded) > 2
    folders = [
        Path.home(),
        run,
        run.parent,
        Path(sys.executable).parent,
        sys.prefix,
        miniature,
        ROOT,
        Path.cwd(),
        Path(wandb.__file__).parent,
    ]
    for path in uploaded:
        for folder in folders:
            assert str(folder).encode() not in path.read_bytes(), (path.name, folder)


def test_a_folder_is_one_run_also_when_it_is_repeated(tmp_path):
    """Preempted and started again, or run again in its folder: two offline files of one id, which `wandb sync` merges."""
    for attempt in range(2):
        logger = Wandb(
            project="p", group="mine", name=None, job_type=None, mode="offline", folder=str(tmp_path), tags=[]
        )
        command = f"python launch.py seed={attempt} 'request.operator=Example Ltd'"
        asked = {"id": "17", "operator": "Example Ltd"}
        logger.log("config", {"seed": attempt, "command": command, "request": asked})
        logger.close(None)
        records = settled_records(tmp_path)
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert run.run_id == (tmp_path / "wandb_id.txt").read_text() == run_id(tmp_path)
        assert run.run_group == "mine"
        assert f"seed={attempt}" in str(records)
        assert "Example Ltd" not in str(records)  # W&B is not told who asked
        if not attempt:
            time.sleep(1.1)  # wandb names the folder of an attempt by the second
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != run_id(tmp_path)


@pytest.mark.filterwarnings("default")
def test_plots_are_sent_but_no_images_and_numbers_have_their_intervals(tmp_path):
    for name in ("pareto_1", "trace", "examples", "metrics", "similarity", "anything"):
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / f"{name}.png").write_bytes(tiny.png(0))
    logger = Wandb(
        project="p", group=None, name=None, job_type=None, mode="offline", folder=str(tmp_path), tags=[]
    )
    logger.log("config", {"report": {"show_forget": True}})
    logger.log(
        "evaluation", {"concept": "Ada Fox", "tower": "vision", "step": 2.0, "layers": {"": "visual.proj"}}
    )
    said = (Example("forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill"),)
    said_last = logger.close(replace(report(tmp_path), cost={"seconds": 1.5, "bytes": 7}, examples=said))
    (log,) = tmp_path.glob("wandb/offline-run-*")
    assert said_last == f"W&B was logged offline; to send it: wandb sync {log}"
    sent = {path.name.rsplit("_", 2)[0] for path in (tmp_path / "wandb").rglob("media/images/**/*.png")}
    assert sent == {"pareto_1", "trace", "metrics", "similarity"}
    (answers,) = (tmp_path / "wandb").rglob("media/table/answers*.json")
    assert json.loads(answers.read_text()) == {
        "columns": ["set", "question", "right answer", "before", "after"],
        "data": [["forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill"]],
    }
    found, steps, names, notes = {}, {}, [], ""
    for record in settled_records(tmp_path):
        if record.WhichOneof("record_type") == "run":
            names, notes = [*names, record.run.display_name], record.run.notes
        items = record.history.item if record.WhichOneof("record_type") == "history" else ()
        steps |= {
            "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items if "search/" in str(i)
        }
        items = record.summary.update if record.WhichOneof("record_type") == "summary" else ()
        found |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
    assert names[-1] == f"{tiny.NAMES[0]} · vision visual.proj"  # the layer is known at the end
    assert steps == {"search/step": 2.0, "search/evaluation": 1}  # texts and nested layers draw no curve
    (table,) = (tmp_path / "wandb").rglob("media/table/search*.json")
    assert json.loads(table.read_text())["data"] == [["Ada Fox", 1, "vision", None, None, 2.0, *[None] * 5]]
    sent = {key: found[f"after/forget/top1{key}"] for key in ("", "_n", "_low", "_high", "_better")}
    assert sent == {"": 0.0, "_n": 2, "_low": 0.0, "_high": 0.7, "_better": "lower"}
    assert notes.startswith("Neither that it is forgotten nor that the rest is kept is shown. ")
    assert found["verdict"] == "not shown"
    assert not [
        key for key in found if key.startswith("search/") and key in steps
    ]  # the last is not the chosen
    assert (found["before/retain/top1_low"], found["cost/seconds"], found["cost/bytes"]) == (0.6, 1.5, 7)


def offline(folder):
    return Wandb(
        project="p", group=None, name=None, job_type=None, mode="offline", folder=str(folder), tags=["mine"]
    )


def ended(folder):
    """(Exit code, last tags, summary, whether it was marked as preempted) of the newest offline run."""
    code, tags, summary, preempted = None, [], {}, False
    for record in settled_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "exit":
            code = record.exit.exit_code
        elif kind == "run":
            tags = list(record.run.tags)
        elif kind == "summary":
            items = record.summary.update
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        preempted |= kind == "preempting"
    return code, tags, summary, preempted


@pytest.mark.parametrize(
    ("error", "code", "told", "preempted"),
    [
        (Stopped(signal.SIGTERM), 1, {"status": "stopped", "by": "SIGTERM"}, True),
        (KeyboardInterrupt(), 1, {"status": "stopped", "by": "Ctrl-C"}, False),
        (
            ValueError("bad file /home/ada/a.tar\nsecond line"),
            1,
            {"status": "failed", "error": "ValueError", "why": "bad file …/a.tar"},
            False,
        ),
    ],
    ids=["SIGTERM", "Ctrl-C", "error"],
)
def test_a_run_that_ends_early_tells_wandb_how(tmp_path, error, code, told, preempted):
    with (
        pytest.raises(type(error)),
        Loggers([offline(tmp_path), Jsonl(str(tmp_path / "m.jsonl"))]) as loggers,
    ):
        loggers.log("config", {"method": {"_target_": "muwa.methods.slug.Slug"}, "stages": ["unlearn"]})
        loggers.log("task", {"kind": "identity", "names": ["Ada Fox"], "model": "/models/mine.pt"})
        raise error
    found = ended(tmp_path)
    assert (found[0], found[1], found[3]) == (
        code,
        ["mine", "slug", "identity", "…/mine.pt", told["status"]],
        preempted,
    )
    assert told.items() <= found[2].items()
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[-1])["event"] == told["status"]


def test_all_names_share_one_table_a_key(tmp_path):
    """Two names: one table `scores` and one table `gradients`, with a column that says whose row it is."""
    logger, score = offline(tmp_path), LayerScore(0.5, 0.1, -0.1, 2.0, 1.0, 3.0, "vision")
    for name in ("Ada Fox", "Bo Hill"):
        logger.log(
            "gradients", {"concept": name, "encoder": "", "norms": {"a": {"forget": 1.0, "retain": 2.0}}}
        )
        logger.log("scores", {"concept": name, "scores": {"a": score}, "front": ("a",)})
    logger.close(None)
    settled_records(tmp_path)
    tables = {
        path.name.split("_")[0]: json.loads(path.read_text())
        for path in (tmp_path / "wandb").rglob("media/table/*.json")
    }
    assert tables == {
        "gradients": {
            "columns": ["concept", "encoder", "layer", "forget norm", "retain norm"],
            "data": [["Ada Fox", "", "a", 1.0, 2.0], ["Bo Hill", "", "a", 1.0, 2.0]],
        },
        "scores": {
            "columns": ["concept", "layer", "tower", "importance", "alignment", "cosine", "gain", "on front"],
            "data": [
                ["Ada Fox", "a", "vision", 0.5, 0.1, -0.1, None, True],
                ["Bo Hill", "a", "vision", 0.5, 0.1, -0.1, None, True],
            ],
        },
    }


def test_wandb_is_not_told_who_asked(tmp_path):
    logger = offline(tmp_path)
    command = "python launch.py request.operator=Secret_Ltd seed=1"
    logger.log("config", {"request": {"operator": "Secret_Ltd"}, "command": command})
    logger.close(None)
    assert any(record.WhichOneof("record_type") == "config" for record in settled_records(tmp_path))
    assert b"Secret_Ltd" not in offline_file(tmp_path).read_bytes()


def test_a_wandb_that_fails_never_fails_a_run(tmp_path, caplog):
    file = tmp_path / "taken"
    file.write_text("not a folder")
    broken = Wandb(
        project="p", group=None, name=None, job_type=None, mode="offline", folder=str(file), tags=[]
    )
    with Loggers([broken, Jsonl(str(tmp_path / "m.jsonl"))]) as both:
        both.log("config", {"a": 1})
        both.log("metrics", {"when": "before", "forget/top1": 1.0})
    assert caplog.text.count("W&B is switched off for this run") == 1
    assert both.last_words == []
    assert [json.loads(line)["event"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [
        "config",
        "metrics",
    ]


def test_jsonl_refuses_what_it_cannot_write(tmp_path):
    log = Jsonl(str(tmp_path / "m.jsonl"))
    with pytest.raises(TypeError, match="cannot log a set"):
        log.log("config", {"a": {1}})
    log.close(None)
