"""What a run shows that it does (`muwa.runtime.progress.stage`), in order; whether it makes an edit."""

from collections.abc import Sequence

OPEN = "open the data"
LIBRARIES = "load the libraries"
CURATE = "write the forget set"
LOAD = "load model and data"
BEFORE = "measure before"
EDIT = "make the edit"
AFTER = "measure after"
REPORT = "write the report"


def only_measures(stages: Sequence[str]) -> bool:
    """Whether a run measures what a model carries, and makes no edit.

    >>> only_measures(["eval"]), only_measures(["unlearn", "eval"]), only_measures(["curate", "eval"])
    (True, False, False)
    """
    return "eval" in stages and not {"curate", "unlearn"} & {*stages}
