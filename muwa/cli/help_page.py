"""The parts of the page `--help`: the groups with a line on each choice, and how muwa was started.

The page itself is muwa/conf/hydra/help/page.yaml.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GROUPS = {  # in the order of the page: what the choices of a group are
    "model": "the weights to edit",
    "task": "what to forget, what to keep, and what to measure on",
    "dataset": "where images and captions come from",
    "method": "how the edit is made",
    "layer_search": "how the layer and the step are found",
    "gradient_source": "which gradients a step follows",
    "whitening": "how method=slug_whitened turns the gradient",
    "eval": "what is measured before and after: a list, such as eval=[forget,retain]",
    "questions": "what is asked about images (vision-language models)",
    "classifier": "what recognises generated images (text-to-image models)",
    "logger": "where the events of a run go: a list",
    "experiment": "a study in one word: it sets several of the groups above",
    "hydra/launcher": "where the runs of a multirun run",
}
WIDTH = 110  # columns of the page in a pipe, and at most


def program(argv0: str) -> str:
    """How the user started muwa, as one types it in a shell.

    >>> program("/opt/bin/muwa"), program("/opt/muwa/__main__.py"), program("../my dir/launch.py")
    ('muwa', 'python -m muwa', "python '../my dir/launch.py'")
    """
    name = Path(argv0).name
    if name == "__main__.py":
        return "python -m muwa"
    return shlex.join(["python", argv0]) if name.endswith(".py") else "muwa"


def shortest() -> str:
    """How this muwa is started: `python launch.py` in a checkout, `muwa` where it is installed."""
    return "python launch.py" if (Path(__file__).parents[2] / "launch.py").is_file() else "muwa"


def choices(folders: Sequence[Path], chosen: Mapping[str, object]) -> str:
    """Every group with its choices, one line on each; an asterisk marks what `chosen` has.

    Args:
        folders: Folders with configs: muwa's, then the user's own.
        chosen: Group -> the choice or the list of choices of the composed config.
    """
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    return "\n\n".join("\n".join(_group(group, folders, chosen, width)) for group in _groups(folders))


def _groups(folders: Sequence[Path]) -> list[str]:
    """The groups of `GROUPS`, then those that only the user's own configs have."""
    own = [path.name for folder in folders for path in sorted(folder.glob("*")) if path.is_dir()]
    return [*GROUPS, *dict.fromkeys(name for name in own if name not in GROUPS and name != "hydra")]


def _group(group: str, folders: Sequence[Path], chosen: Mapping[str, object], width: int) -> Iterator[str]:
    files = {path.stem: path for folder in reversed(folders) for path in (folder / group).glob("*.yaml")}
    picked = chosen.get(group)
    taken = picked if isinstance(picked, Sequence) and not isinstance(picked, str) else [picked]
    yield f"{group}   {GROUPS.get(group, 'your own')}"
    indent = " " * 27
    for name in sorted(files, key=lambda one: (one not in taken, one)):
        mark = "*" if name in taken else " "
        lead = f"  {mark} {name}".ljust(len(indent) - 1) + " "
        text = lead + about(files[name])
        yield from textwrap.wrap(text, max(60, width), subsequent_indent=indent, break_on_hyphens=False)


def about(path: Path) -> str:
    """What the header of a config file says the choice is: the rest of its first line of the form
    `# GROUP=CHOICE -- ...`, and the lines that go on with it; "" without such a line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line for line in lines[:2] if line.startswith("# ") and " -- " in line]
    return header[0].partition(" -- ")[2].partition("   ")[0] if header else ""


def started() -> str:
    """`program` of this process."""
    return program(sys.argv[0])
