"""Search a layer and a step of the text encoder by what the pipeline draws: same prompts, same seeds, before and after."""

from __future__ import annotations

from collections.abc import Mapping

from muwa.cache.store import Store
from muwa.layer_search.by_outputs import by_outputs, check_outputs, check_pictures
from muwa.layer_search.evaluators.images import ImageEvaluator
from muwa.layer_search.steps import Log, silent
from muwa.models.diffusion.image_generation import ImageClassifier
from muwa.models.diffusion.model import Diffusion
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Search


def generation(
    model: Diffusion,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    *,
    classifier: ImageClassifier,
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
        classifier: Says what a picture shows; never the model under test.
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
        ValueError: A setting is out of range; the classifier has no label for a concept.

    Source: SLUG, section 1.6 of the facts: stop when the target is gone and the others stay within 10 points. Differs: the
    release judges each step on three unseeded pictures of each kind, by points; here n is given, seeds are fixed, the
    comparison is paired, and intervals decide.
    """
    check_outputs(
        model, start=start, rule=rule, tolerance=tolerance, first_step=first_step, max_evals=max_evals,
        granularity=granularity, forget_at_most=forget_at_most, lost_at_most=lost_at_most,
        counts={"pictures": pictures, "retain_pictures": retain_pictures, "sampling_steps": sampling_steps,
                "confirmations": confirmations},
    )  # fmt: skip
    check_pictures("layer_search.pictures", pictures, forget_at_most)
    judge = ImageEvaluator(
        model, gradients, task, classifier, store, pictures, retain_pictures, sampling_steps, forget_at_most, progress
    )
    return by_outputs(
        model, gradients, task, concept, judge, start=start, candidates=candidates, granularity=granularity, rule=rule,
        tolerance=tolerance, first_step=first_step, max_evals=max_evals, lost_at_most=lost_at_most,
        confirmations=confirmations, log=log, progress=progress,
    )  # fmt: skip
