"""The loggers of a run: a JSON lines file, and Weights & Biases. The only module that imports wandb."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from muwa.drafts import write_text
from muwa.report.machine_paths import command_without_folders, last_folders, without_folders, without_request
from muwa.report.record import answers
from muwa.runtime.notices import notice
from muwa.runtime.stopping import stage_of, word
from muwa.types.ranges import Text
from muwa.types.report import PATCH, Report

# The figures that are sent: those of numbers. `examples` holds images and is not sent.
PLOTS = ("gains", "pareto", "trace", "metrics", "similarity")


class Logger(Protocol):
    """Receives the events of a run as they happen, and the report at its end."""

    def log(self, event: str, row: Mapping[str, Any]) -> None:
        """Receive one event: "config", "gradients", "scores", "evaluation", "loss", "edit" or "metrics".

        A run that a signal stops ends with "stopped".
        """

    def close(self, report: Report | None) -> None:
        """The run has ended; `report` is None when it made none."""


class Loggers:
    """Several loggers as one. A `with` block closes them however it ends, with the `report` if it was set.

    If a signal ends the block, they receive the event "stopped" first, with the cache stage it was in.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers
        self.report: Report | None = None

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.log("stopped", {"by": word(error), "stage": stage_of(error)})
        for logger in self._loggers:
            logger.close(self.report)

    def log(self, event: str, row: Mapping[str, Any]) -> None:
        """Pass one event on to each logger."""
        for logger in self._loggers:
            logger.log(event, row)


