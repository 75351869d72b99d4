"""All settings of conf/, and what each must refuse. The expectations come from the YAML files, not from signatures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from conftest import CONF
from omegaconf import OmegaConf

VALUES: dict[str, Any] = {
    "abc": "abc", "nan": math.nan, "inf": math.inf, "-1e30": -1e30, "1e30": 1e30, "2**40": 2**40, "-1": -1, "0": 0, "null": None,
    "empty": "", "[]": [], "{}": {}, "true": True,
}  # fmt: skip
# Settings of conf/ that may be below 0: a step may go up a gradient, and a mean of pixels may be anything.
NEGATIVE = {"step", "relative_step", "stranger", "threshold"}
# Numbers that may be 0, by the comment beside them or by their meaning.
ZERO = NEGATIVE | {
    "seed", "first_seed", "forget_target", "target", "utility", "utility_probe", "max_broken", "max_empty", "tolerance",
    "input_power", "output_power", "weight_decay", "patience", "cross", "retain", "blur", "noise", "mismatch_weight", "alpha",
    "preserve_scale", "prior_weight", "eta", "share", "confidence", "forget_pairs", "retain_pairs", "probe_retain", "eval_retain",
    "probe_utility", "eval_utility", "probe_forget", "eval_forget", "kept_points", "forget_high",
}  # fmt: skip
UNSAID = {"others", "alpha", "threshold", "step"}  # one record takes a number up to 0, another does not
NULL = {"group", "relative_steps", "canvas"}  # these may be null, though no comment says so
EMPTY_TEXT = {"anchor"}  # "" is the paper's choice: no name
TABLES = {"aliases", "descriptions", "options"}  # mappings whose keys the user chooses
GIVEN = {  # choices that need others
    "fixed": ["layer_search.layer=visual.proj", "layer_search.step=1"],
    **{name: ["model=vlm"] for name in ("answers", "answer_attacks", "benchmarks", "people", "answer", "margin",
                                        "answering", "answering_by_gain")},
    **{name: ["model=sd"] for name in ("attacks", "canvas", "quality", "token_attack", "prompts", "generation",
                                       "generation_by_gain", "esd", "uce", "concept_ablation")},
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting of a file of conf/.

    Args:
        file: The file, without `conf/` and `.yaml`.
        key: Its key in the composed config.
        default: What the file gives.
        nullable: Whether null is the default of a setting of that name, or a comment beside one speaks of null.
    """

    file: str
    key: str
    default: Any
    nullable: bool

    @property
    def overrides(self) -> list[str]:
        """The overrides that choose the file."""
        group, _, name = self.file.rpartition("/")
        if not group:
            return []
        chosen = f"{group}=[{name}]" if group in ("eval", "logger") else f"{group}={name}"
        return [chosen, *GIVEN.get(name, [])]

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def settings() -> list[Setting]:
    """Every leaf that a file of conf/ sets, except Hydra's own, and those that an experiment changes."""
    found: list[Setting] = []
    nullable = NULL | {name for path in CONF.rglob("*.yaml") for name in _said_to_be_null(path)}
    for path in sorted(CONF.rglob("*.yaml")):
        file = path.relative_to(CONF).with_suffix("").as_posix()
        group = file.rpartition("/")[0]
        if group.startswith(("hydra", "experiment")):
            continue
        content = yaml.safe_load(path.read_text())
        for key, default in _leaves(content):
            if key.split(".")[0] in ("defaults", "hydra"):
                continue
            name = key.rpartition(".")[2]
            found.append(Setting(file, f"{group}.{key}".lstrip("."), default, name in nullable))
    return found


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(Key, value) of every setting in nested mappings; a mapping of texts by name is one setting."""
    if isinstance(value, Mapping) and value and not _is_table(value, key):
        for name, inner in value.items():
            if name not in ("_target_", "_partial_"):
                yield from _leaves(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def _said_to_be_null(path: Path) -> set[str]:
    """The names of settings on whose line the word null stands."""
    lines = [line for line in path.read_text().splitlines() if "null" in line and not line.startswith("#")]
    return {found[1] for line in lines if (found := re.match(r"\s*(\w+):", line))}


def _is_table(value: Mapping[str, Any], key: str) -> bool:
    return key.rpartition(".")[2] in TABLES or ("path" in value and "get_object" in value.get("_target_", ""))


def must_be_refused(setting: Setting, value: Any, default: Any) -> bool | None:
    """Whether a setting must refuse a value; None if the YAML file does not tell.

    Args:
        default: What the setting is without an override, references resolved.
    """
    if (setting.file == "config" and not isinstance(default, float | int | list)) or (
        setting.name in UNSAID and value in (0, -1)
    ):
        return None  # Hydra converts the texts and switches of the typed root
    if value is None:
        return None if setting.nullable or default is None else True
    if isinstance(value, float) and not math.isfinite(value):
        return True
    if value == "" and isinstance(value, str):
        return None if setting.name in EMPTY_TEXT else True
    if isinstance(value, float) and abs(value) == 1e30:
        return True
    if isinstance(default, bool):
        if setting.file == "config":
            return None
        return not isinstance(value, bool)
    if isinstance(default, int | float):
        return _number_refuses(setting, value)
    if isinstance(default, str):
        return None if isinstance(value, str | list | int) and not isinstance(value, bool) else True
    if isinstance(default, list | Mapping):
        return None if isinstance(value, list | Mapping | str) else True
    return True if value is True or (value == -1 and setting.name not in NEGATIVE | {"identity"}) else None


def _number_refuses(setting: Setting, value: Any) -> bool | None:
    if isinstance(value, bool | str | list | Mapping):
        return True
    if value == -1:
        return setting.name not in NEGATIVE
    if value == 0:
        return setting.name not in ZERO
    return True if value == 2**40 else None


def resolved(cfg: Any, key: str) -> Any:
    """The value of a key as plain values; None if it cannot be resolved in this config."""
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
