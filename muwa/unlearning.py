"""The stages unlearn, eval and report: metrics before -> method -> patch -> metrics after -> report.

For SLUG, the method (muwa/methods/slug.py) is gradients -> scores -> layer search.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from muwa.cache.store import Store
from muwa.carried import task_of, with_original
from muwa.data.addresses import redacted
from muwa.data.dataset import Dataset
from muwa.data.image_files import manifest
from muwa.eval.clip.similarity import matrix
from muwa.eval.measure import check_measures, evaluate, fitting
from muwa.fingerprint import file_digest
from muwa.methods.base import Method, make_edit
from muwa.models.base import Editable, Weighted
from muwa.patch.apply import STATE, write_patch
from muwa.patch.carrying import Carrying, carry
from muwa.patch.change import result_of, uneditable
from muwa.patch.ledger import state_of
from muwa.report.loggers import Loggers
from muwa.report.page import write_report
from muwa.report.terminal import print_outcome
from muwa.run import Run
from muwa.runtime import threads
from muwa.runtime.devices import check_device
from muwa.runtime.distributed import Distributed, join
from muwa.runtime.memory import peak_memory, reset_peak
from muwa.runtime.notices import notice, recorded_notices
from muwa.runtime.progress import end_display, stage
from muwa.types.data import PROMPTS, Task
from muwa.types.edit import Edit
from muwa.types.finite import check_finite
from muwa.types.metric import Metric
from muwa.types.report import CARD, PATCH, Report
from muwa.types.short import short_repr
from muwa.types.stages import AFTER, BEFORE, EDIT, LOAD, REPORT, only_measures
from muwa.types.verdict import Rules

log = logging.getLogger(__name__)

LIBRARIES = (
    "muwa",
    "torch",
    "open_clip_torch",
    "transformers",
    "diffusers",
    "webdataset",
    "hydra-core",
    "safetensors",
    "numpy",
)
MATRIX_NAMES = 12  # retained names in the similarity matrix


@dataclass(frozen=True)
class EditWithCost:
    """An edit, and the cost of making it.

    Args:
        seconds: Seconds the method takes with an empty cache: cached results count with their original
            compute time.
        peak_memory: The peak memory of the method, in bytes.
    """

    edit: Edit
    seconds: float
    peak_memory: int

    __repr__ = short_repr


def run(
    parts: Mapping[str, Any],
    dataset: Dataset,
    settings: Mapping[str, Any],
    seconds: Mapping[str, float] | None = None,
) -> float:
    """The stages unlearn, eval and report. Everything is written to the folder of the run.

    Args:
        parts: What `muwa.config.build` makes of a config.
        dataset: The loaded data set of the parts.
        settings: The whole config as plain values.
        seconds: Seconds that earlier stages took, by stage; the report shows them too.

    Returns:
        The objective (`objective`). It is 0, which is also the perfect score, on worker ranks and if `eval`
        is not among the stages.

    Raises:
        ValueError, FileNotFoundError: Bad input. Most of it is found before any compute. A metric that
            cannot be computed fails on the unedited model, before the edit.
    """
    with join(settings["runtime"]["device"]) as distributed, recorded_notices() as notices:
        return _run(parts, dataset, settings, dict(seconds or {}), distributed, notices)


def _run(
    parts: Mapping[str, Any],
    dataset: Dataset,
    settings: Mapping[str, Any],
    seconds: dict[str, float],
    distributed: Distributed,
    notices: Sequence[str],
) -> float:
    """The run of one process: the main rank does everything, worker ranks help to compute gradients.

    Args:
        notices: What this run told the user so far (`muwa.runtime.notices`); they grow while it goes on.
    """
    stages, runtime = settings["stages"], settings["runtime"]
    torch.set_num_threads(runtime["threads"] or min(torch.get_num_threads(), threads.available()))
    check_device(runtime["device"])
    reset_peak(runtime["device"])  # the runs of a sweep follow each other in one process
    began = time.perf_counter()
    earlier = sum(seconds.values())
    progress = runtime["progress"] and distributed.is_main
    only_eval = only_measures(stages)
    with stage(LOAD):
        carrying = carry(parts["model"](), settings["patches"])
        model = carrying.model
        for clip in model.clips.values():
            check_finite(clip.weights, f"{model.source}: weight")
        if only_eval:
            carrying = with_original(carrying, parts["model"], settings["base"])
        with manifest(Path(dataset.curated) / ".images.parquet"):
            task = task_of(carrying, parts["task"], dataset, settings, progress)
    seconds["data"] = time.perf_counter() - began
    file = Path(settings["gradients"]) if settings["gradients"] else None
    store = Store(Path(settings["paths"]["cache"]))
    services = Run(store, distributed=distributed, progress=progress, gradient_file=file)
    if not distributed.is_main:
        if not only_eval:
            make_edit(parts["method"], model, task, services)
        return 0.0
    with Loggers([make() for make in parts["logger"].values()]) as loggers:
        loggers.log("config", redacted(dict(settings)))
        loggers.log("task", {"kind": task.kind, "names": list(task.names), "model": model.source})
        services = services.logging_to(loggers.log)
        made = measure if only_eval else unlearn
        report = made(parts, settings, carrying, task, services)
        seconds |= store.seconds
        seconds["total"] = earlier + time.perf_counter() - began
        if report is not None:
            about = {**report.provenance, "warnings": list(notices)}
            report = loggers.report = replace(report, seconds=seconds, provenance=about)
            written = "report" in stages or only_eval
            if written:
                with stage(REPORT):
                    write_report(report, show_forget=settings["report"]["show_forget"])
    end_display()
    if report is not None:
        print_outcome(report)
    pages = ["report.html", CARD, "results.json"] if report is not None and written else []
    files = ", ".join([*pages, *([] if only_eval else [PATCH])])
    took = earlier + time.perf_counter() - began  # with the report, whose time it cannot hold itself
    print(f"Finished in {took:.1f} s. Output in {settings['paths']['run']}: {files}")
    for line in loggers.last_words:
        print(line)
    return report.objective if report is not None else 0.0


def measure(
    parts: Mapping[str, Any], settings: Mapping[str, Any], carrying: Carrying, task: Task, run: Run
) -> Report:
    """Measure the unedited model and the model as it was shipped. No edit is made, no patch is written."""
    model, original = carrying.model, carrying.original or carrying.model
    measures = fitting(model, parts["eval"])
    check_measures(model, task, measures)
    with stage(BEFORE):
        observer = original.observe(run)
        before = evaluate(observer, task, measures)
    with stage(AFTER):
        shipped = model.observe(run)
        after = evaluate(shipped, task, measures)
    _log_metrics(run, before, after)
    peak = peak_memory(settings["runtime"]["device"])
    size = sum(Path(patch).stat().st_size for patch in settings["patches"])
    about = dict(original.about()) if carrying.original else None
    report = _report(settings, carrying.edit, task, before, after)
    return replace(
        report,
        similarity=similarity(original, model, task, run),
        cache=dict(run.store.events) if run.store else {},
        peak_memory_bytes=peak,
        provenance={
            **provenance(model, task, settings),
            "measures": list(measures),
            "observer": model.observer.__name__,
            "base": about,
        },
        examples=observer.examples(shipped, task),
        cost=cost(EditWithCost(carrying.edit, 0.0, peak), size),
        requests=carrying.requests,
        edited={"fingerprint": model.fingerprint},
    )


def _report(
    settings: Mapping[str, Any],
    edit: Edit,
    task: Task,
    before: Mapping[str, Metric],
    after: Mapping[str, Metric],
) -> Report:
    """A report with what was measured."""
    return Report(
        name=settings["name"],
        folder=Path(settings["paths"]["run"]),
        objective=objective(before, after),
        before=before,
        after=after,
        edit=edit,
        task=task,
        similarity={},
        seconds={},
        cache={},
        peak_memory_bytes=0,
        rules=Rules(**settings["verdict"]),
        request=dict(settings["request"]),
    )


def unlearn(
    parts: Mapping[str, Any], settings: Mapping[str, Any], carrying: Carrying, task: Task, run: Run
) -> Report | None:
    """Check everything, measure, make the edit, write the patch, and measure again.

    The unedited model is measured first: a metric that cannot be computed then ends the run before the edit.

    Returns:
        The report; None without the stage `eval`.
    """
    device, folder = settings["runtime"]["device"], Path(settings["paths"]["run"])
    model = carrying.model
    measures = fitting(model, parts["eval"]) if "eval" in settings["stages"] else {}
    check_measures(model, task, measures)
    parts["method"].check(model, task, run)
    with stage(BEFORE):
        observer = model.observe(run)
        before = evaluate(observer, task, measures)
    earlier = peak_memory(device)
    patch = folder / PATCH
    with stage(EDIT):
        made = _make(parts["method"], model, task, run, device)
        base = model.patch_base(made.edit)
        about = patch_provenance(parts["method"], model, task)
        if carrying.requests:
            about[STATE] = state_of(carrying.requests, made.edit.deltas, base.weights_fingerprint)
        write_patch(patch, made.edit, base, about)
        if not carrying.requests:
            _name_unedited(patch, settings["model"])
    if "eval" not in settings["stages"]:
        return None
    with stage(AFTER):
        edited = model.edited(made.edit)
        observer_after = edited.observe(run)
        after = evaluate(observer_after, task, measures)
        matrices = similarity(model, edited, task, run)
    _log_metrics(run, before, after)
    return replace(
        _report(settings, made.edit, task, before, after),
        similarity=matrices,
        cache=dict(run.store.events) if run.store else {},
        peak_memory_bytes=max(earlier, made.peak_memory, peak_memory(device)),
        provenance={
            **provenance(model, task, settings),
            "measures": list(measures),
            "observer": model.observer.__name__,
        },
        examples=observer.examples(observer_after, task),
        cost=cost(made, patch.stat().st_size),
        requests=carrying.requests,
        edited={
            "fingerprint": edited.fingerprint,
            "weights": edited.patch_base(made.edit).weights_fingerprint,
            "base": base.weights_fingerprint,
            "patch": file_digest(patch),
            **_result(patch, model, base),
        },
    )


def patch_provenance(method: Method, model: Editable, task: Task) -> dict[str, object]:
    """What the patch file says about its origin."""
    return {
        "model": model.source,
        "task": task.kind,
        "names": list(task.names),
        "versions": versions(),
        "method": type(method).__module__,
        "data": task.fingerprint,
    }


def _make(method: Method, model: Editable, task: Task, run: Run, device: str) -> EditWithCost:
    """Make the edit; measure its time and memory."""
    reset_peak(device)
    started, saved = time.perf_counter(), run.store.saved if run.store else 0.0
    edit = make_edit(method, model, task, run)
    seconds = time.perf_counter() - started + (run.store.saved if run.store else 0.0) - saved
    return EditWithCost(edit, seconds, peak_memory(device))


def _log_metrics(run: Run, before: Mapping[str, Metric], after: Mapping[str, Metric]) -> None:
    """Log the values of all metrics, those before the edit first."""
    for when, metrics in (("before", before), ("after", after)):
        run.log("metrics", {"when": when, **{name: metric.value for name, metric in metrics.items()}})


def cost(made: EditWithCost, size: int) -> dict[str, float]:
    """What the method cost; nothing but the size of the patches where no edit was made.

    Args:
        size: The size of the patch file, in bytes.

    Returns:
        "seconds"; "peak_memory_bytes"; "bytes" of the patch file; "parameters", the number of weights that
        changed; "samples", the number of training pairs whose gradient was taken.
    """
    changed = sum(delta.count_nonzero().item() for delta in made.edit.deltas.values())
    return {
        "seconds": made.seconds,
        "peak_memory_bytes": made.peak_memory,
        "bytes": size,
        "parameters": changed,
        "samples": made.edit.samples,
    }


def similarity(model: Editable, edited: Editable, task: Task, run: Run) -> dict[str, object]:
    """The similarity matrices of the model's first CLIP, before and after the edit.

    Returns:
        "names", "n" (images per row), "before" and "after". Returns {} if the task has no images, or if the
        model is not itself a CLIP and its first CLIP was not edited.
    """
    if task.kind == PROMPTS:
        return {}
    (encoder, clip), changed = next(iter(model.clips.items())), next(iter(edited.clips.values()))
    if encoder and clip.weights_fingerprint == changed.weights_fingerprint:
        return {}
    base, after = (matrix(one.observe(run), task.eval, MATRIX_NAMES) for one in (clip, changed))
    return {"names": base["names"], "n": base["n"], "before": base["values"], "after": after["values"]}


def _name_unedited(patch: Path, model: Mapping[str, Any]) -> None:
    """Tell the user which files of the model's folder would bring the forgotten back.

    Args:
        model: The settings of the model.
    """
    folder = local_folder(model)
    if folder is None:
        return
    try:
        found = uneditable(patch, folder)
    except (ValueError, KeyError, OSError) as error:  # it must not cost the run its results
        notice(f"{folder}: whether other weight files in it hold what was edited is not known ({error})")
        return
    for file, why in found.items():
        notice(
            f"{folder}: {file} brings the forgotten back to whoever loads it ({why}); "
            "`python -m muwa.patch apply` leaves it out of its copy"
        )


def _result(patch: Path, model: Editable, base: Weighted) -> dict[str, str]:
    """`result_of` the patch; empty where the model's files are not on this machine, or are not its base."""
    if model.place is None:
        return {}
    try:
        return result_of(patch, model.place, base.weights)
    except (ValueError, KeyError, OSError) as error:  # such as patches that were put on in memory
        log.info("the weights that `apply` will write are not known: %s", error)
        return {}


