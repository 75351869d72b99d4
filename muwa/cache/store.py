"""A cache keyed by content: a function is computed once on the same inputs, in whichever run comes first.

    python -m muwa.cache ls outputs/cache                 # entries, size, age
    python -m muwa.cache why KEY [KEY2] --root ROOT       # the parts of a key; of two: which differ
    python -m muwa.cache clear ROOT [--stage gradients/forget]

A key is the digest of the stage, the function, the code that it reaches, and the fingerprint of every
argument (`muwa.cache.keys`). No path or date is part of it. A file lock for each key lets several processes
share one cache: one computes, the others wait. docs/cache.md says more.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from muwa.cache.entries import compute_seconds, read_entry, start_attempt, write_entry
from muwa.cache.keys import key_of, key_parts
from muwa.cache.mark import mark
from muwa.cache.tensor_table import rows_of
from muwa.drafts import SUFFIX, file_mode, new_file, remove
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.notices import notice


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
        self._read_only = False

    def __repr__(self) -> str:
        return f"Store({str(self._root)!r})"

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
        is_main = _distributed.is_main
        with self._locked(folder) if is_main else nullcontext(False) as writable:
            unfinished = folder.with_name(f"{key}.unfinished") if _resume and writable else None
            free |= {_resume: unfinished} if _resume else {}
            hit, value = read_entry(folder) if is_main else (False, None)
            hit = _distributed.broadcast(hit)
            if not hit:
                about = {"stage": stage, "key": key, "parts": parts} if writable else None
                value = self._compute(lambda: function(*args, **keywords, **free), folder, about, unfinished)
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
    ) -> Any:
        """Compute a value and write it as an entry. Returns the value as the entry gives it back.

        Args:
            about: What key.json says of the entry, without its seconds; None if nothing is written: on a
                worker rank, and in a cache that cannot be written.
            unfinished: The folder of unfinished state, if the computation can be resumed.
        """
        earlier = start_attempt(unfinished) if unfinished else 0.0
        started, saved = time.perf_counter(), self.saved
        try:
            value = make()
        except KeyboardInterrupt as stop:
            stop.add_note(folder.parent.relative_to(self._root).as_posix())  # the stage that is lost
            raise
        # what it read back itself counts with the time that computing that had taken
        seconds = time.perf_counter() - started + self.saved - saved
        if about is None:
            return value
        self.saved += earlier
        for left in folder.parent.glob(f"{folder.name}.*{SUFFIX}"):
            remove(left)  # of a process that died: this one holds the lock
        write_entry(folder, value, {**about, "seconds": seconds + earlier})
        del value  # it is not to be in memory twice
        if unfinished:
            shutil.rmtree(unfinished, ignore_errors=True)
        return read_entry(folder)[1]

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[bool]:
        """Hold the lock of an entry. Gives whether the cache can be written.

        A cache that cannot be written is read without locks: entries appear whole.
        """
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            mark(self._root)
            lock = FileLock(f"{folder}.lock", mode=file_mode())
            lock.acquire()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if not self._read_only:
                notice(f"the cache {self._root} cannot be written ({error.strerror}); it is only read")
            self._read_only = True
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

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
        with self._locked(folder) as writable:
            if writable and not (folder / "key.json").is_file():
                folder.mkdir(exist_ok=True)
                with new_file(folder / "key.json") as draft:
                    draft.write_text(json.dumps({"stage": stage, "key": key, "parts": parts}, sort_keys=True))
            rows, computed = rows_of(
                folder,
                items.digests,
                lambda some: function(owner, items.select(some), **_free),
                writable=writable,
            )
        event = "hit" if not computed else "miss" if computed == len(items.digests) else "partial"
        self._note(stage, event, started)
        return rows

    def _note(self, stage: str, event: str, started: float) -> None:
        self.events[stage] = event if self.events.get(stage, event) == event else "partial"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
