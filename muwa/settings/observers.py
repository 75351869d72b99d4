"""Which methods, layer searches and measures fit which model: found in a config before the model is loaded.

Each says which outputs it looks at (`Measure.observes`), and a model which it has (`Editable.observer`). Both
are class attributes, which are read from the source here. `muwa.models.base.check_observer` checks the same
on the loaded model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from muwa.settings.source_signatures import class_value, returned_class

_OF_METHODS = ("gradient_source", "layer_search")  # groups that methods refer to
_PROMPTS = "prompts"  # muwa.types.data.PROMPTS, whose module is slow to import


def check_method(config: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Raise if the method, or the gradient source or layer search that it uses, does not fit the model.

    What the source does not tell is passed.

    Args:
        config: Group -> its settings as plain values: "model", "method" and the groups that it refers to.
        folders: Folders with configs, whose choices are named.

    Raises:
        ValueError: Names the group, and its choices that fit.
    """
    if (has := _observer(config["model"])) is None:
        return
    for target in _targets_within(config["method"]):
        wants = class_value(target, "observes")
        if wants in (None, has):
            continue
        # What is written within the method's own settings is told of the method.
        group = next((one for one in _OF_METHODS if _target(config[one]) == target), "method")
        targets = {name: [*map(_target, nodes)] for name, nodes in _choices(folders, group)}
        fitting = [
            name
            for name, some in targets.items()
            if all(class_value(one, "observes") in (None, has) for one in some)
        ]
        listed = f"; choices that fit: {group}={', '.join(fitting)}" if fitting else ""
        chosen = [name for name, some in targets.items() if target in some]
        where = f"{group}={chosen[0]}" if len(chosen) == 1 else group
        raise ValueError(f"{where}: the model is {_family(has)}, want {_family(wants)}{listed}")


def check_measures(config: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Raise if a measure does not fit the model, or does not read the prompts of task=prompts.

    What the source does not tell is passed.

    Args:
        config: Group -> its settings as plain values: "model", "task" and "eval".
        folders: Folders with configs, whose choices of `eval` are named.

    Raises:
        ValueError: Names the measure, and the choices that fit.
    """
    if (has := _observer(config["model"])) is None:
        return
    prompts = _PROMPTS in (class_value(_target(config["task"]), "kinds") or ())
    targets = dict(_targets(config["eval"]))
    wanted = {key: class_value(target, "observes") for key, target in targets.items()}
    if prompts and not _that_fit(folders, has, prompts):
        some = [one for targets in _measures(folders).values() for one in targets if _reads(one)]
        readers = dict.fromkeys(_family(str(class_value(one, "observes"))) for one in some)
        raise ValueError(f"task=prompts: the model is {_family(has)}, want {' or '.join(readers)}")
    for key, wants in wanted.items():
        if wants is None:
            continue
        if wants != has and len({*wanted.values()}) < 3:  # a list for all families: those that fit are taken
            listed = _that_fit(folders, has, prompts)
            raise ValueError(f"eval.{key}: the model is {_family(has)}, want {_family(wants)}{listed}")
        if wants == has and not _fits(targets[key], has, prompts):
            raise ValueError(
                f"eval.{key}: task=prompts has no images and no prompt for a name"
                f"{_that_fit(folders, has, prompts)}; to leave it out: ~eval.{key}"
            )


def _measures(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Choice of `eval` -> the targets of its measures. Reads all files of the group."""
    return {
        name: [target for node in nodes for _, target in _targets(node)]
        for name, nodes in _choices(folders, "eval")
    }


def _that_fit(folders: Sequence[Path], has: str, prompts: bool) -> str:
    """The end of a message: the choices of `eval` that fit the model and the task; empty if none does."""
    measures = _measures(folders).items()
    fitting = [name for name, some in measures if some and all(_fits(one, has, prompts) for one in some)]
    return f"; choices that fit: eval=[{','.join(fitting)}], or some of them" if fitting else ""


def _observer(model: Any) -> str | None:
    """The full name of the observer of a model, from its settings; None if the source does not tell it."""
    made = returned_class(_target(model))
    has = class_value(made, "observer") if made else None
    return has if isinstance(has, str) else None


def _fits(target: str, has: str, prompts: bool) -> bool:
    """Whether a measure looks at these outputs, and reads prompts if the task has nothing else."""
    return class_value(target, "observes") == has and (not prompts or _reads(target))


def _reads(target: str) -> bool:
    """Whether a measure reads the prompts of task=prompts."""
    return class_value(target, "reads_prompts") is True


def _family(observer: object) -> str:
    """How messages call the models that have these outputs."""
    return str(class_value(str(observer), "family") or observer)


def _target(node: Any) -> str:
    return str(node.get("_target_", "")) if isinstance(node, Mapping) else ""


def _targets(measures: Any) -> Iterator[tuple[str, str]]:
    """(Key, target) of each measure of a list."""
    for key, node in measures.items() if isinstance(measures, Mapping) else ():
        if target := _target(node):
            yield str(key), target


def _targets_within(node: Any) -> Iterator[str]:
    """The target of a node, then those of the nodes in it."""
    if isinstance(node, Mapping):
        if target := _target(node):
            yield target
        for inner in node.values():
            yield from _targets_within(inner)


def _choices(folders: Sequence[Path], group: str) -> Iterator[tuple[str, list[Any]]]:
    """(Choice of a group, what is in its file, after what is in those that it is based on), by name."""
    nodes = {}
    for path in sorted(path for folder in folders for path in (folder / group).glob("*.yaml")):
        try:
            nodes[path.stem] = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError):  # of the user's own, and not chosen: Hydra read those
            continue
    for name, node in nodes.items():
        bases = node.get("defaults") if isinstance(node, Mapping) else None
        yield name, [*(nodes[one] for one in bases or () if isinstance(one, str) and one in nodes), node]
