"""Apply or remove a patch: the weights that it must fit, the other weight files beside them, the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from muwa.json_files import read_json
from muwa.patch.apply import Patch, apply_patch, read_patch, remove_patch
from muwa.patch.card import patch_entry, read_results
from muwa.patch.files import (
    check_out,
    find_checkpoint,
    in_files,
    read_weights,
    rewrite_files,
    safetensors_name,
)
from muwa.patch.folders import (
    Changes,
    changed_by_file,
    has_other_names,
    is_pipeline,
    parts_of,
    required_parts,
    stored_names,
)
from muwa.patch.readme import replaced, write_readme
from muwa.patch.twins import find_twins

RECORD = "muwa_patch.json"  # the record in an edited folder
_FORMAT = "muwa.patch.record/1"


@dataclass(frozen=True)
class Outcome:
    """What was written.

    Args:
        tensors: The number of tensors changed, over all files.
        edited: The files with changed tensors, relative to the folder.
        left_out: File -> why it is not in the copy.
        unedited: File -> why it holds unedited weights and is in the copy all the same.
    """

    tensors: int
    edited: tuple[str, ...]
    left_out: Mapping[str, str]
    unedited: Mapping[str, str]

    def lines(self, out: Path, *, remove: bool) -> list[str]:
        """The outcome as text: one line, and one for each file that was not edited."""
        said = [f"{out}: {self.tensors} tensors {'restored' if remove else 'edited'}"]
        said += [f"  left out: {name} ({why})" for name, why in self.left_out.items()]
        said += [f"  UNEDITED: {name} ({why})" for name, why in self.unedited.items()]
        return said


def change(path: Path, base: Path, out: Path, *, remove: bool, keep: bool) -> Outcome:
    """Copy `base` to the new folder `out` with a patch applied or removed.

    `out` appears complete or not at all. An edited folder holds a record, `muwa_patch.json`: the patch, and
    what was edited, left out or kept unedited. Its README.md is the unlearning card (`muwa.patch.card`), with
    what results.json beside the patch tells of the run.

    Args:
        path: The patch file.
        base: A checkpoint file, or the folder of a model or pipeline.
        keep: Also copy weight files that hold the edited tensors and cannot be edited.

    Raises:
        ValueError: The file is not a patch; `base` is not its base; the patch is applied already (with
            `remove`: is not applied); or other tensors were changed too.
        KeyError: A tensor to edit is missing.
        FileNotFoundError: There are no weights. The message lists what was looked for.
        FileExistsError: `out` exists and is not empty.
    """
    patch = read_patch(path)
    check_out(base, out)
    changes, partly = _required(patch, base, remove=remove)
    twins = find_twins(base, patch, changes, remove=remove)
    unedited = {**partly, **(twins.unedited if keep else {})}
    dropped = {} if keep else twins.unedited
    written = {**changes, **{file: t for file, t in twins.changes.items() if file not in dropped}}
    outcome = Outcome(
        sum(map(len, written.values())),
        tuple(sorted(_written_name(file, base) for file, tensors in written.items() if tensors)),
        {_relative(file, base): why for file, why in sorted(dropped.items())},
        {_relative(file, base): why for file, why in sorted(unedited.items())},
    )
    record = _record(base, path, patch, outcome, remove=remove)
    added = {RECORD: json.dumps(record, indent=2, sort_keys=True) + "\n"} if record else {}
    edited = _has_card(base)
    card = partial(write_readme, base=base, patches=record["patches"] if record else (), edited=edited)
    left = {*dropped, base / RECORD, *replaced(base, edited=edited)}
    rewrite_files(base, out, written, left, added, card)
    return outcome


def uneditable(path: Path, base: Path) -> dict[str, str]:
    """The files of a model's folder that hold the tensors of a patch and cannot be edited.

    Args:
        path: The patch file.
        base: The folder of the model that it was made for.

    Returns:
        File, relative to the folder -> why it cannot be edited. `change` leaves these out of its copy.

    Raises:
        ValueError, KeyError, FileNotFoundError: See `change`.
    """
    patch = read_patch(path)
    changes, partly = _required(patch, base, remove=False)
    found = {**find_twins(base, patch, changes, remove=False).unedited, **partly}
    return {_relative(file, base): why for file, why in sorted(found.items())}


def _required(patch: Patch, base: Path, *, remove: bool) -> tuple[Changes, dict[Path, str]]:
    """(The changes of the weights that the patch must fit, files with averaged weights it does not fit)."""
    if not is_pipeline(base) and not has_other_names(find_checkpoint(base), patch.deltas):
        changed = remove_patch if remove else apply_patch
        return in_files(base, changed(read_weights(base), patch)), {}
    changes: Changes = {}
    partly: dict[Path, str] = {}
    for part in required_parts(base, patch):
        for file, tensors in changed_by_file(part, remove=remove).items():
            changes.setdefault(file, {}).update(tensors)
    files = list(changes)
    for part in [] if is_pipeline(base) else parts_of(files, stored_names(files), None, patch):
        if part.section.average:
            try:
                averaged = changed_by_file(part, remove=remove)
            except (KeyError, ValueError):
                partly[files[0]] = "its averaged weights (model_ema) are others than the patch was made for"
                continue
            for file, tensors in averaged.items():
                changes[file].update(tensors)
    return changes, {} if remove else partly


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if base.is_dir() else path.name


def _written_name(path: Path, base: Path) -> str:
    return _relative(path.with_name(safetensors_name(path)), base)


def _record(base: Path, path: Path, patch: Patch, outcome: Outcome, *, remove: bool) -> dict[str, Any] | None:
    """The record of the folder that is written; None if no patch is left on it."""
    before = read_record(base)
    identity = hashlib.sha256(path.read_bytes()).hexdigest()
    patches = [one for one in before if one["sha256"] != identity]
    if not remove:
        patches.append(
            {
                **patch_entry(patch, identity, _run(patch, path)),
                "edited": list(outcome.edited),
                "left_out": dict(outcome.left_out),
                "unedited": dict(outcome.unedited),
            }
        )
    return {"format": _FORMAT, "card": True, "patches": patches} if patches else None


def _run(patch: Patch, path: Path) -> dict[str, Any] | None:
    """What results.json beside a patch file tells of its run; None if there is none, or it is another's."""
    try:
        return read_results(patch, path.with_name("results.json"), required=False)
    except (ValueError, OSError):
        return None


def _has_card(folder: Path) -> bool:
    """Whether README.md of a folder is an unlearning card: folders of earlier versions have a record only."""
    return bool(_read_record(folder).get("card", False))


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The patches on an edited folder, in the order in which they were applied; none without a record.

    Raises:
        ValueError: The record cannot be read.
    """
    return list(_read_record(folder)["patches"])


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        return {"patches": []}
    try:
        found = read_json(path, dict, "the record of muwa's patches")
        return {**found, "patches": list(found["patches"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a record of muwa's patches ({error})") from error