class Jsonl:
    """A file with one JSON line per event, written at once: "time" (UTC), "event" and the event's fields."""

    def __init__(self, path: Text):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(path).open("a")  # noqa: SIM115  (closed by close)

    def log(self, event: str, row: Mapping[str, Any]) -> None:
        """Write one line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"time": now, "event": event, **row}, default=_plain) + "\n")
        self._file.flush()

    def close(self, report: Report | None) -> None:
        """Close the file."""
        self._file.close()


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot log a {type(value).__name__}")


class Wandb:
    """A W&B run, offline unless `mode` says otherwise.

    A run's folder is one run in W&B: its id is kept in the folder (`run_id`), so a run that was preempted, or
    is repeated in its folder, goes on in the same W&B run. A run that `wandb agent` starts has the id that
    the agent gives it. W&B is told no folder of this machine: no executable, no cache, no home. In offline
    mode its file holds none, either. Nor is it told who asked to forget (the settings of `request`).

    It receives the config, tables of gradient norms and layer scores, and each evaluation of the search as a
    step. At the end it receives the metrics before and after with their intervals, the cost, the plots
    (`PLOTS`), a table of answers, and the patch: as an artifact, or offline as a file of the run, since an
    artifact would note where the patch lies. Images are never sent: they may show the forget set.

    An error inside W&B switches this logger off with a warning, and the run goes on.

    Args:
        folder: The run's folder. W&B writes to `folder/wandb`; figures and patch are read from `folder`.
        group: The group in W&B, shared by the runs of a sweep. Of an absolute path, the last three names.
        mode: "offline", "online" or "disabled".
    """

    def __init__(
        self,
        *,
        project: Text,
        group: Text | None,
        name: Text | None,
        mode: Literal["offline", "online", "disabled"],
        folder: Text,
        tags: Sequence[Text],
    ):
        self._folder = Path(folder)
        self._arguments: dict[str, Any] = {
            "project": project,
            "group": last_folders(group, 3) if group else None,
            "name": name,
            "mode": mode,
            "dir": folder,
            "tags": list(tags),
            "resume": "allow",
        }
        self._offline = mode == "offline"
        self._run: Any = None
        self._off = False

    def log(self, event: str, row: Mapping[str, Any]) -> None:
        """Send one event."""
        self._safely(self._log, event, row)

    def close(self, report: Report | None) -> None:
        """Send summary, figures and patch, and end the W&B run."""
        self._safely(self._close, report)

    def _safely(self, action: Any, *arguments: Any) -> None:
        if self._off:
            return
        try:
            action(*arguments)
        except Exception as error:  # whatever fails in W&B (package, disk, network, service), the run goes on
            self._off = True
            notice(f"W&B is switched off for this run: {type(error).__name__}: {error}")

    def _log(self, event: str, row: Mapping[str, Any]) -> None:
        import wandb

        if self._run is None:
            os.environ.setdefault("WANDB_SILENT", "true")
            self._folder.mkdir(parents=True, exist_ok=True)
            settings = wandb.Settings(
                console="off",
                init_timeout=30,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                symlink=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            )
            if not os.environ.get("WANDB_RUN_ID"):  # which `wandb agent` sets
                self._arguments["id"] = run_id(self._folder)
            self._run = wandb.init(**self._arguments, settings=settings)
        if event == "config":
            told = {key: value for key, value in row.items() if key != "request"}  # not who asked
            command = command_without_folders(without_request(row.get("command", "")))
            shown = {**without_folders(told), "command": command}
            self._run.config.update(shown, allow_val_change=True)
        elif event == "gradients":
            rows = [[name, norm["forget"], norm["retain"]] for name, norm in row["norms"].items()]
            table = "/".join(filter(None, ("gradients", row["concept"], row.get("encoder"))))
            self._table(table, ["layer", "forget norm", "retain norm"], rows)
        elif event == "scores":
            front = set(row["front"])
            rows = [
                [name, s.tower, s.importance, s.alignment, s.cosine, name in front]
                for name, s in row["scores"].items()
            ]
            columns = ["layer", "tower", "importance", "alignment", "cosine", "on front"]
            self._table(f"scores/{row['concept']}", columns, rows)
        elif event == "evaluation":
            flat = {key: value for key, value in row.items() if not isinstance(value, Mapping)}
            self._run.log({f"search/{key}": value for key, value in flat.items()})
        elif event == "metrics":
            self._run.log({f"{row['when']}/{key}": value for key, value in row.items() if key != "when"})

    def _table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        table = wandb.Table(columns=columns, data=rows)
        if self._offline:  # only a file of the run: W&B also makes an artifact of a "table", and notes a path
            table._log_type = "table-file"
        self._run.log({key: table})

    def _close(self, report: Report | None) -> None:
        import wandb

        if self._run is None:
            return
        if report is not None:
            self._run.summary.update(_summary(report))
            plots = _plots(self._folder / "figures")
            if plots:
                self._run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in plots})
            if said := answers(report.examples):
                rows = [
                    [one[key] for key in ("role", "question", "expected", "before", "after")] for one in said
                ]
                self._table("answers", ["set", "question", "right answer", "before", "after"], rows)
        patch = self._folder / PATCH
        if patch.is_file() and self._offline:
            self._run.save(str(patch), base_path=str(self._folder), policy="now")
        elif patch.is_file():
            artifact = wandb.Artifact(f"patch-{self._run.id}", type="patch")
            artifact.add_file(str(patch))
            self._run.log_artifact(artifact)
        self._run.finish()


def run_id(folder: Path) -> str:
    """The id of a folder's run in W&B. It is made once and kept in `wandb_id.txt` of the folder."""
    kept = folder / "wandb_id.txt"
    if not kept.is_file():
        write_text(kept, uuid.uuid4().hex[:16])
    return kept.read_text()


def _summary(report: Report) -> dict[str, Any]:
    """Objective, commit, cost, and each metric before and after with `_n`, `_better`, `_low` and `_high`."""
    summary: dict[str, Any] = {
        "objective": report.objective,
        "git_commit": report.provenance.get("git_commit"),
    }
    for when, metrics in (("before", report.before), ("after", report.after)):
        for name, metric in metrics.items():
            key = f"{when}/{name}"
            summary |= {key: metric.value, f"{key}_n": metric.n, f"{key}_better": metric.reading.better}
            if metric.low is not None and metric.high is not None:
                summary |= {f"{key}_low": metric.low, f"{key}_high": metric.high}
    return summary | {f"cost/{name}": value for name, value in report.cost.items()}


def _plots(folder: Path) -> list[Path]:
    """The files of the report's plots: <kind>.png, or <kind>_1.png, ... where there are several."""
    return [
        path
        for kind in PLOTS
        for pattern in ("", "_*")
        for path in sorted(folder.glob(f"{kind}{pattern}.png"))
    ]
