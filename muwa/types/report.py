"""A finished run, as the report stage takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muwa.types.data import Task
from muwa.types.edit import Edit
from muwa.types.example import Example
from muwa.types.metric import Metric


@dataclass(frozen=True)
class Report:
    """A finished run: everything `results.json` says (documented in docs/results_schema.md)."""

    name: str
    folder: Path
    objective: float
    before: Mapping[str, Metric]
    after: Mapping[str, Metric]
    edit: Edit
    task: Task
    similarity: Mapping[str, object]
    seconds: Mapping[str, float]
    cache: Mapping[str, str]
    peak_memory_bytes: int
    provenance: Mapping[str, object] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()  # the same prompts and questions, before and after
    cost: Mapping[str, float] = field(default_factory=dict)  # of the method: seconds, memory, samples, ...
