"""Search a layer and a step of the text encoder by what the pipeline draws: same prompts, same seeds, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from muwa.cache import Store
from muwa.layer_search.bisect import bisection, next_step, pareto_bisect
from muwa.layer_search.common import Log, choose, kept, silent
from muwa.layer_search.drawings import Candidate, Drawings, full_name, ratio
from muwa.layer_search.settings import check_settings
from muwa.models.diffusion import Diffusion
from muwa.progress import track
from muwa.scores import layer_scores
from muwa.select import pareto
from muwa.studio import Recogniser
from muwa.types import Evaluation, Gradients, Layer, LayerScore, Search, Task

STARTS = ("clip", "ratio")


def generation(
    model: Diffusion,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    *,
    recogniser: Recogniser,
    start: str = "clip",
    candidates: int | None = 3,
    granularity: str = "tensor",
    rule: str = "constrained",
    tolerance: float = 1.0,
    first_step: float = 0.1,
    max_evals: int = 6,
    pictures: int = 12,
    retain_pictures: int = 36,
    sampling_steps: int = 8,
    forget_at_most: float = 0.25,
    lost_at_most: float = 0.1,
    confirmations: int = 3,
    store: Store | None = None,
    log: Log = silent,
    progress: bool = False,
) -> Search:
    """Bisect the step of each candidate layer until the concept is no longer drawn and the others still are.

    Args:
        gradients: Text encoder -> gradients of its CLIP. With two encoders (XL) a candidate is one layer of each, moved by
            the same fraction of their |theta| / |g_f|.
        task: For `concept` alone. Prompts come from its probe split, seeds from 0; a report is to use others.
        recogniser: Says what a picture shows; never the model under test.
        start: "clip": search the CLIP first (no drawing), take its best layers and start at their steps: the fast path.
            "ratio": all layers on the front, from `first_step`, as the paper does.
        candidates: How many layers (pairs, of XL) are searched at most; None all.
        first_step: First step as a fraction of |theta| / |g_f|.
        max_evals: Steps tried a candidate.
        pictures, retain_pictures: Drawn for each step: of the concept; of other and of unrelated ones together.
        sampling_steps: While searching; the model's own number confirms.
        forget_at_most: A step is feasible when the 95 % interval of the concept's recognition lies below this.
        lost_at_most: A candidate's search stops early when it is feasible and the interval of the share of pictures that
            were recognised before and are not now lies below this: the paper's 10 points, as an interval.
        confirmations: How many chosen steps are drawn again, with all sampling steps and fresh seeds, until one holds.
        rule, tolerance, granularity, log: As in `pareto_bisect`.

    Returns:
        The search; the last evaluations of its trace are the confirmations. `chosen` is None when none held.

    Raises:
        ValueError: A setting is out of range; the recogniser has no label for a concept.

    Source: SLUG, section 1.6 of the facts: stop when the target is gone and the others stay within 10 points. Differs: the
    release judges each step on three unseeded pictures of each kind, by points; here n is given, seeds are fixed, the
    comparison is paired, and intervals decide.
    """
    _check(start, pictures, retain_pictures, sampling_steps, forget_at_most, lost_at_most, confirmations)
    for clip in model.clips.values():
        check_settings(
            clip, rule=rule, tolerance=tolerance, first_step=first_step, max_evals=max_evals, granularity=granularity
        )
    canvas = Drawings(model, gradients, task, recogniser, store, pictures, retain_pictures, forget_at_most, progress)
    scores, fronts = _scores(model, gradients, granularity)
    front = tuple(full_name(encoder, name) for encoder, names in fronts.items() for name in names)
    log("scores", {"concept": concept, "scores": scores, "front": front})
    searched = _candidates(model, gradients, task, concept, fronts, start, first_step, granularity)
    if rule == "deepest" and searched:
        searched = [max(searched, key=deepest_of)]
    searched = searched[: candidates or len(searched)]
    trace: list[Evaluation] = []

    def note(row: Evaluation) -> None:
        trace.append(replace(row, iteration=1 + sum(other.layer == row.layer for other in trace)))
        log("evaluation", {"concept": concept, **asdict(trace[-1])})

    before = canvas.before(sampling_steps)
    for candidate in track(searched, "searching layers", len(searched), show=progress):
        trying = bisection(candidate.first, max_evals)
        step: float | None = next(trying)
        while step is not None:
            row, lost = canvas.judge(candidate, step, sampling_steps)
            note(row)
            step = None if row.feasible and lost <= lost_at_most else next_step(trying, row.feasible)
    named = {candidate.name: candidate for candidate in searched}
    left = list(range(len(trace)))
    why = f"None of {confirmations} choices held when they were drawn again with all sampling steps."
    for _ in range(confirmations):
        place, reason = choose(
            [trace[i] for i in left], rule=rule, criterion="top1", tolerance=tolerance, counts=canvas.counts
        )
        if place is None:
            why = reason
            break
        tried = trace[left.pop(place)]
        row, _ = canvas.judge(named[tried.layer], tried.step, None)
        note(row)
        if row.feasible or rule != "constrained":
            why = (
                f"{reason} Drawn again with {model.sampling.steps} sampling steps from fresh seeds it is recognised in "
            )
            why += f"{row.forget_top1:.0%} and keeps {kept(row):.1%}."
            return Search(concept, rule, granularity, scores, front, before, tuple(trace), len(trace) - 1, why)
    return Search(concept, rule, granularity, scores, front, before, tuple(trace), None, why)


def deepest_of(candidate: Candidate) -> float:
    """How deep a candidate's layers sit: the mean of their depths."""
    return sum(layer.depth for layer in candidate.layers.values()) / len(candidate.layers)


