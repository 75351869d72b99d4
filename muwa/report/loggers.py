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

from muwa.data.addresses import hide
from muwa.drafts import write_text
from muwa.report import wandb_content as content
from muwa.report.machine_paths import command_without_folders, last_folders, without_folders, without_request
from muwa.report.record import answers
from muwa.runtime.notices import notice
from muwa.runtime.stopping import stage_of, word
from muwa.types.ranges import Text
from muwa.types.report import PATCH, Report


class Logger(Protocol):
    """Receives the events of a run as they happen, and the report at its end."""

    def log(self, event: str, row: Mapping[str, Any]) -> None:
        """Receive one event.

        "config", "task", "gradients", "scores", "evaluation", "loss", "edit" or "metrics".

        A run that a signal stops ends with "stopped", one that an error ends with "failed".
        """

    def close(self, report: Report | None) -> str | None:
        """The run has ended; `report` is None when it made none.

        Returns:
            A line for the user, printed last; None if there is nothing to say.
        """


class Loggers:
    """Several loggers as one. A `with` block closes them however it ends, with the `report` if it was set.

    If a signal ends the block, they receive the event "stopped" first, with the cache stage it was in. If an
    error ends it, they receive "failed" with the first line of the error. `last_words` then holds what they
    have to tell the user.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers
        self.report: Report | None = None
        self.last_words: list[str] = []

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.log("stopped", {"by": word(error), "stage": stage_of(error)})
        elif isinstance(error, Exception):
            why = hide(str(error)).strip().partition("\n")[0]
            self.log("failed", {"error": type(error).__name__, "why": why})
        said = [logger.close(self.report) for logger in self._loggers]
        self.last_words = [line for line in said if line]

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

    A run is named by its method and the names to forget (`content.run_name`), and by the edited layer at its
    end. It receives the config and each evaluation of the search as a step. At the end it receives the
    verdict as its notes, tables of gradient norms, layer scores and the search with a column for the name to
    forget, the metrics before and after with their intervals, the cost, the plots (`content.PLOTS`), a table
    of answers, and the patch: as an artifact, or offline as a file of the run, since an artifact would note
    where the patch lies. Images are never sent:
    they may show the forget set. A run that is stopped or fails says so, with its tags and its exit code.

    An error inside W&B switches this logger off with a warning, and the run goes on.

    Args:
        folder: The run's folder. W&B writes to `folder/wandb`; figures and patch are read from `folder`.
        group: The group in W&B, shared by the runs of a sweep. Of an absolute path, the last three names.
        name: The name of the run; None is a name from what it does.
        job_type: What kind of run it is; None is its first stage, "unlearn" or "eval".
        mode: "offline", "online" or "disabled".
        tags: Tags beside those that say method, task and model.
    """

    def __init__(
        self,
        *,
        project: Text,
        group: Text | None,
        name: Text | None,
        job_type: Text | None,
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
            "job_type": job_type,
            "tags": [content.tag(one) for one in tags],
            "resume": "allow",
        }
        self._method = ""
        self._tables: dict[tuple[str, tuple[str, ...]], list[list[Any]]] = {}
        self._before: Mapping[str, float] = {}
        self._evaluations = 0
        self._exit = 0
        self._offline = mode == "offline"
        self._run: Any = None
        self._off = False

    def log(self, event: str, row: Mapping[str, Any]) -> None:
        """Send one event."""
        self._safely(self._log, event, row)

    def close(self, report: Report | None) -> str | None:
        """Send summary, figures and patch, and end the W&B run. Says how to send an offline run."""
        self._safely(self._close, report)
        return content.how_to_send(self._folder) if self._offline and not self._off else None

    def _safely(self, action: Any, *arguments: Any) -> None:
        if self._off:
            return
        try:
            action(*arguments)
        except Exception as error:  # whatever fails in W&B (package, disk, network, service), the run goes on
            self._off = True
            notice(f"W&B is switched off for this run: {type(error).__name__}: {error}")

    def _log(self, event: str, row: Mapping[str, Any]) -> None:
        if self._run is None:
            self._begin(row.get("stages", ()))
        if event == "config":
            told = {key: value for key, value in row.items() if key != "request"}  # not who asked
            command = command_without_folders(without_request(row.get("command", "")))
            shown = {**without_folders(told), "command": command}
            self._run.config.update(shown, allow_val_change=True)
            # "muwa.methods.slug.Slug" -> "slug"
            self._method = row.get("method", {}).get("_target_", "").rpartition(".")[0].rpartition(".")[2]
        elif event == "task":
            self._describe(row)
        elif event == "gradients":
            self._rows("gradients", content.GRADIENTS, content.gradient_rows(row))
        elif event == "scores":
            self._rows("scores", content.SCORES, content.score_rows(row))
        elif event == "evaluation":
            self._evaluations += 1
            self._run.log(content.search_point(row, self._evaluations))
            self._rows("search", content.SEARCH, [content.search_row(row, self._evaluations)])
        elif event == "loss":
            self._run.log({"training/step": row["step"], "training/loss": row["loss"]})
        elif event == "edit":
            self._run.summary.update({f"edit/{key}": value for key, value in row.items()})
        elif event == "metrics":
            self._log_metrics(row["when"], {key: value for key, value in row.items() if key != "when"})
        elif event in ("stopped", "failed"):
            self._ends_early(event, row)

    def _begin(self, stages: Sequence[str]) -> None:
        """Start the W&B run, and say what its curves are drawn over."""
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            init_timeout=30,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="muwa",  # instead of the name of this machine
            symlink=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        if not os.environ.get("WANDB_RUN_ID"):  # which `wandb agent` sets
            self._arguments["id"] = run_id(self._folder)
        self._arguments["job_type"] = self._arguments["job_type"] or content.job_type(stages)
        self._run = wandb.init(**self._arguments, settings=settings)
        for steps in ("search/evaluation", "training/step"):
            self._run.define_metric(steps, hidden=True, summary="none")
        self._run.define_metric("training/*", step_metric="training/step")
        # the last step of a search is not the one that was chosen: no summary of it
        self._run.define_metric("search/*", step_metric="search/evaluation", summary="none")

    def _log_metrics(self, when: str, values: Mapping[str, float]) -> None:
        """Log the metrics before or after the edit; after it, also by how much each changed."""
        self._run.log({f"{when}/{key}": value for key, value in values.items()})
        if when == "before":
            self._before = values
        elif changes := content.changes(self._before, values):
            self._run.log(changes)

    def _describe(self, row: Mapping[str, Any]) -> None:
        """Name and tag the run by what it does."""
        if self._arguments["name"] is None:
            self._run.name = content.run_name(self._method, row["names"])
        self._tag(self._method, row["kind"], without_folders(row["model"]))

    def _tag(self, *tags: str) -> None:
        more = map(content.tag, filter(None, tags))
        self._run.tags = tuple(dict.fromkeys([*(self._run.tags or ()), *more]))

    def _ends_early(self, event: str, row: Mapping[str, Any]) -> None:
        """Note that the run was stopped or failed; W&B shows it as such by its exit code.

        After a SIGTERM, which clusters send before they take a machine back, W&B calls the run preempted, and
        a sweep of W&B starts it again.
        """
        self._exit = 1
        self._tag(event)
        about = {key: value for key, value in row.items() if value}
        self._run.summary.update({"status": event, **without_folders(about)})
        if row.get("by") == "SIGTERM":
            self._run.mark_preempting()

    def _rows(self, key: str, columns: tuple[str, ...], rows: list[list[Any]]) -> None:
        """Keep the rows of a table until the end: W&B shows one table a key."""
        self._tables.setdefault((key, columns), []).extend(rows)

    def _send_tables(self) -> None:
        for (key, columns), rows in self._tables.items():
            self._run.log({key: self._table(columns, rows)})

    def _table(self, columns: Sequence[str], rows: list[list[Any]]) -> Any:
        import wandb

        table = wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)
        if self._offline:  # only a file of the run: W&B also makes an artifact of a "table", and notes a path
            table._log_type = "table-file"
        return table

    def _close(self, report: Report | None) -> None:
        if self._run is None:
            return
        if report is not None:
            self._send_report(report)
        self._send_tables()
        patch = self._folder / PATCH
        if patch.is_file() and not self._exit:
            self._send_patch(patch, report)
        self._run.finish(exit_code=self._exit)

    def _send_report(self, report: Report) -> None:
        import wandb

        if self._arguments["name"] is None:
            self._run.name = content.run_name(self._method, report.task.names, report.edit.moves)
        self._tag(*dict.fromkeys(move.tower for move in report.edit.moves))
        self._run.summary.update({"status": "done", **content.summary(report)})
        self._run.notes = content.notes(report)
        plots = content.plots(self._folder / "figures")
        if plots:
            self._run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in plots})
        self._rows("metrics", content.METRICS, content.metric_rows(report))
        if said := answers(report.examples):
            keys = ("role", "question", "expected", "before", "after")
            self._rows("answers", content.ANSWERS, [[one[key] for key in keys] for one in said])

    def _send_patch(self, patch: Path, report: Report | None) -> None:
        import wandb

        metadata = content.patch_metadata(patch, report)
        self._run.summary.update({"patch/sha256": metadata["sha256"], "patch/bytes": metadata["bytes"]})
        if self._offline:
            self._run.save(str(patch), base_path=str(self._folder), policy="now")
            return
        description = content.patch_description(report)
        artifact = wandb.Artifact(
            f"patch-{self._run.id}", type="patch", description=description, metadata=metadata
        )
        artifact.add_file(str(patch))
        self._run.log_artifact(artifact)


def run_id(folder: Path) -> str:
    """The id of a folder's run in W&B. It is made once and kept in `wandb_id.txt` of the folder."""
    kept = folder / "wandb_id.txt"
    if not kept.is_file():
        write_text(kept, uuid.uuid4().hex[:16])
    return kept.read_text()
