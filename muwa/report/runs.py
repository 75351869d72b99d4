"""The runs of a sweep, and their grouping by method and settings, for the tables and the sweep's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Results = Mapping[str, Any]  # the content of one results.json

REPEATED = ("task.identity", "task.object", "task.concept", "seed")  # settings that tables take means over
METHOD, _PREFIX = "method", "method."


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Args:
        swept: Setting that was swept -> its value in this run; "" where the run does not have the setting.
        results: The content of its results.json; empty where it has none.
        name: The name of its folder.
        status: "done", "failed", "stopped" or "unfinished".
        why: Why it failed or was stopped, in one line.
    """

    swept: Mapping[str, str]
    results: Results = field(default_factory=dict)
    name: str = ""
    status: str = "done"
    why: str = ""


@dataclass(frozen=True)
class Variant:
    """A method with the settings that were swept, without what was forgotten and without the seed.

    Args:
        settings: "name=value" of each, in the order in which they were swept.
    """

    method: str
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How tables and figures write the variant.

        >>> Variant("ga").label, Variant("ga", ("rule=first", "epochs=2")).label
        ('ga', 'ga (rule=first, epochs=2)')
        """
        return f"{self.method} ({', '.join(self.settings)})" if self.settings else self.method


Variants = Mapping[Variant, Sequence[Results]]


def variant_of(run: SweptRun) -> Variant:
    """The variant that a run belongs to. A setting of the method is written without the word "method"."""
    method = run.swept.get(METHOD) or run.results["provenance"]["method"]
    settings = [
        f"{key.removeprefix(_PREFIX)}={value}"
        for key, value in run.swept.items()
        if value and key != METHOD and key not in REPEATED
    ]
    return Variant(method, tuple(settings))


def grouped(runs: Sequence[SweptRun]) -> dict[Variant, list[Results]]:
    """Variant -> the results of its runs, which differ only in what was forgotten and in the seed.

    Runs with the same swept values count once: they differ in a setting that their method does not read.
    """
    variants: dict[Variant, list[Results]] = {}
    seen: list[Mapping[str, str]] = []
    for run in runs:
        if run.swept not in seen:
            seen.append(run.swept)
            variants.setdefault(variant_of(run), []).append(run.results)
    return variants


def unedited(variants: Variants) -> dict[str, list[Results]]:
    """Label of an unedited model -> one run per request, whose metrics before the edit describe the model.

    All variants of a request share these metrics. Two requests are the same when model and data have the same
    fingerprints. The label is "before", or "before (source, start of the digest)" with several models.
    """
    models: dict[tuple[str, str], dict[tuple[str, str], Results]] = {}
    for run in (run for runs in variants.values() for run in runs):
        model, data = run["provenance"]["model"], run["provenance"]["data"]
        requests = models.setdefault(
            (model["source"], model.get("weights", "")), {}
        )  # only a CLIP says its weights
        requests.setdefault((model["fingerprint"], data["fingerprint"]), run)
    labels = [f"before ({', '.join(filter(None, (source, weights[:8])))})" for source, weights in models]
    if len(models) == 1:
        labels = ["before"]
    return {label: list(requests.values()) for label, requests in zip(labels, models.values(), strict=True)}


def value_of(run: Results, when: str, metric: str) -> float:
    """The value of a metric, `when` "before" or "after" the edit."""
    return run["metrics"][when][metric]["value"]
