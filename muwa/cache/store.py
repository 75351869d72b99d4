"""A cache keyed by content: a function is computed once on the same inputs, in whichever run comes first.

    python -m muwa.cache ls outputs/cache                 # entries, size, age
    python -m muwa.cache why KEY [KEY2] --root ROOT       # the parts of a key; of two: which differ
    python -m muwa.cache clear ROOT [--stage gradients/forget]

A key is the digest of the stage, the function, the code that it reaches, and the fingerprint of every
argument (`muwa.cache.keys`). No path or date is part of it. A file lock for each key lets several processes
share one cache: one computes, the others wait. docs/cache.md says more.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from muwa.cache.entries import compute_seconds, read_entry, start_attempt, write_entry
from muwa.cache.keys import key_of, key_parts
from muwa.cache.tensor_table import rows_of
from muwa.runtime.distributed import ALONE, Distributed


class Store:
    """The cache in the folder `root`, with a record of how this run used it.

    Attributes:
        events: Stage -> "hit" (all read back), "miss" (all computed) or "partial" (some of each).
        seconds: Stage -> seconds that this run spent in it.
        saved: Seconds of earlier computation that this run reused. An entry that was read back counts with
            the time that it took to compute, less the time of reading. A resumed computation that this run
            finished counts with the time of its stopped attempts.
    """

    def __init__(self, root: str | Path):
        self._root = Path(root)
        self.events: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.saved = 0.0

    def get(
        self,
        stage: str,
        function: Callable[..., Any],
        *args: Any,
        _free: Mapping[str, Any] | None = None,
        _distributed: Distributed = ALONE,
        _resume: str | None = None,
        **keywords: Any,
    ) -> Any:
        """`function(*args, **keywords, **_free)`, read back from the cache if it was computed before.

        Args:
            stage: The cache stage: the folder of the entries under the root, and the name in `events` and
                `seconds`.
            _free: Arguments that cannot change the result (progress bars, loggers). Their values are not part
                of the key, but the code of their classes is (`muwa.cache.keys.service_modules`).
            _distributed: The processes that compute the value together. Only the main rank reads, writes and
                gets the value; worker ranks get None.
            _resume: The name of an argument that takes a folder for unfinished state. A later attempt at the
                same value gets the same folder. The folder is not part of the key, and it is removed when the
                value is written.

        Raises:
            TypeError: An argument or the value is of a kind that the cache does not take.
        """
        started = time.perf_counter()
        free = {**(_free or {}), **({_resume: None} if _resume else {})}
        parts = key_parts(stage, function, args, keywords, free)
        key = key_of(parts)
        folder = self._root / stage / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f"{key}.unfinished") if _resume else None
        free |= {_resume: unfinished} if _resume else {}
        is_main = _distributed.is_main
        with FileLock(f"{folder}.lock") if is_main else nullcontext():
            hit, value = read_entry(folder) if is_main else (False, None)
            hit = _distributed.broadcast(hit)
            if not hit:
                about = {"stage": stage, "key": key, "parts": parts} if is_main else None
                self._compute(lambda: function(*args, **keywords, **free), folder, about, unfinished)
                value = read_entry(folder)[1] if is_main else None
        self._note(stage, "hit" if hit else "miss", started)
        if hit and is_main:
            self.saved += compute_seconds(folder) - (time.perf_counter() - started)
        return value

    def _compute(
        self,
        make: Callable[[], Any],
        folder: Path,
        about: Mapping[str, object] | None,
        unfinished: Path | None,
    ) -> None:
        """Compute a value and write it as an entry.

        It returns nothing, so that the value is never in memory twice: the caller reads the entry.

        Args:
            about: What key.json says of the entry, without its seconds; None on a worker rank, which computes
                with the others and writes nothing.
            unfinished: The folder of unfinished state, if the computation can be resumed.
        """
        is_main = about is not None
        earlier = start_attempt(unfinished) if unfinished and is_main else 0.0
        started, saved = time.perf_counter(), self.saved
        value = make()
        # what it read back itself counts with the time that computing that had taken
        seconds = time.perf_counter() - started + self.saved - saved
        if about is not None:
            self.saved += earlier
            write_entry(folder, value, {**about, "seconds": seconds + earlier})
            if unfinished:
                shutil.rmtree(unfinished, ignore_errors=True)

    def rows(
        self, stage: str, function: Callable[..., Tensor], owner: Any, items: Any, *, _free: Mapping[str, Any]
    ) -> Tensor:
        """`function(owner, items, **_free)` for a function that computes one row for each item.

        The row of an item must not depend on the other items. Rows that were computed before are read back.

        Args:
            stage: The cache stage, as in `get`.
            owner: What each row depends on besides its item: a tower, a preparation, a model.
            items: An object with `digests` (one per item; there must be at least one item) and
                `select(indices)`.
        """
        started = time.perf_counter()
        parts = key_parts(stage, function, (owner,), {}, _free)
        key = key_of(parts)
        folder = self._root / stage / key
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "key.json").is_file():
                draft = folder / "key.draft"
                draft.write_text(json.dumps({"stage": stage, "key": key, "parts": parts}, sort_keys=True))
                os.replace(draft, folder / "key.json")
            rows, computed = rows_of(
                folder, items.digests, lambda some: function(owner, items.select(some), **_free)
            )
        event = "hit" if not computed else "miss" if computed == len(items.digests) else "partial"
        self._note(stage, event, started)
        return rows

    def _note(self, stage: str, event: str, started: float) -> None:
        self.events[stage] = event if self.events.get(stage, event) == event else "partial"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
