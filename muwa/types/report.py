"""A finished run: the input of the report stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muwa.types.data import Task
from muwa.types.edit import Edit
from muwa.types.example import Example
from muwa.types.metric import Metric
from muwa.types.request import Request
from muwa.types.short import short_repr
from muwa.types.verdict import Rules

PATCH = "patch.safetensors"  # the name of a run's patch in its folder
CARD = "card.md"  # the name of its unlearning card


@dataclass(frozen=True)
class Report:
    """A finished run: everything that results.json holds. docs/results_schema.md documents it.

    Args:
        before, after: The metrics of the unedited and of the edited model.
        rules: The thresholds of the verdict.
        similarity: The similarity matrices (`muwa.pipeline.similarity`).
        seconds: Stage -> seconds.
        cache: Cache stage -> "hit", "miss" or "partial".
        examples: The same prompts or questions, with the outputs of both models.
        cost: What the method cost: seconds, memory, training pairs and more (`muwa.pipeline.cost`).
        request: Who asked whom, and when, as the user wrote it: "id", "operator", "date", "basis".
        edited: Digests (SHA-256, hex): "fingerprint" of the edited model; "base" and "weights" of the weights
            that the patch is bound to, before and after the edit; "patch" of the patch file.
        requests: The requests that the model carried before this run; without the stage unlearn, all that it
            carries.
    """

    name: str
    folder: Path
    objective: float
    before: Mapping[str, Metric]
    after: Mapping[str, Metric]
    edit: Edit
    task: Task
    rules: Rules
    similarity: Mapping[str, object]
    seconds: Mapping[str, float]
    cache: Mapping[str, str]
    peak_memory_bytes: int
    provenance: Mapping[str, object] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    request: Mapping[str, str | None] = field(default_factory=dict)
    edited: Mapping[str, str] = field(default_factory=dict)
    requests: tuple[Request, ...] = ()

    __repr__ = short_repr

    def _repr_html_(self) -> str:
        from muwa.report.notebook import compare  # a record does not draw itself: notebooks ask for it

        return compare(self.before, self.after)._repr_html_()
