"""The story of a run: data -> method (gradients, scores, layer search) -> edit -> eval -> report."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from muwa.cache.store import Store
from muwa.data.tasks import curate_only
from muwa.eval.clip.similarity import matrix
from muwa.eval.measure import check_metrics, evaluate, fitting
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.diffusion.model import Diffusion
from muwa.models.vlm.model import Vlm
from muwa.models.vlm.question_answering import QuestionAnswering, conversation
from muwa.patch.apply import write_patch
from muwa.report.loggers import Loggers
from muwa.report.page import verdicts, write_report
from muwa.report.samples import gallery
from muwa.runtime.distributed import Distributed, world
from muwa.runtime.memory import peak_memory, reset_peak
from muwa.types.data import Split, Task
from muwa.types.edit import Edit
from muwa.types.image_requests import ImageSample
from muwa.types.metric import Metric
from muwa.types.questions import AnswerSample
from muwa.types.report import Report

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
Model = Clip | Diffusion | Vlm
MATRIX_NAMES = 12  # retained names in the similarity matrix


def run(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """One run: every stage in turn, everything written to the run's folder.

    Args:
        parts: `model`, `dataset`, `task`, `method` as callables, `eval` and `logger` as mappings of callables:
            what `muwa.config.build` makes of a config.
        settings: The whole config as plain values.

    Returns:
        The objective (`objective`); 0 when `eval` is not among the stages.

    Raises:
        ValueError, FileNotFoundError: bad input, before any compute.
    """
    with world(settings["runtime"]["device"]) as ranks:
        return _run(parts, settings, ranks)


def _run(parts: Mapping[str, Any], settings: Mapping[str, Any], ranks: Distributed) -> float:
    """The run of one process: the first does all of it, the others help with the gradients."""
    stages, folder = settings["stages"], Path(settings["paths"]["run"])
    progress = settings["runtime"]["progress"] and ranks.leads
    if settings["runtime"]["threads"]:
        torch.set_num_threads(settings["runtime"]["threads"])
    reset_peak(settings["runtime"]["device"])  # in a sweep runs follow each other in one process
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    dataset = parts["dataset"]()
    if "curate" in stages and ranks.leads:
        asked = parts["task"].keywords
        kinds = [kind for kind in ("identity", "object") if kind in asked]
        if not kinds:
            raise ValueError("stages=[curate]: this task's forget set is a folder already, there is nothing to curate")
        names = asked[kinds[0]]
        found = curate_only(dataset, names, asked["aliases"], asked["limits"]["forget_pairs"], progress=progress)
        for name, where in found.folders.items():
            print(f"{name}: {found.counts[name]} pairs in {where}", file=sys.stderr)
        seconds["curate"] = time.perf_counter() - started
    if "unlearn" not in stages:
        return 0.0

    model: Model = parts["model"]()
    parts = {**parts, "eval": fitting(model, parts["eval"])}
    check_metrics(model, parts["eval"])
    task: Task = parts["task"](dataset, progress=progress)
    seconds["data"] = time.perf_counter() - started
    store = Store(Path(settings["paths"]["cache"]))
    if not ranks.leads:
        parts["method"](model, task, store=store, world=ranks)
        return 0.0
    with Loggers([make() for make in parts["logger"].values()]) as loggers:
        loggers.log("config", dict(settings))
        report = unlearn(parts, settings, model, task, store, loggers, ranks)
        if report is None:
            return 0.0
        seconds |= store.seconds
        seconds["total"] = time.perf_counter() - started
        loggers.report = replace(report, seconds=seconds)
        if "report" in stages:
            write_report(loggers.report, show_forget=settings["report"]["show_forget"])
    print("\n".join(one["text"] for one in verdicts(report)))
    print(f"{seconds['total']:.1f} s, all of it in {folder}: report.html, results.json, patch.safetensors")
    return report.objective


def unlearn(
    parts: Mapping[str, Any], settings: Mapping[str, Any], model: Model, task: Task, store: Store,
    loggers: Loggers, ranks: Distributed,
) -> Report | None:  # fmt: skip
    """Measure, make the edit, write the patch, measure again. None when `eval` is not among the stages.

    The unedited model is measured first, so that a metric which cannot be had ends the run before the edit is made.
    """
    folder, progress = Path(settings["paths"]["run"]), settings["runtime"]["progress"]
    gradient_file = Path(settings["gradients"]) if settings["gradients"] else None
    device = settings["runtime"]["device"]
    measures = list(parts["eval"].values()) if "eval" in settings["stages"] else []
    before = evaluate(model, task, store=store, metrics=measures, progress=progress)
    earlier = peak_memory(device)
    reset_peak(device)
    started, saved = time.perf_counter(), store.saved
    edit: Edit = parts["method"](
        model, task, store=store, log=loggers.log, gradient_file=gradient_file, world=ranks, progress=progress
    )
    story = {"model": model.source, "task": task.kind, "names": list(task.names), "versions": versions(),
             "method": parts["method"].func.__module__, "data": task.fingerprint}  # fmt: skip
    took, peak = time.perf_counter() - started + store.saved - saved, peak_memory(device)
    owner = model.owner(edit) if isinstance(model, Diffusion) else model.clip if isinstance(model, Vlm) else model
    write_patch(folder / "patch.safetensors", edit, owner, story)
    if "eval" not in settings["stages"]:
        return None

    edited = model.edited(edit)
    after = evaluate(edited, task, store=store, metrics=measures, progress=progress)
    loggers.log("metrics", {"when": "before", **{name: metric.value for name, metric in before.items()}})
    loggers.log("metrics", {"when": "after", **{name: metric.value for name, metric in after.items()}})
    return Report(
        name=settings["name"], folder=folder, objective=objective(before, after), before=before, after=after, edit=edit,
        cost={"seconds": took, "peak_memory_bytes": peak, "bytes": (folder / "patch.safetensors").stat().st_size,
              "parameters": sum(delta.count_nonzero().item() for delta in edit.deltas.values()), "samples": edit.samples},
        task=task, similarity=similarity(model, edited, task.eval, store),
        seconds={}, cache=dict(store.events), peak_memory_bytes=max(earlier, peak_memory(device)),
        provenance=provenance(model, task, settings), drawn=drawings(model, edited, task, store),
        said=answers(model, edited, task, store),
    )  # fmt: skip


def drawings(model: Model, edited: Model, task: Task, store: Store) -> tuple[ImageSample, ...]:
    """A few pictures by both models from the same seeds; none of a CLIP."""
    if isinstance(model, Diffusion) and isinstance(edited, Diffusion):
        return gallery(ImageGenerator(model, store), ImageGenerator(edited, store), task)
    return ()


def answers(model: Model, edited: Model, task: Task, store: Store) -> tuple[AnswerSample, ...]:
    """A few questions answered by both models; none of a model that does not answer."""
    if isinstance(model, Vlm) and isinstance(edited, Vlm):
        return conversation(QuestionAnswering(model, store), QuestionAnswering(edited, store), task)
    return ()


def similarity(model: Model, edited: Model, split: Split, store: Store) -> dict[str, object]:
    """The similarity matrix before and after: {"names", "n" (pictures a row), "before", "after"}.

    Of a pipeline, of the CLIP of its first text encoder; of a vision-language model, of its tower's. Empty where the edit
    left that alone.
    """
    clips = [one if isinstance(one, Clip) else one.clip for one in (model, edited)]
    if not isinstance(model, Clip) and clips[0].weights_fingerprint == clips[1].weights_fingerprint:
        return {}
    base, after = (matrix(Features(one, store), split, MATRIX_NAMES) for one in clips)
    return {"names": base["names"], "n": base["n"], "before": base["values"], "after": after["values"]}


def objective(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> float:
    """What a sweep minimises: what is still recognised plus what was lost, in accuracy (0 is perfect).

    `forget/top1 + max(0, drop of retain/top1) + max(0, drop of utility/top1)`; a metric that was not asked for counts 0. Of
    drawings: `1 - forget/ua + max(0, drop of retain/ira) + max(0, drop of retain/cra)`; of answers:
    `forget/answered` and the drops of `retain/answered` and `utility/answered`.
    """
    if "forget/ua" in after:
        drops = (before[name].value - after[name].value for name in ("retain/ira", "retain/cra") if name in after)
        return 1 - after["forget/ua"].value + sum(max(0.0, drop) for drop in drops)
    if "forget/answered" in after:
        drops = (before[name].value - after[name].value for name in ("retain/answered", "utility/answered"))
        return after["forget/answered"].value + sum(max(0.0, drop) for drop in drops)
    lost = sum(
        max(0.0, before[name].value - after[name].value) for name in ("retain/top1", "utility/top1") if name in after
    )
    return lost + (after["forget/top1"].value if "forget/top1" in after else 0.0)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


def provenance(model: Model, task: Task, settings: Mapping[str, Any]) -> dict[str, object]:
    """What is needed to make the run again, and to know that it was the same."""
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "seed": settings["seed"],
        "model": {"source": model.source, "fingerprint": model.fingerprint}
        | (
            {"sampling": asdict(model.sampling)}
            if isinstance(model, Diffusion)
            else {"max_new_tokens": model.max_new_tokens}
            if isinstance(model, Vlm)
            else {"weights": model.weights_fingerprint}
        ),
        "method": settings["method"]["_target_"].rpartition(".")[0].rpartition(".")[2],
        "data": {"kind": task.kind, "fingerprint": task.fingerprint},
        "device": settings["runtime"]["device"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "command": settings["command"],
    }


def git_commit() -> str | None:
    """The commit of the checkout muwa runs from, with "+changes" when it was edited; None outside one."""
    here = Path(__file__).parent

    def git(*arguments: Sequence[str] | str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *map(str, arguments)], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain") else commit
