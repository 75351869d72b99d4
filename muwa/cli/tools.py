"""The tools that have a command line of their own: `muwa patch ...` is `python -m muwa.patch ...`."""

from __future__ import annotations

import importlib
import sys

TOOLS = {  # name -> (module with `main`, what it does)
    "patch": ("muwa.patch.__main__", "apply a patch to a checkpoint, remove it, join, show, push or pull it"),
    "cache": ("muwa.cache.__main__", "list the entries of the cache, compare two keys, clear it"),
    "gradients": ("muwa.gradients.__main__", "write the gradients of a run to a file"),
    "data": ("muwa.data.__main__", "find the pairs of a name in LAION's metadata, before any download"),
    "wandb": ("muwa.report.wandb_preview", "show on one page what W&B gets of runs that were logged offline"),
    "retrained": ("muwa.miniature.retrained", "train the miniature CLIP again without one person"),
}


def run_tool(name: str) -> int:
    """Run a tool on the words that follow its name in `sys.argv`. Returns the exit code."""
    sys.argv = [f"muwa {name}", *sys.argv[2:]]  # argparse shows the first as the name of the program
    return importlib.import_module(TOOLS[name][0]).main()