def _check(start: str, pictures: int, retain: int, steps: int, forget: float, lost: float, confirmations: int) -> None:
    if start not in STARTS:
        raise ValueError(f"layer_search.start: got {start!r}, want one of {', '.join(STARTS)}")
    wanted = {"pictures": pictures, "retain_pictures": retain, "sampling_steps": steps, "confirmations": confirmations}
    for key, value in wanted.items():
        if value < 1:
            raise ValueError(f"layer_search.{key}: got {value}, want at least 1")
    for key, share in (("forget_at_most", forget), ("lost_at_most", lost)):
        if not 0 < share < 1:
            raise ValueError(f"layer_search.{key}: got {share}, want a share in (0, 1)")
    z2 = 1.959964**2
    if z2 / (pictures + z2) > forget:  # Wilson's upper end when none is recognised
        least = int(z2 * (1 - forget) / forget) + 1
        raise ValueError(
            f"layer_search.pictures={pictures}: even with none recognised the 95 % interval reaches "
            f"{z2 / (pictures + z2):.2f}, above forget_at_most={forget}: no step could be feasible. Draw at least {least}"
        )


def _scores(
    model: Diffusion, gradients: Mapping[str, Gradients], granularity: str
) -> tuple[dict[str, LayerScore], dict[str, list[str]]]:
    """Scores of all candidates, and each encoder's front."""
    scores: dict[str, LayerScore] = {}
    fronts = {}
    for encoder, clip in model.clips.items():
        found = gradients[encoder]
        own = layer_scores(clip.weights, found.forget, found.retain, clip.layers(granularity))
        fronts[encoder] = pareto(own, "text")
        scores |= {full_name(encoder, name): score for name, score in own.items()}
    return scores, fronts


def _candidates(
    model: Diffusion, gradients: Mapping[str, Gradients], task: Task, concept: str, fronts: Mapping[str, Sequence[str]],
    start: str, first_step: float, granularity: str,
) -> list[Candidate]:  # fmt: skip
    """What to search, best first: of each encoder one layer of its front, with the relative step to start at."""
    ranked: dict[str, list[tuple[Layer, float]]] = {}
    for encoder, clip in model.clips.items():
        layers = {layer.name: layer for layer in clip.layers(granularity)}
        ranked[encoder] = [(layers[name], first_step) for name in fronts[encoder]]
        if start == "ratio":
            continue
        criterion = "top5" if len(task.probe.forget.classes.names) > 20 else "top1"  # of few names, five are no few
        found = pareto_bisect(clip, gradients[encoder], task.probe, concept, towers=("text",), granularity=granularity,
                              criterion=criterion)  # fmt: skip
        best: dict[str, Evaluation] = {}
        for row in found.trace:
            if row.feasible and (row.layer not in best or kept(row) > kept(best[row.layer])):
                best[row.layer] = row
        order = sorted(best.values(), key=lambda row: -kept(row))
        steps = [(layers[row.layer], row.step / ratio(clip, gradients[encoder], layers[row.layer])) for row in order]
        ranked[encoder] = steps or ranked[encoder]
    out = []
    for together in zip(*ranked.values(), strict=False):
        out.append(Candidate({encoder: layer for encoder, (layer, _) in zip(ranked, together, strict=True)},
                             max(first for _, first in together)))  # fmt: skip
    return out
