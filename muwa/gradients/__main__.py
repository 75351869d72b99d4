"""Hand the gradients of a finished run on to another one.

python -m muwa.gradients export RUN FILE       # another run reads them: gradients=FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.cache.store import Store
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import Recipe, gradients
from muwa.models.clip.model import Clip
from muwa.types.data import Task
from muwa.types.gradients import Gradients


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `export RUN FILE` copies a run's gradients out of its cache. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write the gradients of a finished run to one file")
    export.add_argument("run", type=Path, help="a run's folder (with results.json)")
    export.add_argument("file", type=Path)
    export.add_argument("--concept", help="which name, when the run forgot several")
    args = parser.parse_args(argv)
    try:
        write_gradients(args.file, from_run(args.run, args.concept))
    except (ValueError, OSError) as error:
        print(f"muwa.gradients: {error}", file=sys.stderr)
        return 2
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.1f} MB")
    return 0


def from_run(run: Path, concept: str | None) -> Gradients:
    """The gradients of a finished run, read back from its cache (computed again where that is gone).

    Raises:
        ValueError: `run` is not a run's folder, it forgot several names and none was given, or it took no such gradients.
    """
    from muwa import config  # the command line needs the run's config; the stage does not

    cfg = config.read_run(run)
    parts = config.build(cfg)
    task: Task = parts["task"](parts["dataset"]())
    if concept is None and len(task.names) == 1:
        concept = task.names[0]
    if concept not in task.names:
        raise ValueError(f"{run}: --concept is {concept!r}, want one of {', '.join(task.names)}")
    recipe = recipe_of(parts["method"].keywords, run)
    clip = clip_of(parts["model"](), run)
    found = gradients(clip, task, concept, recipe, store=Store(Path(cfg.paths.cache)), progress=True)
    assert found is not None  # this process is alone
    return found


def recipe_of(method: Mapping[str, Any], run: Path) -> Recipe:
    """How a run's method, given by its settings, took gradients.

    Raises:
        ValueError: It took none, or of something else than the CLIP's losses.
    """
    if lacking := [key for key in ("forget_loss", "retain_loss", "batch_size", "seed") if key not in method]:
        raise ValueError(f"{run}: its method takes no mean gradients ({', '.join(lacking)} not among its settings)")
    if method.get("gradient", "clip") != "clip":
        raise ValueError(f"{run}: method.gradient={method['gradient']}, want a run of method.gradient=clip to export")
    return Recipe(
        method["forget_loss"],
        method["retain_loss"],
        method["batch_size"],
        method["seed"],
        method.get("precision", "fp32"),
    )


def clip_of(model: Any, run: Path) -> Clip:
    """The CLIP that a run took gradients of: the model, or a pipeline's only text encoder, or a tower's own.

    Raises:
        ValueError: There are two.
    """
    if isinstance(model, Clip):
        return model
    if len(clips := getattr(model, "clips", ())) > 1:
        raise ValueError(
            f"{run}: its model has {len(clips)} text encoders, want one: a file holds gradients of one CLIP"
        )
    return model.clip


if __name__ == "__main__":
    sys.exit(main())
