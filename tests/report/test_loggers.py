import json
import time
from dataclasses import replace

import pytest
import tiny
from report.finished import report

from muwa import config, pipeline
from muwa.report.loggers import Jsonl, Loggers, Wandb
from muwa.types.example import Example

wandb = pytest.importorskip("wandb")
SMALL = (
    "task.limits.retain_pairs=64",
    "layer_search.max_evals=2",
    "layer_search.towers=[vision]",
    "task.limits.eval_retain=1",
    "dataset.utility=0.1",
    "dataset.utility_probe=0.05",
    "runtime.progress=false",
)


BLOCK = 32768


def whole_records(folder, wait_s=60):
    """The records once the last of them, the exit, is there: W&B's service writes the file after `finish` has returned."""
    end = time.monotonic() + wait_s
    found = offline_records(folder)
    while not any(record.WhichOneof("record_type") == "exit" for record in found):
        assert time.monotonic() < end, f"no exit record after {wait_s} s, only {len(found)} records"
        time.sleep(0.1)
        found = offline_records(folder)
    return found


def offline_records(folder):
    """Every record of the offline run under `folder`, parsed by wandb's own protobuf classes.

    The file is a LevelDB log behind a header of 7 bytes: blocks of 32 KiB of chunks (crc 4, length 2, type 1: whole, first,
    middle, last). wandb 0.31 has no Python reader for it any more; its own `wandb sync` reads it in Go, and uploads.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    raw, place, parts, records = path.read_bytes(), 7, [], []
    assert raw[:4] == b":W&B"
    while place + 7 <= len(raw):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        parts.append(raw[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


@pytest.mark.filterwarnings("default")
def test_an_offline_run_holds_the_whole_story(composed, miniature, tmp_path):
    cfg = composed(f"dataset.root={miniature}", *SMALL, "logger=[jsonl,wandb]")
    pipeline.run(config.build(cfg), config.settings(cfg))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    records = whole_records(tmp_path / "run")
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
    assert sent["scores/Kael Lindqvar/nrows"] == len(found["scores"])
    assert sent["gradients/Kael Lindqvar/nrows"] > len(found["scores"])
    assert sent["figures/gains/_type"] == "image-file"
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert run.run_group == str(tmp_path)
    artifacts = [r.request.log_artifact.artifact for r in records if r.WhichOneof("record_type") == "request"]
    artifacts += [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    assert [a.type for a in artifacts if a.type == "patch"] == ["patch"]
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


@pytest.mark.filterwarnings("default")
def test_plots_are_sent_but_no_images_and_numbers_have_their_intervals(tmp_path):
    for name in ("pareto_1", "trace", "examples", "metrics", "similarity", "anything"):
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / f"{name}.png").write_bytes(tiny.png(0))
    logger = Wandb(project="p", group=None, name=None, mode="offline", folder=str(tmp_path), tags=[])
    logger.log("config", {"report": {"show_forget": True}})
    logger.log("evaluation", {"concept": "Ada Fox", "step": 2.0, "layers": {"": "visual.proj"}})
    said = (Example("forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill"),)
    logger.close(replace(report(tmp_path), cost={"seconds": 1.5, "bytes": 7}, examples=said))
    sent = {path.name.rsplit("_", 2)[0] for path in (tmp_path / "wandb").rglob("media/images/**/*.png")}
    assert sent == {"pareto_1", "trace", "metrics", "similarity"}
    (answers,) = (tmp_path / "wandb").rglob("media/table/answers*.json")
    assert json.loads(answers.read_text()) == {
        "columns": ["set", "question", "right answer", "before", "after"],
        "data": [["forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill"]],
    }
    found, steps = {}, {}
    for record in whole_records(tmp_path):
        items = record.history.item if record.WhichOneof("record_type") == "history" else ()
        steps |= {
            "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items if "search" in str(i)
        }
        items = record.summary.update if record.WhichOneof("record_type") == "summary" else ()
        found |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
    assert steps == {"search/concept": "Ada Fox", "search/step": 2.0}  # no nested layers
    sent = {key: found[f"after/forget/top1{key}"] for key in ("", "_n", "_low", "_high", "_better")}
    assert sent == {"": 0.0, "_n": 2, "_low": 0.0, "_high": 0.7, "_better": "lower"}
    assert (found["before/retain/top1_low"], found["cost/seconds"], found["cost/bytes"]) == (0.6, 1.5, 7)


def test_a_wandb_that_fails_never_fails_a_run(tmp_path, caplog):
    file = tmp_path / "taken"
    file.write_text("not a folder")
    broken = Wandb(project="p", group=None, name=None, mode="offline", folder=str(file), tags=[])
    with Loggers([broken, Jsonl(str(tmp_path / "m.jsonl"))]) as both:
        both.log("config", {"a": 1})
        both.log("metrics", {"when": "before", "forget/top1": 1.0})
    assert caplog.text.count("W&B is switched off for this run") == 1
    assert [json.loads(line)["event"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [
        "config",
        "metrics",
    ]


def test_jsonl_refuses_what_it_cannot_write(tmp_path):
    log = Jsonl(str(tmp_path / "m.jsonl"))
    with pytest.raises(TypeError, match="cannot log a set"):
        log.log("config", {"a": {1}})
    log.close(None)
