"""How a run ended, in a file of its folder: `.hydra/status.txt`. It imports nothing that takes time to load.

The first line is the status: "done", "failed" or "stopped" (by Ctrl-C or a signal). The rest says why.
"""

from __future__ import annotations

from pathlib import Path

from muwa.data.addresses import hide
from muwa.drafts import write_text

DONE, FAILED, STOPPED = "done", "failed", "stopped"
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


def _file(run: Path) -> Path:
    return run / ".hydra" / "status.txt"
