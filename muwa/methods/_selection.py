"""What the rivals of SLUG on a CLIP share: edits of any weights judged on the probe pictures, one of them chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.layer_search.evaluators.zero_shot import rates
from muwa.layer_search.steps import Log, choose, kept
from muwa.models.clip.embeddings import Features, Tower, class_features, image_features
from muwa.models.clip.layers import tower_of
from muwa.models.clip.model import Clip
from muwa.runtime.progress import track
from muwa.types.data import Classes, LabelledImages, Pairs, Split, Task
from muwa.types.edit import Edit, Move
from muwa.types.search import Evaluation, LayerScore, Search

WHOLE, BOTH = "all weights", "both"  # layer and tower of an edit that is limited to neither
RULES = ("best", "first")
CRITERIA = ("top5", "top1")
TOLERANCE = 1.0  # standard errors, conf/layer_search's default: what is best is the same for SLUG and its rivals
NOTHING: Mapping[str, LayerScore] = MappingProxyType({})
Deltas = dict[str, Tensor]
Tell = Callable[[Evaluation], None]


def untold(row: Evaluation) -> None:
    """A `Tell` that nobody hears."""


def check_clip(method: str, model: object, gradient_file: Path | None = None) -> None:
    """Refuse what a method that edits a CLIP cannot use.

    Args:
        gradient_file: Of a method that takes no mean gradients.

    Raises:
        ValueError: Another family of models, or a file of gradients.
    """
    if not isinstance(model, Clip):
        raise ValueError(f"method={method}: got a {type(model).__name__}, want a CLIP (model=clip, clip_vit_b32, ...)")
    if gradient_file is not None:
        raise ValueError(f"gradients: method={method} takes no mean gradients; leave gradients={gradient_file} out")


def check_choice(rule: str, criterion: str, target: float) -> None:
    """Check how a method chooses among what it tried.

    Raises:
        ValueError: Names the setting, what it was and what it may be.
    """
    for key, value, choices in (("rule", rule, RULES), ("criterion", criterion, CRITERIA)):
        if value not in choices:
            raise ValueError(f"method.{key}: got {value!r}, want one of {', '.join(choices)}")
    if not 0 <= target < 1:
        raise ValueError(f"method.target: got {target}, want a forget accuracy in [0, 1)")


def forget_pairs(task: Task) -> Pairs:
    """The pairs of all names to forget, one after the other.

    Raises:
        ValueError: There are none.
    """
    every = [task.forget[name] for name in task.names]
    joined = Pairs(*(tuple(x for pairs in every for x in getattr(pairs, of)) for of in ("keys", "images", "captions")))
    if not len(joined):
        raise ValueError(f"task: no pairs of {', '.join(task.names)} to forget (an empty forget set)")
    return joined


def retain_pairs(task: Task) -> Pairs:
    """The retain pairs without those that mention what is forgotten.

    Raises:
        ValueError: There are none.
    """
    left_out = set(task.mentions)
    kept_pairs = task.retain.select([i for i in range(len(task.retain)) if i not in left_out])
    if not len(kept_pairs):
        raise ValueError("task: no retain pairs (an empty retain set, or all of it mentions what is to be forgotten)")
    return kept_pairs


class EditEvaluator:
    """Zero-shot accuracy on a probe split of models that differ from one another in any weights.

    Args:
        model: The unedited model.
        probe: LabelledImages that give no gradient and that no report is made on.
        features: Of `model`, where decoded pictures and its own embeddings come from; None computes them.
        target, criterion: An edit is feasible when forget accuracy by `criterion` is at or below `target`.
    """

    def __init__(self, model: Clip, probe: Split, features: Features | None, *, target: float, criterion: str):
        self._model, self._target, self._criterion = model, target, criterion
        self._features = features or Features(model)
        self._pictures = {"forget": probe.forget, "retain": probe.retain, "utility": probe.utility}
        self._classes: dict[str, Classes] = {p.classes.fingerprint: p.classes for p in self._pictures.values()}
        self._pixels: dict[str, Tensor] = {}
        self._size = _size(model.weights)
        self.counts = len(probe.retain), len(probe.utility)

    def before(self) -> Evaluation:
        """The unedited model."""
        return self({}, 0, 0.0, layer="", tower="")

    def __call__(
        self, deltas: Mapping[str, Tensor], iteration: int, step: float, *, layer: str = WHOLE, tower: str = BOTH
    ) -> Evaluation:
        """Judge `theta + delta`. A tower that no delta reaches is not encoded again.

        Args:
            deltas: Parameter name -> fp32 change.
            iteration, step, layer, tower: For the record.

        Returns:
            The row; `relative_norm` is |delta| / |theta| over the whole model, or over the tensors that change where
            `layer` is not `WHOLE`.
        """
        edited = self._model.edited(Edit(deltas, ())) if deltas else self._model
        touched = {tower_of(name) for name in deltas if name != "logit_scale"}
        vision, text = Tower(edited, "vision"), Tower(edited, "text")
        if "vision" in touched:
            images = {kind: self._encode(vision, kind, p) for kind, p in self._pictures.items()}
        else:
            images = {kind: self._features.images(p) for kind, p in self._pictures.items()}
        classes = self._classes.items()
        if "text" in touched:
            prompts = {key: class_features(text, some) for key, some in classes}
        else:
            prompts = {key: self._features.classes(some) for key, some in classes}
        found = rates(self._pictures, images, prompts)
        size = self._size if layer in (WHOLE, "") else _size({name: self._model.weights[name] for name in deltas})
        return Evaluation(
            layer=layer, tower=tower, iteration=iteration, step=step, relative_norm=_size(deltas) / size if deltas else 0.0,
            feasible=found[f"forget_{self._criterion}"] <= self._target, **found,
        )  # fmt: skip

    def _encode(self, tower: Tower, kind: str, pictures: LabelledImages) -> Tensor:
        """Embeddings by an edited tower; pixels are read once."""
        if not len(pictures):
            return self._features.images(pictures)
        if kind not in self._pixels:
            self._pixels[kind] = self._features.pixels(pictures)
        place = {digest: i for i, digest in enumerate(pictures.digests)}

        def pixels(pictures: LabelledImages) -> Tensor:
            return self._pixels[kind][[place[digest] for digest in pictures.digests]]

        return image_features(tower, pictures, pixels=pixels)


def _size(tensors: Mapping[str, Tensor]) -> float:
    """The norm of all tensors together."""
    return sum(tensor.double().square().sum().item() for tensor in tensors.values()) ** 0.5


def remembered(
    store: Store, function: Callable[..., dict[str, Any]], *args: Any, task: Task, log: Log, free: Mapping[str, Any],
    resume: str | None = None, **keywords: Any,
) -> dict[str, Any]:  # fmt: skip
    """`store.get("edit", ...)` of a function that takes `tell` and gives {"trace": rows, ...}.

    Loggers hear of each row once: as it comes, or when it is read back.
    """
    concept, heard = ", ".join(task.names), []

    def tell(row: Evaluation) -> None:
        heard.append(row)
        log("evaluation", {"concept": concept, **asdict(row)})

    found = store.get("edit", function, *args, _free={**free, "tell": tell}, _resume=resume, **keywords)
    if not heard:
        for row in found["trace"]:
            tell(row)
    return found


def first_of(trace: Sequence[Evaluation]) -> int:
    """The first row with forget top-1 accuracy 0, else the first of those with the lowest.

    Source: the checkpoint that SLUG's release reports of its rivals (section 1.10 of the facts); utility plays no part.
    """
    return min(range(len(trace)), key=lambda i: trace[i].forget_top1)


def best_of(trace: Sequence[Evaluation], counts: tuple[int, int]) -> int | None:
    """Of the feasible rows that keep most, up to `TOLERANCE`, the one that forgets deepest, as SLUG's own search chooses
    (`muwa.layer_search.steps.choose`); None when no row is feasible.

    Args:
        counts: How many retain and utility pictures the rates are of.
    """
    return choose(trace, rule="constrained", criterion="top5", tolerance=TOLERANCE, counts=counts)[0]


def _may_be_best(trace: Sequence[Evaluation], counts: tuple[int, int]) -> set[int]:
    """Feasible rows that `best_of` may give now or later: none beats them in both, none keeps a standard error more."""
    reach = TOLERANCE * 0.25 * sum(1 / max(n, 1) for n in counts) ** 0.5 + 1e-9  # of two rates of 0.5
    feasible = [i for i, row in enumerate(trace) if row.feasible]
    most = max((kept(trace[i]) for i in feasible), default=0.0)
    near = [i for i in feasible if kept(trace[i]) >= most - reach]
    depth = {i: (trace[i].forget_cosine, i) for i in near}
    return {i for i in near if not any(kept(trace[j]) >= kept(trace[i]) and depth[j] < depth[i] for j in near)}


def keep(found: dict[str, Deltas], trace: Sequence[Evaluation], deltas: Deltas, counts: tuple[int, int]) -> None:
    """Keep the last row's deltas where it is the first checkpoint or may become the best; drop those that no longer can.

    Args:
        found: str(index in `trace`) -> deltas; changed in place.
        deltas: Of the last row.
        counts: See `best_of`.
    """
    wanted = {first_of(trace), *_may_be_best(trace, counts)}
    if len(trace) - 1 in wanted:
        found[str(len(trace) - 1)] = deltas
    for index in [key for key in found if int(key) not in wanted]:
        del found[index]


def judge_each(
    edit_evaluator: EditEvaluator, tried: Iterable[tuple[float, Deltas]], total: int, what: str, tell: Tell, progress: bool, **where: str
) -> dict[str, Any]:
    """Judge edits in turn: {"before": the unedited model's row, "trace": a row an edit}.

    Args:
        tried: (step, deltas) of each.
        what: For the progress bar.
        where: Layer and tower, for the record.
    """
    trace: list[Evaluation] = []
    for i, (step, deltas) in enumerate(track(tried, what, total, show=progress)):
        trace.append(edit_evaluator(deltas, i + 1, step, **where))
        tell(trace[-1])
    return {"before": edit_evaluator.before(), "trace": trace}


def search_of(
    task: Task, rule: str, criterion: str, before: Evaluation, trace: Sequence[Evaluation], what: str,
    granularity: str = WHOLE, scores: Mapping[str, LayerScore] = NOTHING, front: tuple[str, ...] = (),
) -> Search:  # fmt: skip
    """What was tried for all names together, and the choice among it.

    Args:
        rule: "best" (`best_of`) or "first" (`first_of`).
        what: What a row is, in the plural ("epochs", "strengths").
        granularity: What was edited, for the record.
        scores, front: Of layers, where layers were scored.
    """
    feasible = sum(row.feasible for row in trace)
    note = f"{feasible} of {len(trace)} {what} were feasible"
    counts = len(task.probe.retain), len(task.probe.utility)
    chosen = best_of(trace, counts) if rule == "best" else first_of(trace)
    if chosen is None:
        least = min(getattr(row, f"forget_{criterion}") for row in trace)
        why = f"No feasible one: the lowest forget {criterion} reached was {least:.1%}; {note}."
    elif rule == "best":
        why = (
            f"Of the feasible {what} that keep most, or at most {TOLERANCE:g} standard error less, the one that forgets "
            f"deepest; it keeps {kept(trace[chosen]):.1%} of retain and utility; {note}."
        )
    else:
        gone = trace[chosen].forget_top1 == 0
        how = f"The first of the {what} with forget top1 0" if gone else f"The lowest forget top1 of the {what}"
        why = f"{how} ({trace[chosen].forget_top1:.1%}); {note}."
    return Search(", ".join(task.names), rule, granularity, scores, front, before, tuple(trace), chosen, why)


def edit_of(task: Task, search: Search, deltas: Mapping[str, Tensor], samples: int) -> Edit:
    """The chosen row as an edit, with one move for each name (they were forgotten together); no deltas when none was.

    Args:
        deltas: Of the chosen row.
        samples: Training pairs whose gradient was taken, each counted once a pass.
    """
    if search.chosen is None:
        return Edit({}, (), (search,), samples)
    row = search.trace[search.chosen]
    moves = tuple(Move(name, row.tower, row.layer, row.step, row.relative_norm) for name in task.names)
    return Edit({name: delta.cpu() for name, delta in nonzero(deltas).items()}, moves, (search,), samples)


def difference(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Deltas:
    """`now - start` in fp32, for tensors that differ."""
    with torch.no_grad():
        deltas = {name: now[name].detach().float() - weight.float() for name, weight in start.items()}
    return nonzero(deltas)


def nonzero(deltas: Mapping[str, Tensor]) -> Deltas:
    """Those that change anything."""
    return {name: delta for name, delta in deltas.items() if delta.any()}
