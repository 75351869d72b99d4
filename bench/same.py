"""Compare two runs: what is equal to the bit, and how far the rest is apart.

    python launch.py runtime.threads=1 paths.outputs=outputs/one
    python launch.py runtime.threads=2 paths.outputs=outputs/two
    python -m bench.same outputs/one outputs/two

Each folder is `paths.outputs` of one run with a cache of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench import entry

EQUAL = "equal to the bit"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print one line for each thing that is compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    args = parser.parse_args(argv)
    for what, said in compared(args.one, args.two).items():
        print(f"{what:<22} {said}")


def compared(one: Path, two: Path) -> dict[str, str]:
    """What is compared -> `EQUAL`, or how far the two are apart.

    Raises:
        ValueError: A folder has not one run, or its cache not one gradient of each stage.
    """
    first, second = run_in(one), run_in(two)
    said = {
        f"gradients/{stage}": tensors(*(gradient(out, stage) for out in (one, two)))
        for stage in ("forget", "retain")
    }
    results = [json.loads((run / "results.json").read_text()) for run in (first, second)]
    said["layer"] = values([found["edit"]["layer"] for found in results])
    said["step"] = values([found["edit"]["step"] for found in results])
    said["evaluations"] = values([len(found["trace"]) for found in results])
    for when in ("before", "after"):
        metrics = [
            {name: metric["value"] for name, metric in found["metrics"][when].items()} for found in results
        ]
        apart = [values([metrics[0][name], metrics[1][name]]) for name in metrics[0]]
        worst = [name for name, text in zip(metrics[0], apart, strict=True) if text != EQUAL]
        said[f"metrics {when}"] = (
            "; ".join(f"{name} {values([m[name] for m in metrics])}" for name in worst) or EQUAL
        )
    patches = [run / "patch.safetensors" for run in (first, second)]
    said["patch, tensors"] = tensors(*map(load_file, patches))
    said["patch, bytes"] = EQUAL if patches[0].read_bytes() == patches[1].read_bytes() else "differ"
    return said


def tensors(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> str:
    """`EQUAL`, or the largest difference relative to the largest value of its tensor."""
    if one.keys() != two.keys():
        return f"other tensors: {', '.join(sorted(one.keys() ^ two.keys()))}"
    if all(torch.equal(one[name], two[name]) for name in one):
        return EQUAL
    return f"largest difference {apart(one, two):.1e} of the largest value"


def apart(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a tensor, relative to its largest value."""
    return max(
        (x.double() - two[name].double()).abs().max().item() / (x.double().abs().max().item() or 1)
        for name, x in one.items()
    )


def values(pair: Sequence[Any]) -> str:
    """`EQUAL`, or both values with their relative difference if they are numbers."""
    one, two = pair
    if one == two:
        return EQUAL
    if isinstance(one, str):
        return f"{one} | {two}"
    return f"{one:.9g} | {two:.9g}, {abs(one - two) / max(abs(one), abs(two)):.1e} apart"


def run_in(out: Path) -> Path:
    """The folder of the one run in `out`.

    Raises:
        ValueError: There is none, or there are several, or `out` itself is one.
    """
    if (out / "results.json").is_file():
        raise ValueError(f"{out}: the folder of a run; want its paths.outputs, which holds run and cache")
    found = sorted(path.parent for path in out.glob("*/*/*/results.json"))
    if len(found) != 1:
        raise ValueError(f"{out}: {len(found)} runs in it, want one; give each run its own paths.outputs")
    return found[0]


def gradient(out: Path, stage: str) -> dict[str, torch.Tensor]:
    """The tensors of the one cached gradient of a stage."""
    found = sorted((out / "cache" / "gradients" / stage).glob("*/value.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{out}: {len(found)} entries of gradients/{stage} in its cache, want one")
    return load_file(found[0])


if __name__ == "__main__":
    entry.run("bench.same", main)
