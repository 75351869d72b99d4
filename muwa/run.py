"""The services that every stage of a run uses: cache, log, processes, progress bars, a gradient file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from muwa.cache.store import Store
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track

T = TypeVar("T")
Log = Callable[[str, dict[str, object]], None]  # (event, its fields)


def silent(event: str, row: dict[str, object]) -> None:
    """A log that ignores every event."""


@dataclass(frozen=True)
class Run:
    """The services of a run. None of them can change a result, so a run enters no cache key.

    `Run()` has no cache, no log and no progress bars, and computes in a single process.

    Args:
        store: The cache; without one, every value is computed again.
        log: Called with every event of the run; `muwa.report.loggers.Logger` lists the events.
        distributed: The processes that compute gradients together.
        progress: Whether to show progress bars on stderr.
        gradient_file: A file written by `python -m muwa.gradients export`. Its gradients are read instead of
            being computed.
    """

    store: Store | None = None
    log: Log = silent
    distributed: Distributed = ALONE
    progress: bool = False
    gradient_file: Path | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the main rank, which alone reads the cache, searches, evaluates and reports."""
        return self.distributed.is_main

    def cached(
        self,
        stage: str,
        function: Callable[..., Any],
        *args: Any,
        _free: Mapping[str, Any] | None = None,
        _together: bool = False,
        _resume: str | None = None,
        **keywords: Any,
    ) -> Any:
        """`function(*args, **keywords, **_free)`, read back from the cache if it was computed before.

        Args:
            stage: The cache stage: the folder of the cache that holds the values.
            _free: Arguments that cannot change the value. Their values are not part of the key, but the code
                of their classes is (`muwa.cache.keys.service_modules`).
            _together: Whether all ranks compute the value together. Then worker ranks get None.
            _resume: The name of an argument that takes a folder, where an unfinished computation leaves its
                state. The argument is None if there is no cache.
        """
        if self.store is None:
            free = {**(_free or {}), **({_resume: None} if _resume else {})}
            value = function(*args, **keywords, **free)
            return value if self.is_main or not _together else None
        processes = self.distributed if _together else ALONE
        return self.store.get(
            stage, function, *args, _free=_free, _distributed=processes, _resume=_resume, **keywords
        )

    def cached_rows(
        self, stage: str, function: Callable[..., Tensor], owner: Any, items: Any, *, _free: Mapping[str, Any]
    ) -> Tensor:
        """`function(owner, items, **_free)` for a function that computes one row for each item.

        Rows of items that were computed before are read back from the cache.

        Args:
            stage: The cache stage, as in `cached`.
            owner: What each row depends on besides its item: a tower, a preparation, a model.
            items: An object with `digests` (one per item; there must be at least one item) and
                `select(indices)`.
        """
        if self.store is None:
            return function(owner, items, **_free)
        return self.store.rows(stage, function, owner, items, _free=_free)

    def track(
        self, items: Iterable[T], what: str, total: int, *, sizes: Iterable[int] | None = None
    ) -> Iterator[T]:
        """Yield `items`, with a progress bar if this run shows them (`muwa.runtime.progress.track`)."""
        return track(items, what, total, show=self.progress, sizes=sizes)

    def logging_to(self, log: Log) -> Run:
        """The same run with another log."""
        return replace(self, log=log)
