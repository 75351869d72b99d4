"""Put patches on a model's files, or take one off: the weights, other files with weights, the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muwa.patch import names
from muwa.patch.apply import ADD, STATE, Patch, add_patches, apply_patch, read_patch, remove_patch
from muwa.patch.card import read_results
from muwa.patch.earlier import Lacking, absent, not_shown_by, told
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
from muwa.patch.ledger import (
    RECORD,
    Ledger,
    checked_ledger,
    components,
    file_digest,
    file_fingerprint,
    read_ledger,
    request_of,
    tensor_keys,
    text_of,
)
from muwa.patch.readme import replaced, write_readme
from muwa.patch.rewrite import Deltas, Rewrite, on_top, putting_on, reordered, taking_off
from muwa.patch.twins import find_twins
from muwa.patch.weights import weights_fingerprint
from muwa.runtime.notices import notice
from muwa.types.request import Request

Whole = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # all tensors of a checkpoint -> the changed ones


@dataclass(frozen=True)
class Outcome:
    """What was written.

    Args:
        tensors: The number of tensors changed, over all files.
        split: How one tensor of the patch and those of the files differ; "" if they have the same tensors.
        edited: The files with changed tensors, relative to the folder.
        left_out: File -> why it is not in the copy.
        unedited: File -> why it holds unedited weights and is in the copy all the same.
    """

    tensors: int
    split: str
    edited: tuple[str, ...]
    left_out: Mapping[str, str]
    unedited: Mapping[str, str]

    def lines(self, out: Path, *, remove: bool) -> list[str]:
        """The outcome as text: one line, and one for each file that was not edited."""
        what = f"{self.tensors} tensor{'s' * (self.tensors != 1)}"
        where = f" in {', '.join(self.edited)}" if self.edited else ""
        split = f" ({self.split})" if self.split else ""
        said = [f"{out}: {what} {'restored' if remove else 'edited'}{where}{split}"]
        said += [f"  left out: {name} ({why})" for name, why in self.left_out.items()]
        said += [f"  UNEDITED: {name} ({why})" for name, why in self.unedited.items()]
        return said


@dataclass(frozen=True)
class Given:
    """A patch file, and what it says of the request that it met."""

    path: Path
    patch: Patch
    request: Request


def read_given(paths: Sequence[Path]) -> list[Given]:
    """Read patch files. If they have names of both libraries, all get full names.

    Raises:
        ValueError, FileNotFoundError: As `muwa.patch.apply.read_patch`.
    """
    read = [(path, read_patch(path)) for path in paths]
    given = [Given(path, patch, request_of(patch, file_digest(path))) for path, patch in read]
    clips = [n for _, patch in read for n in patch.deltas if not n.startswith(("unet/", "vae/"))]
    if len({names.is_full_name(name.rpartition("/")[2]) for name in clips}) < 2:
        return given
    return [
        replace(one, patch=replace(one.patch, deltas=_full(one.patch.deltas), base=_full(one.patch.base)))
        for one in given
    ]


def joined(paths: Sequence[Path]) -> Patch:
    """Patches as one (`muwa.patch.apply.add_patches`).

    If some were made on patches that are not among them, a notice says so, and the joined patch keeps it.

    Raises:
        ValueError, FileNotFoundError: As `muwa.patch.apply.read_patch` and `add_patches`.
    """
    files = [(path, patch := read_patch(path), request_of(patch, file_digest(path))) for path in paths]
    one_patch = add_patches([patch for _, patch, _ in files])
    here = {request.sha256 for _, _, request in files}
    missing: dict[str, Mapping[str, Any]] = {}
    for path, patch, request in files:
        if left := absent(request, here):
            notice(told(path, "the joined patch", Lacking(left, checked=True)))
            rows = patch.provenance.get(STATE, {}).get("patches", ())
            missing |= {row["sha256"]: row for row in rows if row["sha256"] in left}
    if not missing:
        return one_patch
    state = {"origin": one_patch.base_fingerprint, "patches": list(missing.values())}
    return replace(one_patch, provenance={**one_patch.provenance, STATE: state})


def _full(tensors: Deltas) -> Deltas:
    """Tensors of a patch under full names, whatever their component."""
    out: dict[str, Tensor] = {}
    for component, some in names.by_component(tensors).items():
        if component in names.ENCODERS:
            full = names.to_full_names(some)
            out |= {names.delta_key(component, name): tensor for name, tensor in full.items()}
        else:
            out |= {f"{component}/{name}": tensor for name, tensor in some.items()}
    return out


def put_on(paths: Sequence[Path], base: Path, out: Path, *, keep: bool, add: bool) -> Outcome:
    """Copy `base` to the new folder `out` with patches put on, and write its record.

    `out` appears complete or not at all. README.md of a folder becomes the unlearning card
    (`muwa.patch.card`), with what results.json beside each patch tells of its run. If a patch was made on
    others that `base` is not known to carry, a notice says so, and the record and the card keep it.

    Args:
        paths: Patch files; several are put on in this order.
        base: A checkpoint file, or the folder of a model or pipeline.
        keep: Also copy weight files that hold the edited tensors and cannot be edited.
        add: Whether the weights may carry other patches than those that the given ones were made on. They
            must have been made for the same original weights.

    Raises:
        ValueError: A file is not a patch; `base` is not its base; the patch is applied already; or the
            record of `base` does not fit its weights.
        KeyError: A tensor to edit is missing.
        FileNotFoundError: There are no weights. The message lists what was looked for.
        FileExistsError: `out` exists and is not empty.
    """
    check_out(base, out)
    given, ledger = read_given(paths), checked_ledger(base)
    for place, one in enumerate(given):
        on = [*(old.sha256 for old in ledger.requests), *(other.request.sha256 for other in given[:place])]
        if one.request.sha256 in on:
            raise ValueError(
                f"the patch is applied already: {base} carries {one.path} as request "
                f"{on.index(one.request.sha256) + 1} of {len(ledger.requests)}"
            )
    rewrite, whole = _putting(given, ledger, add)
    if rewrite.unchecked and not ledger.requests and not _is_whole(base, rewrite):
        raise ValueError(
            f"{base}: {min(rewrite.unchecked)} cannot be checked, as the patches were made on weights that "
            "carried others, which hold its original; put those on first"
        )
    always = on_top([one.patch for one in given])
    changes, partly = _required(base, rewrite, whole)
    lacking = _lacking(given, base, ledger, rewrite)
    known = [ledger.path.parent / name for name in ledger.weights or {}]
    twins = find_twins(base, rewrite, changes, known, always)
    unedited = {**partly, **(twins.unedited if keep else {})}
    dropped = {} if keep else twins.unedited
    written = {**changes, **{file: t for file, t in twins.changes.items() if file not in dropped}}
    outcome = _outcome(base, written, dropped, unedited, given)
    weights = _weights_after(base, written, ledger, dropped)
    (first, *more) = changes
    alone = weights[written_name(first, base)] if not more and _is_whole(base, rewrite) else ""
    rows = [*ledger.rows, *(_row(one, outcome, weights, lacking.get(one.path)) for one in given)]
    rows[-1] = {**rows[-1], "result": _result(given, changes, ledger, alone)}
    text = text_of(rows, weights, ledger.removed)
    _write(base, out, written, dropped, ledger, rows, text)
    return outcome


def _write(
    base: Path,
    out: Path,
    written: Changes,
    dropped: Mapping[Path, str],
    ledger: Ledger,
    rows: Sequence[Mapping[str, Any]],
    record: str | None,
) -> None:
    """Write the folder `out`: the changed weights, the record if there is one, the card."""
    left = {*dropped, base / RECORD, *replaced(base, edited=ledger.card)}
    card = partial(write_readme, base=base, patches=rows, edited=ledger.card, removed=ledger.removed)
    rewrite_files(base, out, written, left, {} if record is None else {RECORD: record}, card)


def _lacking(given: Sequence[Given], base: Path, ledger: Ledger, rewrite: Rewrite) -> dict[Path, Lacking]:
    """Patch file -> the patches that it was made on and that the weights lack. A notice tells of each.

    Args:
        rewrite: The change, which was found to fit `base`.
    """
    found: dict[Path, Lacking] = {}
    on = [one.sha256 for one in ledger.requests]
    for one in given:
        missing = absent(one.request, on)
        on.append(one.request.sha256)
        if not missing:
            continue
        whole = weights_fingerprint(read_weights(base)) if _is_whole(base, rewrite) else ""
        original = whole != "" and whole == one.request.origin
        if whole == one.request.base_fingerprint and not original:
            continue  # bit for bit the weights that it was made on, whatever the record says
        own = one.patch.base
        compared = [
            name for name in rewrite.base.keys() - rewrite.unchecked if rewrite.base[name] is own.get(name)
        ]
        if left := not_shown_by(one.patch, missing, compared):
            found[one.path] = Lacking(left, checked=original or bool(ledger.requests))
            notice(told(one.path, base, found[one.path]))
    return found


def _putting(given: Sequence[Given], ledger: Ledger, add: bool) -> tuple[Rewrite, Whole]:
    """(The change that puts patches on, the same for a whole checkpoint)."""
    first, patches = given[0], [one.patch for one in given]
    carried = [one.sha256 for one in ledger.requests]
    origins = {one.origin for one in ledger.requests} - {""}
    same_origin = bool(carried) and all(one.request.origin in origins for one in given)
    if same_origin and (add or list(first.request.made_on) == carried):
        rewrite = on_top(patches)
        return rewrite, lambda weights: rewrite.new_values(_all_of(weights, rewrite), "the checkpoint")
    if len(given) == 1 and not (add and first.request.made_on and not carried):
        return putting_on(first.patch), lambda weights: apply_patch(weights, first.patch)
    if carried:
        raise ValueError(
            f"wrong base: the patches were made for other weights than those of the record. {ADD}"
        )
    return _from_origin(given)


def _from_origin(given: Sequence[Given]) -> tuple[Rewrite, Whole]:
    """Put several patches on weights that carry none.

    A tensor whose original none of the patches holds is not checked; that of a whole checkpoint is, by the
    fingerprint of all weights.

    Raises:
        ValueError: The patches were made for different original weights.
    """
    origins = {one.request.origin for one in given if one.request.origin}
    bound = {components(one.request.tensors) for one in given}
    if len(origins) > 1 and len(bound) == 1:
        shown = ", ".join(sorted(one[:12] for one in origins))
        raise ValueError(f"the patches were made for {len(origins)} different bases: {shown}. {ADD}")
    shapes = {name: tensor for one in given for name, tensor in one.patch.base.items()}
    rows = _origin_rows(given)
    rewrite = reordered({**shapes, **rows}, (), [one.patch for one in given])
    rewrite = replace(rewrite, unchecked=frozenset(shapes.keys() - rows.keys()))

    def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found, wanted = weights_fingerprint(weights), given[0].request.origin
        new = rewrite.new_values(_all_of(weights, rewrite), "the checkpoint")
        if found != wanted:
            raise ValueError(
                f"wrong base: its fingerprint is {found[:12]}, the patches were made for {wanted[:12]}. {ADD}"
            )
        return new

    return rewrite, whole


def _origin_rows(given: Sequence[Given]) -> dict[str, Tensor]:
    """Name -> tensor of the original weights, as far as the given patches hold it.

    A patch holds the original of a tensor if no patch that it was made on edits that tensor.
    """
    rows: dict[str, Tensor] = {}
    for one in given:
        touched = {
            key
            for before in one.patch.provenance.get(STATE, {}).get("patches", ())
            for key in tensor_keys(before["tensors"])
        }
        for name, tensor in one.patch.base.items():
            if not tensor_keys([name]) & touched:
                rows.setdefault(name, tensor)
    return rows


def _originals(given: Sequence[Given], wanted: Deltas) -> dict[str, Tensor]:
    """`_origin_rows` of the tensors `wanted`.

    Raises:
        ValueError: None of the given patches holds one of them. Says which patches to give too.
    """
    rows = _origin_rows(given)
    for name in wanted:
        if name not in rows:
            needed = {sha for one in given if name in one.patch.deltas for sha in one.request.made_on}
            missing = sorted(sha[:12] for sha in needed - {one.request.sha256 for one in given})
            raise ValueError(
                f"{name}: the given patches were made on weights that carried others, so none holds its "
                f"original. Give these too: --others PATCH ...: {', '.join(missing) or 'the first ones'}"
            )
    return {name: rows[name] for name in wanted}


def take_off(path: Path, base: Path, out: Path, *, others: Sequence[Path]) -> Outcome:
    """Copy `base` to the new folder `out` without one of its patches.

    The tensors are computed again from the original ones, with the patches that stay. So they are what these
    give alone, bit for bit.

    Args:
        path: The patch to take off.
        others: Files of other patches. Those that edit the same tensors are needed.

    Raises:
        ValueError: The patch is not on `base`, another patch is needed, or other tensors were changed too.
        KeyError, FileNotFoundError, FileExistsError: As in `put_on`.
    """
    check_out(base, out)
    every = read_given([path, *(other for other in others if other.resolve() != path.resolve())])
    mine, ledger = every[0], checked_ledger(base)
    rest = [one for one in ledger.requests if one.sha256 != mine.request.sha256]
    if ledger.requests and len(rest) == len(ledger.requests):
        on = "; ".join(one.title for one in rest)
        raise ValueError(f"the patch is not on {base}: its record does not name {path}. It names {on}")
    rewrite, whole = _taking_off(mine, every, ledger, rest)
    changes, _ = _required(base, rewrite, whole)
    known = [ledger.path.parent / name for name in ledger.weights or {}]
    twins = find_twins(base, rewrite, changes, known, rewrite)
    written = {**changes, **twins.changes}
    outcome = _outcome(base, written, {}, {}, every[:1])
    weights = _weights_after(base, written, ledger, ())
    rows = [_without(row, mine) for row in ledger.rows if row["sha256"] != mine.request.sha256]
    removed = [*ledger.removed, {"sha256": mine.request.sha256, "when": _now()}]
    after = replace(ledger, removed=tuple(removed))
    _write(base, out, written, {}, after, rows, text_of(rows, weights, removed) if rows else None)
    return outcome


def _without(row: Mapping[str, Any], off: Given) -> dict[str, Any]:
    """A row of the record without its result, and without what its run measured with the patch that goes."""
    gone = ("result", "run") if off.request.sha256 in row.get("made_on", ()) else ("result",)
    return {key: value for key, value in row.items() if key not in gone}


def _taking_off(
    mine: Given, every: Sequence[Given], ledger: Ledger, rest: Sequence[Request]
) -> tuple[Rewrite, Whole]:
    """(The change that takes a patch off, the same for a whole checkpoint)."""
    keys = tensor_keys(mine.patch.deltas)
    beside = [one for one in rest if not one.tensors or tensor_keys(one.tensors) & keys]
    chained = bool(mine.request.made_on)
    shas = [one.sha256 for one in ledger.requests]
    last = shas == [*mine.request.made_on, mine.request.sha256]
    if not shas or last or not (beside or chained):  # its own base is what is left
        rewrite = taking_off(mine.patch)
        if not rest:
            return rewrite, lambda weights: remove_patch(weights, mine.patch)
        return rewrite, lambda weights: rewrite.new_values(_all_of(weights, rewrite), "the checkpoint")
    files = {one.request.sha256: one for one in every}
    if missing := [one.title for one in beside if one.sha256 not in files]:
        raise ValueError(
            f"{mine.path}: other patches edit the same tensors, which are computed again without this one. "
            f"Give them too: --others PATCH ...: {'; '.join(missing)}"
        )
    order = [files[one.sha256] for one in ledger.requests if one in beside or one not in rest]
    order = order or [mine]
    rows = _originals(every, mine.patch.deltas)
    stay = [one.patch for one in order if one is not mine]
    rewrite = reordered(rows, [one.patch for one in order], stay)

    def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = rewrite.new_values(_all_of(weights, rewrite), "the checkpoint")
        found = weights_fingerprint({**weights, **new})
        if not rest and mine.request.origin and found != mine.request.origin:
            raise ValueError(
                f"something else was changed too: without the patch the fingerprint is {found[:12]}, the "
                f"base's is {mine.request.origin[:12]}"
            )
        return new

    return rewrite, whole


def _all_of(weights: Mapping[str, Tensor], rewrite: Rewrite) -> Mapping[str, Tensor]:
    """`weights`, if they have all tensors of a change.

    Raises:
        KeyError: One is missing.
    """
    if missing := [name for name in rewrite.base if name not in weights]:
        raise KeyError(
            f"these weights have no {missing[0]} ({len(missing)} of the patch's tensors are missing)"
        )
    return weights


def _is_whole(base: Path, rewrite: Rewrite) -> bool:
    """Whether files hold a whole model under the names of the patches: then all weights can be checked."""
    return not is_pipeline(base) and not has_other_names(find_checkpoint(base), rewrite.base)


def _required(base: Path, rewrite: Rewrite, whole: Whole) -> tuple[Changes, dict[Path, str]]:
    """(The changes of the weights that the patch must fit, files with averaged weights it does not fit)."""
    if _is_whole(base, rewrite):
        return in_files(base, whole(read_weights(base))), {}
    changes: Changes = {}
    partly: dict[Path, str] = {}
    for part in required_parts(base, rewrite):
        for file, tensors in changed_by_file(part).items():
            changes.setdefault(file, {}).update(tensors)
    files = list(changes)
    for part in [] if is_pipeline(base) else parts_of(files, stored_names(files), None, rewrite):
        if part.section.average:
            try:
                averaged = changed_by_file(part)
            except (KeyError, ValueError):
                partly[files[0]] = "its averaged weights (model_ema) are others than the patch was made for"
                continue
            for file, tensors in averaged.items():
                changes[file].update(tensors)
    return changes, {} if rewrite.takes_off else partly


def expected_changes(base: Path, paths: Sequence[Path]) -> tuple[Changes, dict[Path, str]]:
    """(The tensors that `base` has with some patches put on, files that hold them and cannot be edited).

    Args:
        base: Weights that carry none of the patches.

    Raises:
        ValueError, KeyError, FileNotFoundError: As in `put_on`.
    """
    given = read_given(paths)
    if not given:
        return {}, {}
    rewrite, whole = _putting(given, Ledger(base / RECORD), add=True)
    changes, partly = _required(base, rewrite, whole)
    twins = find_twins(base, rewrite, changes, (), rewrite)
    return {**changes, **twins.changes}, {**partly, **twins.unedited}


def uneditable(path: Path, base: Path) -> dict[str, str]:
    """The files of a model's folder that hold the tensors of a patch and cannot be edited.

    Args:
        path: The patch file.
        base: The folder of the model that it was made for; it carries no patch.

    Returns:
        File, relative to the folder -> why it cannot be edited. `put_on` leaves these out of its copy.

    Raises:
        ValueError, KeyError, FileNotFoundError: See `put_on`.
    """
    _, found = expected_changes(base, [path])
    return {_relative(file, base): why for file, why in sorted(found.items())}


def result_of(path: Path, base: Path, bound: Mapping[str, Tensor]) -> dict[str, str]:
    """The weights after a patch was put on a model's files: what the patch of the next request is bound to.

    Files may store a rounded value of an edited tensor, in fp16 say. A later run starts from that.

    Args:
        path: The patch file.
        base: The files that the model was read from.
        bound: The weights that the patch is bound to, with the names of its deltas.

    Returns:
        "result": the fingerprint of these weights, SHA-256 in hex; "stored": the dtype of the edited tensors
        in the files ("float16"). Empty if they have several dtypes.

    Raises:
        ValueError, KeyError, FileNotFoundError: See `put_on`.
    """
    given = read_given([path])
    rewrite, whole = _putting(given, checked_ledger(base), add=False)
    stored = _dtypes(_required(base, rewrite, whole)[0])
    if len(stored) != 1:
        return {}
    (dtype,) = stored
    deltas = read_patch(path).deltas
    new = {name: (bound[name].cpu().float() + delta).to(dtype) for name, delta in deltas.items()}
    return {"result": weights_fingerprint({**bound, **new}), "stored": str(dtype).removeprefix("torch.")}


def _dtypes(changes: Changes) -> set[torch.dtype]:
    return {tensor.dtype for tensors in changes.values() for tensor in tensors.values()}


def _result(given: Sequence[Given], changes: Changes, ledger: Ledger, whole: str) -> str:
    """The fingerprint that the patch of the next request is bound to; "" if it is not known.

    It is known of a whole model in one file. Of a part of a model, the run of the patch tells it, if the
    patch was made on these weights, and these files store its tensors as those of the run did.

    Args:
        changes: The changed tensors of the files that the patches must fit.
        whole: The fingerprint of the file that holds a whole model; "" if these files do not.
    """
    if whole:
        return whole
    last, on = given[-1], [one.sha256 for one in ledger.requests]
    edited = (_run(last) or {}).get("edited", {})
    alone = len(given) == 1 and list(last.request.made_on) == on
    as_there = {str(dtype).removeprefix("torch.") for dtype in _dtypes(changes)} == {edited.get("stored")}
    return str(edited.get("result", "")) if alone and as_there else ""


def _outcome(
    base: Path,
    written: Changes,
    dropped: Mapping[Path, str],
    unedited: Mapping[Path, str],
    given: Sequence[Given],
) -> Outcome:
    return Outcome(
        sum(map(len, written.values())),
        _split(
            [name for one in given for name in one.patch.deltas],
            [name for tensors in written.values() for name in tensors],
        ),
        tuple(sorted(written_name(file, base) for file, tensors in written.items() if tensors)),
        {_relative(file, base): why for file, why in sorted(dropped.items())},
        {_relative(file, base): why for file, why in sorted(unedited.items())},
    )


def _split(of_patches: Sequence[str], stored: Sequence[str]) -> str:
    """Why the edited tensors are more or fewer than those of the patches; "" if names are not the reason."""
    fused, fused_there = (any(".in_proj_" in name for name in some) for some in (of_patches, stored))
    if fused and not fused_there:
        return "q, k and v are one tensor in the patch, and three here"
    if fused_there and not fused:
        return "q, k and v are three tensors in the patch, and one here"
    return ""


def _weights_after(
    base: Path, written: Changes, ledger: Ledger, dropped: Mapping[Path, str] | tuple[()]
) -> dict[str, str]:
    """Edited file -> fingerprint of its weights after the change; files that an earlier patch edited too."""
    left = {written_name(file, base) for file in dropped}
    weights = {name: value for name, value in (ledger.weights or {}).items() if name not in left}
    changed = {file: tensors for file, tensors in written.items() if tensors}
    return weights | {written_name(file, base): file_fingerprint(file, t) for file, t in changed.items()}


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if base.is_dir() else path.name


def written_name(path: Path, base: Path) -> str:
    """The name that a changed weight file of `base` has in the folder that is written."""
    return _relative(path.with_name(safetensors_name(path)), base)


def _row(one: Given, outcome: Outcome, weights: Mapping[str, str], lacking: Lacking | None) -> dict[str, Any]:
    """What the record holds of a patch.

    What its run measured is left out if that was with patches that the weights lack.
    """
    about = asdict(one.request) | {"when": _now()}
    if lacking:
        about["lacks"] = lacking.as_row()
    elif run := _run(one):
        about["run"] = run
    return about | {
        "layers": list(one.request.layers),
        "story": dict(one.patch.provenance),
        "edited": list(outcome.edited),
        "left_out": dict(outcome.left_out),
        "unedited": dict(outcome.unedited),
        "weights": {name: weights[name] for name in outcome.edited},
    }


def _run(one: Given) -> dict[str, Any] | None:
    """What results.json beside a patch file tells of its run; None if there is none, or it is another's."""
    try:
        return read_results(one.patch, one.path.with_name("results.json"), required=False)
    except (ValueError, OSError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(folder: Path) -> list[dict[str, Any]]:
    """What the record of an edited folder says of each patch, in order; none without a record.

    Raises:
        ValueError: The record cannot be read.
    """
    return [dict(row) for row in read_ledger(folder).rows]
