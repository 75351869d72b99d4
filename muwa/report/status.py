"""How a run ended, in a file of its folder, `.hydra/status.txt`; and how many runs a multirun makes.

The first line of a status is "done", "failed" or "stopped" (by Ctrl-C or a signal). The rest says why. This
module imports nothing that takes time to load.
"""

from __future__ import annotations

from pathlib import Path

from muwa.data.addresses import hide
from muwa.drafts import write_text

DONE, FAILED, STOPPED = "done", "failed", "stopped"
UNFINISHED = "unfinished"  # at work, in a queue, or killed
_PLANNED = ".runs.txt"  # in the folder of a multirun
_LONGEST = 300  # letters of a reason


def begin_run(run: Path) -> None:
    """Forget how an earlier attempt in this folder ended."""
    _file(run).unlink(missing_ok=True)


def end_run(run: Path, status: str, why: str = "") -> None:
    """Note in a run's folder how it ended.

    Args:
        why: The reason, if it is not done. Its first line is kept, without the secrets of URLs and commands.
    """
    first = hide(why).strip().partition("\n")[0][:_LONGEST]
    write_text(_file(run), f"{status}\n{first}".strip())


def status_of(run: Path) -> tuple[str, str]:
    """(Status, why) of a run; the status is "" if the run is unfinished: at work, in a queue, or killed."""
    if not _file(run).is_file():
        return "", ""
    status, _, why = _file(run).read_text(encoding="utf-8").partition("\n")
    return status, why


def begin_sweep(sweep: Path, runs: int | None) -> None:
    """Note in a multirun's folder how many runs it makes; None forgets what an earlier one noted there."""
    if runs is None:
        (sweep / _PLANNED).unlink(missing_ok=True)
    else:
        write_text(sweep / _PLANNED, str(runs))


def planned_runs(sweep: Path) -> int | None:
    """How many runs a multirun makes, those that have not started among them.

    None if nobody noted it, or if the note is damaged: it must not cost the pages.
    """
    note = sweep / _PLANNED
    text = note.read_bytes() if note.is_file() else b""
    return int(text) if text.isdigit() else None


def _file(run: Path) -> Path:
    return run / ".hydra" / "status.txt"
