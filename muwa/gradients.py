"""The gradient stage: one mean gradient of each loss, of the whole model, at the unedited weights.

    python -m muwa.gradients export RUN FILE       # hand a run's gradients on; another run reads them: gradients=FILE

Eval mode, no augmentation, a fixed order: the same inputs give the same bits. Sums over pairs are kept rather than means,
so that a retain gradient shared by a whole sweep can be corrected for the few pairs that mention what is being forgotten:
one pass over the batches that hold them gives the loss without them minus the loss with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.backward import PRECISIONS, accumulate, leaving_out, whole
from muwa.cache import Store
from muwa.content import digest
from muwa.losses import by_name
from muwa.models.clip import Clip
from muwa.types import Gradients, Pairs, Task
from muwa.world import ALONE, World

FORMAT = "muwa.gradients/1"


def plan(n: int, batch_size: int, seed: int | Sequence[int]) -> list[list[int]]:
    """Which pairs form which batch: a permutation of `n` by `seed`, cut in `batch_size`."""
    order = np.random.default_rng(seed).permutation(n).tolist()
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def gradient_sum(
    model: Clip, pairs: Pairs, *, loss: str, batch_size: int, seed: int, precision: str = "fp32",
    without: tuple[int, ...] = (), micro_batch_size: int | None = None, world: World = ALONE, progress: bool = False,
) -> dict[str, object]:  # fmt: skip
    """Sum over pairs of the gradient of a batch-mean loss: `sum_b n_b * grad(loss_b)`.

    Args:
        model: Its weights are not changed; gradients are taken of every parameter, in eval mode.
        loss: "cosine" or "contrastive" (`muwa.losses`). Its sign is kept: the gradient points to a *higher* loss.
        batch_size: For the contrastive loss it sets the negatives, so it is part of the result.
        seed: Of the order of pairs.
        precision: "fp32" or "bf16" (`muwa.backward.accumulate`).
        without: Give instead what leaving these pairs out of their batches adds to that sum: one pass over the batches
            that hold them.
        micro_batch_size, world: How the work is cut; they change the result by rounding only.

    Returns:
        {"sum": parameter name -> tensor of its shape, "n": pairs used (negative: left out)}. Parameters the loss does not
        reach are zero.

    Raises:
        ValueError: There are no pairs.

    Source: SLUG (arXiv 2407.11867), section 1.1 of the facts. Differs from the release: eval mode and no
    augmentation; weighted by samples, so that a short last batch does not count as a full one; gradients start from
    zero for every loss.
    """
    if not len(pairs):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    batches = plan(len(pairs), batch_size, seed)
    jobs, left_out = leaving_out(batches, without) if without else (whole(batches), 0)
    total = accumulate(
        model, pairs, jobs, by_name(loss), f"{loss} gradient", precision=precision, micro_batch_size=micro_batch_size,
        world=world, progress=progress,
    )  # fmt: skip
    return {"sum": total, "n": -left_out if without else len(pairs)}


@dataclass(frozen=True)
class Recipe:
    """How gradients are taken: everything beside model and data that enters them."""

    forget_loss: str
    retain_loss: str
    batch_size: int
    seed: int
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for loss in (self.forget_loss, self.retain_loss):
            by_name(loss)  # an unknown one is an error here, before anything is computed
        if self.batch_size < 1:
            raise ValueError(f"method.batch_size: got {self.batch_size}, want at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"method.precision: got {self.precision!r}, want one of {', '.join(PRECISIONS)}")


def gradients(
    model: Clip, task: Task, name: str, recipe: Recipe, *, store: Store, micro_batch_size: int | None = None,
    world: World = ALONE, progress: bool = False,
) -> Gradients | None:  # fmt: skip
    """Mean forget gradient of `name` and mean retain gradient, each part read back from `store` if it was seen before.

    The retain sum over all retain pairs is shared by every request on the same data; pairs of `task.mentions` are taken
    out of it exactly, by one pass over the batches that hold them.

    Args:
        micro_batch_size: Pairs encoded at once; None takes whole batches.
        world: The processes that take gradients together; all of them must call this.

    Returns:
        Means over pairs, sign of the losses; None on all ranks but the first.
    """
    if len(task.mentions) >= len(task.retain):
        raise ValueError(
            f"{name}: all {len(task.retain)} retain pairs mention what is to be forgotten; want some that do not: "
            "name other pairs in dataset.retain, or fewer aliases"
        )
    free = {"progress": progress, "world": world, "micro_batch_size": micro_batch_size}
    own: dict[str, Any] = {"batch_size": recipe.batch_size, "seed": recipe.seed, "precision": recipe.precision}
    own |= {"_free": free, "_world": world}
    forget = store.get("gradients/forget", gradient_sum, model, task.forget[name], loss=recipe.forget_loss, **own)
    kept = {"loss": recipe.retain_loss, **own}
    retain = store.get("gradients/retain", gradient_sum, model, task.retain, **kept)
    less = None
    if task.mentions:
        less = store.get("gradients/mentions", gradient_sum, model, task.retain, without=task.mentions, **kept)
    if not world.leads:
        return None
    n_retain = retain["n"] + (less["n"] if less else 0)
    assert n_retain > 0  # refused above, before anything is computed
    for key, total in retain["sum"].items():  # read back for this call alone: changed in place
        (total.add_(less["sum"][key]) if less else total).div_(n_retain)
        forget["sum"][key].div_(forget["n"])
    return Gradients(forget["sum"], retain["sum"], forget["n"], n_retain, origin(model, task, name, recipe))


def origin(model: Clip, task: Task, name: str, recipe: Recipe) -> dict[str, str]:
    """What gradients depend on, by part: model, forget pairs, retain pairs, losses, batch size and seed."""
    left_out = digest([str(i) for i in task.mentions])
    return {
        "model": model.fingerprint,
        "forget_pairs": task.forget[name].fingerprint,
        "retain_pairs": digest([task.retain.fingerprint, left_out]),
        "losses": f"{recipe.forget_loss}/{recipe.retain_loss}",
        "batch_size": str(recipe.batch_size),
        "seed": str(recipe.seed),
        "precision": recipe.precision,
    }


def write_gradients(path: Path, found: Gradients) -> None:
    """Write gradients as one safetensors file (`forget/<name>`, `retain/<name>`, origin in its metadata), atomically."""
    tensors = {f"forget/{k}": g.contiguous() for k, g in found.forget.items()}
    tensors |= {f"retain/{k}": g.contiguous() for k, g in found.retain.items()}
    about = {"n_forget": found.n_forget, "n_retain": found.n_retain, "origin": dict(found.origin)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    save_file(tensors, draft, metadata={FORMAT: json.dumps(about, sort_keys=True)})
    draft.replace(path)


def read_gradients(path: Path, expected: Mapping[str, str] | None) -> Gradients:
    """Read a file of `write_gradients` back.

    Args:
        expected: What they must have been computed from (`origin`); None takes them unchecked.

    Raises:
        ValueError: Not such a file, or computed from something else; says which parts differ.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()} if about else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"gradients={path}: not a readable gradient file ({error})") from error
    if not about:
        raise ValueError(
            f"gradients={path}: no muwa gradients in it; write one: python -m muwa.gradients export RUN FILE"
        )
    if expected is not None and (wrong := [k for k in expected if about["origin"].get(k) != expected[k]]):
        lines = [f"{k}: file has {str(about['origin'].get(k))[:12]}, this run has {expected[k][:12]}" for k in wrong]
        raise ValueError(
            f"gradients={path}: computed from something else than this run ({'; '.join(lines)}). "
            "Take the same model, data and losses, or leave gradients=null to compute them."
        )

    def side(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")}

    return Gradients(side("forget"), side("retain"), about["n_forget"], about["n_retain"], about["origin"])


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
