"""Given layers and steps: one of each (`fixed`) or every pair (`grid`). Scores and front are still computed and kept."""

from __future__ import annotations

from collections.abc import Sequence

from muwa.layer_search.checks import check_settings
from muwa.layer_search.pareto import pareto
from muwa.layer_search.scores import layer_scores
from muwa.layer_search.steps import Log, StepEvaluator, choose, silent
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.progress import track
from muwa.types.data import Split
from muwa.types.gradients import Gradients
from muwa.types.search import Search


def grid(
    model: Clip,
    gradients: Gradients,
    probe: Split,
    concept: str,
    *,
    granularity: str = "tensor",
    rule: str = "constrained",
    tolerance: float = 1.0,
    layers: Sequence[str] | None = None,
    steps: Sequence[float] | None = None,
    relative_steps: Sequence[float] | None = (0.05, 0.1, 0.2, 0.4),
    target: float = 0.0,
    criterion: str = "top5",
    towers: Sequence[str] = ("vision", "text"),
    features: Features | None = None,
    log: Log = silent,
    progress: bool = False,
) -> Search:
    """Try every given step on every given layer and choose by `rule`.

    Args:
        layers: Names at this granularity; the layers on the Pareto front when None.
        steps: lambda in `theta + lambda * g_f`, as `edit.step` of results.json says it.
        relative_steps: The same as fractions of |theta| / |g_f|. Exactly one of the two is given.
        Others: as in `muwa.layer_search.bisection.pareto_bisect`.

    Raises:
        ValueError: A layer is unknown (names the nearest), both or neither kind of step is given, or a setting is
            out of range.
    """
    check_settings(
        model, rule=rule, criterion=criterion, target=target, towers=towers, granularity=granularity, layers=layers,
        steps=steps, relative_steps=relative_steps, tolerance=tolerance,
    )  # fmt: skip
    candidates = {layer.name: layer for layer in model.layers(granularity)}
    scores = layer_scores(model.weights, gradients.forget, gradients.retain, list(candidates.values()))
    front = tuple(name for tower in towers for name in pareto(scores, tower))
    log("scores", {"concept": concept, "scores": scores, "front": front})
    tried = [candidates[name] for name in (front if layers is None else layers)]
    trial = StepEvaluator(
        model, gradients, probe, tried, features, concept=concept, criterion=criterion, target=target, log=log
    )
    before = trial.before()
    pairs = [
        (layer, step if steps is not None else step * trial.ratio(layer))
        for layer in tried
        for step in (steps if steps is not None else relative_steps or ())
    ]
    for layer, step in track(pairs, f"trying {len(pairs)} edits", len(pairs), show=progress):
        trial(layer, step)
    chosen, why = choose(trial.trace, rule=rule, criterion=criterion, tolerance=tolerance, counts=trial.counts)
    return Search(concept, rule, granularity, scores, front, before, tuple(trial.trace), chosen, why)


def fixed(
    model: Clip,
    gradients: Gradients,
    probe: Split,
    concept: str,
    *,
    layer: str,
    granularity: str = "tensor",
    rule: str = "paper",
    tolerance: float = 1.0,
    step: float | None = None,
    relative_step: float | None = None,
    target: float = 0.0,
    criterion: str = "top5",
    towers: Sequence[str] = ("vision", "text"),
    features: Features | None = None,
    log: Log = silent,
    progress: bool = False,
) -> Search:
    """One given step on one given layer: judged, and taken whether feasible or not unless `rule` is "constrained".

    Args:
        step, relative_step: As in `grid`, one number; exactly one of the two.
    """
    return grid(
        model, gradients, probe, concept, granularity=granularity, rule=rule, layers=[layer],
        steps=None if step is None else [step], relative_steps=None if relative_step is None else [relative_step],
        tolerance=tolerance, target=target, criterion=criterion, towers=towers, features=features, log=log,
        progress=progress,
    )  # fmt: skip
