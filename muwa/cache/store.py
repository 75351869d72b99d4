"""A cache keyed by content: the same function on the same inputs is computed once, by whichever run comes first.

    python -m muwa.cache ls outputs/cache                 # entries, size, age
    python -m muwa.cache why KEY [KEY2] --root ROOT       # what a key is made of; of two: what differs
    python -m muwa.cache clear ROOT [--stage gradients/forget]

A key is the digest of stage, function, sources of muwa and the fingerprint of every argument; no name, path or date.
Entries are written to a draft folder and renamed, so an interrupted write is not a hit; a file lock a key lets several
processes share one cache. Values are JSON and safetensors, never pickle.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from muwa.cache.code import code_fingerprint
from muwa.cache.tensor_table import rows_of
from muwa.fingerprint import Content, digest, fingerprint
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types import data, edit, gradients, metric, search

# The records that a value may hold: the dataclasses of muwa.types.
RECORDS: dict[str, type] = {
    name: record
    for module in (data, edit, gradients, metric, search)
    for name, record in vars(module).items()
    if dataclasses.is_dataclass(record) and isinstance(record, type)
}


_PLAIN = (str, bytes, int, float, Path, Tensor)  # values that hold no code


class Store:
    """The cache at `root`, and what this run found in it: `events` (stage -> "hit", "miss", "partial") and `seconds`.

    `saved` is what entries that were read back had taken to compute, in seconds, less what reading took; and what stopped
    attempts had taken, of what this run finished."""

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
        """`function(*args, **keywords, **_free)`, read back if it was computed before.

        Args:
            stage: The folder of its entries under the root, and its name in `events` and `seconds`.
            _free: Arguments that cannot change the result (progress bars, loggers); they are not part of the key.
            _distributed: The processes that compute it together. The main rank alone reads, writes and gets the value;
                worker ranks get None.
            _resume: The name of an argument that is given a folder for what an unfinished computation leaves behind: the
                same one whenever the same value is computed. It is no part of the key, and removed with the value written.

        Raises:
            TypeError: An argument or the value is of a kind that the cache does not take.
        """
        started = time.perf_counter()
        free = {**(_free or {}), **({_resume: None} if _resume else {})}
        parts = self._parts(stage, function, args, keywords, free)
        key = digest([json.dumps(parts, sort_keys=True)])
        folder = self._root / stage / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f"{key}.unfinished")
        free |= {_resume: unfinished} if _resume else {}
        with FileLock(f"{folder}.lock") if _distributed.is_main else nullcontext():
            found, value = _read(folder) if _distributed.is_main else (False, None)
            found = _distributed.broadcast(found)
            if not found:
                earlier = _earlier(unfinished) if _resume and _distributed.is_main else 0.0
                value, seconds = self._computed(lambda: function(*args, **keywords, **free))
                if _distributed.is_main:
                    self.saved += earlier
                    _write(
                        folder,
                        value,
                        {"stage": stage, "key": key, "seconds": seconds + earlier, "parts": parts},
                    )
                    shutil.rmtree(unfinished, ignore_errors=True)
                value = None  # before it is read back: never two of them in memory
                if _distributed.is_main:
                    value = _read(folder)[1]
        self._note(stage, "hit" if found else "miss", started)
        if found and _distributed.is_main:
            self.saved += json.loads((folder / "key.json").read_text())["seconds"] - (
                time.perf_counter() - started
            )
        return value

    def _computed(self, make: Callable[[], Any]) -> tuple[Any, float]:
        """(`make()`, the seconds it took; what it read back itself counts with what that had taken)."""
        started, saved = time.perf_counter(), self.saved
        return make(), time.perf_counter() - started + self.saved - saved

    def rows(
        self, stage: str, function: Callable[..., Tensor], owner: Any, items: Any, *, _free: Mapping[str, Any]
    ) -> Tensor:
        """`function(owner, items, **_free)` for a function that gives each item a row of its own, item by item.

        Args:
            owner: What the rows depend on beside their item: a tower, a preparation.
            items: Something with `digests` (one an item, at least one) and `select(indices)`.
        """
        started = time.perf_counter()
        parts = self._parts(stage, function, (owner,), {}, _free)
        key = digest([json.dumps(parts, sort_keys=True)])
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
        self._note(
            stage, "hit" if not computed else "miss" if computed == len(items.digests) else "partial", started
        )
        return rows

    def _note(self, stage: str, event: str, started: float) -> None:
        self.events[stage] = event if self.events.get(stage, event) == event else "partial"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    @staticmethod
    def _parts(
        stage: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        keywords: Mapping[str, Any],
        free: Mapping[str, Any],
    ) -> dict[str, str]:
        """Argument name -> fingerprint, with the stage, the function and the code that it reaches.

        A function may be a record that is called (a search with its settings): its fields are arguments too.
        """
        inner, first, more = function, (), {}
        if isinstance(function, functools.partial):
            inner, first, more = function.func, function.args, function.keywords
        name, arguments = _name_of(inner), {}
        if dataclasses.is_dataclass(inner):
            arguments["argument self"] = fingerprint(inner)
        bound = inspect.signature(inner).bind_partial(*first, *args, **{**more, **keywords})
        bound.apply_defaults()  # so that a default that is written out is the same call
        given = {name: value for name, value in bound.arguments.items() if name not in free}
        arguments |= {f"argument {name}": fingerprint(value) for name, value in given.items()}
        code = code_fingerprint(modules_of([inner, *given.values()]) | _services(free))
        return {"stage": stage, "function": name, "code": code, **arguments}


def _name_of(function: Callable[..., Any]) -> str:
    """Module and name of a function, or of the class of a record that is called.

    Raises:
        TypeError: It has no name of its own (a lambda, an inner function).
    """
    if dataclasses.is_dataclass(function):
        return f"{type(function).__module__}.{type(function).__qualname__}"
    fingerprint(function)  # refuses what has no name of its own
    return f"{function.__module__}.{function.__qualname__}"


def modules_of(values: Iterable[Any]) -> set[str]:
    """The modules that define the functions, classes and records in `values`, at any depth.

    Modules of Python and of installed packages are left out: provenance gives their versions. Of a `Content` that is no
    dataclass (a model) the class counts, not its fields: its fingerprint stands for them.
    """
    found: set[str] = set()
    for value in values:
        if value is None or isinstance(value, _PLAIN):
            continue
        if isinstance(value, functools.partial):
            found |= modules_of([value.func, *value.args, *value.keywords.values()])
        elif inspect.ismethod(value):
            found.add(type(value.__self__).__module__)
        elif inspect.isfunction(value) or inspect.isclass(value):
            found.add(value.__module__)
        elif isinstance(value, Mapping):
            found |= modules_of(value.values())
        elif isinstance(value, list | tuple):
            found |= modules_of(value)
        elif dataclasses.is_dataclass(value):
            fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
            found |= {type(value).__module__} | modules_of(fields)
        elif isinstance(value, Content):
            found.add(type(value).__module__)
    return {name for name in found if _is_own(name)}


def _services(free: Mapping[str, Any]) -> set[str]:
    """The modules that define what a stage is given without its being part of the key: observers, a run, functions.

    Their fields do not count: a run's log may be anything.
    """
    classes = [value if inspect.isroutine(value) else type(value) for value in free.values()]
    return modules_of(one for one in classes if not isinstance(one, functools.partial))


@functools.cache
def _is_own(module: str) -> bool:
    """Whether a module is muwa's or the user's: neither Python's nor an installed package's."""
    top = module.partition(".")[0]
    if top == "muwa":
        return True
    return top not in sys.stdlib_module_names and "site-packages" not in str(
        getattr(sys.modules.get(module), "__file__", "site-packages")
    )


def _earlier(unfinished: Path) -> float:
    """Seconds that stopped attempts took, each up to the last file that it left; notes that one more starts."""
    unfinished.mkdir(parents=True, exist_ok=True)
    note = unfinished / "attempts.json"
    spent = 0.0
    if note.is_file():
        started, spent = json.loads(note.read_text())
        spent += max(
            [0.0, *(path.stat().st_mtime - started for path in unfinished.iterdir() if path != note)]
        )
    draft = unfinished / "attempts.draft"
    draft.write_text(json.dumps([time.time(), spent]))
    os.replace(draft, note)
    return spent


def _dump(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; tensors go to `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensor = value.detach().cpu().contiguous()
        memory = {other.untyped_storage().data_ptr() for other in tensors.values()}
        tensors[name] = (
            tensor.clone() if tensor.untyped_storage().data_ptr() in memory else tensor
        )  # views share memory
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_dump(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_dump(k, tensors), _dump(v, tensors)] for k, v in value.items()]}
    if dataclasses.is_dataclass(value) and RECORDS.get(type(value).__name__) is type(value):
        fields = {f.name: _dump(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    raise TypeError(
        f"cannot cache a {type(value).__name__}: want tensors, plain values or the dataclasses of muwa.types"
    )


def _load(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_dump`."""
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "plain" in tree:
        return tree["plain"]
    if "list" in tree:
        return [_load(item, tensors) for item in tree["list"]]
    if "tuple" in tree:
        return tuple(_load(item, tensors) for item in tree["tuple"])
    if "dict" in tree:
        return {_load(k, tensors): _load(v, tensors) for k, v in tree["dict"]}
    fields = {name: _load(value, tensors) for name, value in tree["fields"].items()}
    return RECORDS[tree["type"]](**fields)


def _write(folder: Path, value: Any, about: Mapping[str, object]) -> None:
    """Write an entry whole or not at all."""
    tensors: dict[str, Tensor] = {}
    tree = _dump(value, tensors)
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    if tensors:
        save_file(tensors, draft / "value.safetensors")
    (draft / "value.json").write_text(json.dumps(tree))
    (draft / "key.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)


def _read(folder: Path) -> tuple[bool, Any]:
    """(whether a whole entry is there, its value). A damaged entry is reported and counts as absent."""
    if not (folder / "value.json").is_file():
        return False, None
    try:
        tree = json.loads((folder / "value.json").read_text())
        tensors = load_file(folder / "value.safetensors") if (folder / "value.safetensors").is_file() else {}
        return True, _load(tree, tensors)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        warnings.warn(
            f"cache entry {folder.name[:12]} is damaged ({error}); it is computed again", stacklevel=3
        )
        return False, None
