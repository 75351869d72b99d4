"""A finished run of two steps on one layer, made by hand, for the tests of the report."""

from dataclasses import replace

import tiny

from muwa.types.edit import Edit, Move
from muwa.types.metric import Metric, Reading
from muwa.types.report import Report
from muwa.types.search import LAMBDA, NOTHING_EDITED, Candidate, Evaluation, LayerScore, Search
from muwa.types.verdict import Rules

RULES = Rules(kept_points=5.0, forget_high=0.5)

# Readings as the metrics of the three families have them.
FIRST_GUESS = Reading(
    "share of held-out images", "lower", role="forgotten", in_objective=True, label="the model's first guess"
)
FIRST_FIVE = replace(FIRST_GUESS, in_objective=False, label="among the model's first five guesses")
OTHERS = Reading("share of held-out images", role="kept", in_objective=True, label="The other names")
UA = Reading(
    "share of generated images",
    "higher",
    role="forgotten",
    in_objective=True,
    label="generated when asked for",
    counted="generated images",
    gone_at=0.05,
)
ANSWERED = Reading(
    "share of right answers",
    "lower",
    role="forgotten",
    in_objective=True,
    label="named when asked for",
    counted="images asked about",
    gone_at=0.05,
)
WRONG_NAME = Reading("share of answers", "neither", role="detail", label="name another")
REFUSED = Reading("share of answers", "neither", role="detail", label="say that they do not know")
ATTACK = Reading(
    "share", "lower", role="attack", label="in other words", counted="generated images", gone_at=0.05
)


def evaluation(layer, step, forget, feasible):
    """A step whose retain and utility rates are 0.9 and 0.8."""
    metrics = {
        "forget_top1": forget,
        "forget_top5": forget,
        "forget_cosine": 0.2,
        "retain_top1": 0.9,
        "utility_top1": 0.8,
    }
    candidate = Candidate({"": layer}, "vision") if layer else NOTHING_EDITED
    return Evaluation(candidate, 1, step, LAMBDA, step / 10, feasible, forget, 0.85, 0.01, 0.2, metrics)


def report(folder, *, chosen=1, after=0.0):
    """The run: 2 forget and 7 retain images; `after` is the forget accuracy after the edit."""
    score = LayerScore(0.5, 0.1, -0.1, 2.0, 1.0, 3.0, "vision")
    trace = (evaluation("visual.proj", 1.0, 0.5, False), evaluation("visual.proj", 2.0, 0.0, True))
    name = tiny.NAMES[0]
    search = Search(
        name,
        "constrained",
        "tensor",
        {"visual.proj": score},
        ("visual.proj",),
        evaluation("", 0.0, 1.0, False),
        trace,
        chosen,
        "A reason.",
    )
    moves = () if chosen is None else (Move(name, "vision", "visual.proj", 2.0, 0.2),)
    return Report(
        name="slug",
        folder=folder,
        objective=0.02,
        before={
            "forget/top1": Metric(1.0, 2, 0.3, 1.0, FIRST_GUESS),
            "retain/top1": Metric(0.9, 7, 0.6, 1.0, OTHERS),
        },
        after={
            "forget/top1": Metric(after, 2, 0.0, 0.7, FIRST_GUESS),
            "retain/top1": Metric(0.88, 7, 0.6, 1.0, OTHERS),
        },
        edit=Edit({}, moves, (search,)),
        task=tiny.task(),
        rules=RULES,
        similarity={
            "names": list(tiny.NAMES[:2]),
            "n": [2, 1],
            "before": [[0.5, 0.1], [0.1, 0.5]],
            "after": [[0.2, 0.1], [0.1, 0.5]],
        },
        seconds={"total": 1.0},
        cache={"search": "miss"},
        peak_memory_bytes=10**9,
        provenance={"model": {"source": "tiny"}, "command": "python launch.py"},
    )


def rates_only(made):
    """The run with no other figure than that of its rates: for a page whose text is looked at."""
    return replace(made, edit=replace(made.edit, searches=()), similarity={})