def local_folder(model: Mapping[str, Any]) -> Path | None:
    """The folder of this machine that a model is read from; None for a file, a hub id and a shipped model.

    >>> local_folder({"path": "."}), local_folder({"name": "local-dir:."}), local_folder({"name": "ViT-B-32"})
    (PosixPath('.'), PosixPath('.'), None)
    """
    name = str(model.get("name") or "")
    place = model.get("path") or (name.removeprefix("local-dir:") if name.startswith("local-dir:") else None)
    return Path(place) if place and Path(place).is_dir() else None


def objective(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> float:
    """What a sweep minimises: how much of the target is still recognised plus how much of the rest was lost.

    0 is perfect. It is a sum over the metrics with `reading.in_objective`: the rate at which the target is
    still recognised (role "forgotten"), the drop of the rate, if it dropped (role "kept"), and the rise of
    the rate at which earlier names are recognised (role "earlier").
    """
    total = 0.0
    for name, metric in after.items():
        reading = metric.reading
        if reading.in_objective and reading.role == "forgotten":
            total += metric.still_recognised
        elif reading.in_objective and reading.role == "kept":
            total += max(0.0, before[name].value - metric.value)
        elif reading.in_objective and reading.role == "earlier":
            total += max(0.0, metric.still_recognised - before[name].still_recognised)
    return total


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **libraries}


def provenance(model: Editable, task: Task, settings: Mapping[str, Any]) -> dict[str, object]:
    """What is needed to repeat the run, and to check that it was the same."""
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "seed": settings["seed"],
        "model": dict(model.about()),
        # "muwa.methods.slug.Slug" -> "slug"
        "method": settings["method"]["_target_"].rpartition(".")[0].rpartition(".")[2],
        "data": {"kind": task.kind, "fingerprint": task.fingerprint},
        "device": settings["runtime"]["device"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "command": settings["command"],
    }


def git_commit() -> str | None:
    """The commit of the checkout that muwa runs from, with "+changes" if files differ; None outside one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain") else commit
