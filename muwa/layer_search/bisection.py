"""SLUG's own search: for every layer on the Pareto front, double or halve the step until the name is forgotten."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from muwa.layer_search.checks import check_settings
from muwa.layer_search.pareto import pareto
from muwa.layer_search.scores import layer_scores
from muwa.layer_search.steps import Log, StepEvaluator, choose, silent
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.progress import track
from muwa.types.data import Split
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, Search


def bisection(first: float, max_evals: int) -> Generator[float, bool, None]:
    """Yield the steps of the release's bisection; send back whether the last one forgot.

    Starts at `first`; doubles while not forgotten; once a step has forgotten, always takes the midpoint between the
    largest step that did not and the last one that did. Stops after `max_evals` steps, never earlier.

    Source: SLUG, section 1.6 of the facts, `unlearn_slug.py` of the release line by line, with positive steps.

    >>> steps = bisection(0.8, 4)
    >>> next(steps), steps.send(False), steps.send(True), round(steps.send(True), 9)
    (0.8, 1.6, 1.2000000000000002, 1.0)
    """
    low, high, step = 0.0, None, first
    for _ in range(max_evals):
        forgotten = yield step
        if forgotten:
            high = step
            step = (low + high) / 2
        else:
            low = step
            step = 2 * step if high is None else (low + high) / 2


def pareto_bisect(
    model: Clip,
    gradients: Gradients,
    probe: Split,
    concept: str,
    *,
    granularity: str = "tensor",
    rule: str = "constrained",
    tolerance: float = 1.0,
    first_step: float = 0.1,
    max_evals: int = 10,
    target: float = 0.0,
    criterion: str = "top5",
    towers: Sequence[str] = ("vision", "text"),
    features: Features | None = None,
    log: Log = silent,
    progress: bool = False,
) -> Search:
    """Search every layer on each tower's Pareto front by bisection, from input to output, and choose by `rule`.

    Args:
        probe: LabelledImages to judge on; disjoint from those that gave gradients and from those that are reported.
        concept: The name to forget, for the record.
        granularity: "tensor" | "qkv" | "mlp" | "head" (`muwa.models.clip.layers`).
        rule: "constrained" | "paper" | "deepest" (`muwa.layer_search.steps.choose`).
        tolerance: Of "constrained": what counts as keeping as much, in standard errors of the probe's rates.
        first_step: First step as a fraction of |theta| / |g_f|; the paper's is 0.1.
        max_evals: Steps tried a layer; the paper's is 10.
        target: A step is feasible when the forget accuracy is at or below it.
        criterion: Which forget accuracy: "top5" (the paper's) or "top1".
        towers: Which towers to search: "vision", "text" or both.
        features: Of `model`, where decoded pictures and embeddings come from; None computes them.
        log: Told of scores and of every evaluation.

    Returns:
        The search with its whole trace; `chosen` is None when the rule found no step.

    Raises:
        ValueError: A setting is out of range; names its key.

    Source: SLUG (arXiv 2407.11867), algorithms 1 to 3; sections 1.4 to 1.6 of the facts.
    """
    check_settings(
        model, rule=rule, criterion=criterion, target=target, first_step=first_step, max_evals=max_evals, towers=towers,
        granularity=granularity, tolerance=tolerance,
    )  # fmt: skip
    candidates = {layer.name: layer for layer in model.layers(granularity)}
    scores = layer_scores(model.weights, gradients.forget, gradients.retain, list(candidates.values()))
    front = tuple(name for tower in towers for name in pareto(scores, tower))
    log("scores", {"concept": concept, "scores": scores, "front": front})
    searched = sorted((candidates[name] for name in front), key=lambda layer: (towers.index(layer.tower), layer.depth))
    if rule == "deepest" and searched:
        searched = [deepest([candidates[name] for name in front])]
    trial = StepEvaluator(
        model, gradients, probe, searched, features, concept=concept, criterion=criterion, target=target, log=log
    )
    before = trial.before()
    for _ in track(_steps(searched, trial, first_step, max_evals), f"searching {len(searched)} layers",
                   len(searched) * max_evals, show=progress):  # fmt: skip
        pass
    chosen, why = choose(trial.trace, rule=rule, criterion=criterion, tolerance=tolerance, counts=trial.counts)
    return Search(concept, rule, granularity, scores, front, before, tuple(trial.trace), chosen, why)


def _steps(searched: Sequence[Layer], trial: StepEvaluator, first_step: float, max_evals: int) -> Generator[Evaluation]:
    for layer in searched:
        steps = bisection(first_step * trial.ratio(layer), max_evals)
        step: float | None = next(steps)
        while step is not None:
            row = trial(layer, step)
            yield row
            step = next_step(steps, row.feasible)


def next_step(steps: Generator[float, bool, None], forgotten: bool) -> float | None:
    """The next step of a bisection, None when it is over."""
    try:
        return steps.send(forgotten)
    except StopIteration:
        return None


def deepest(layers: Sequence[Layer]) -> Layer:
    """The layer nearest its tower's output; vision before text, then the later one, where depths are equal.

    Source: SLUG, section 1.5 of the facts: the release's rule for SD and VLM, which search one tower only.
    """
    return max(enumerate(layers), key=lambda pair: (pair[1].depth, pair[1].tower == "vision", pair[0]))[1]
