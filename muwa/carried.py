"""What a run makes of a model that carries requests: its task, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from muwa.data.samples import fold
from muwa.runtime.notices import notice
from muwa.settings.signatures import check
from muwa.types.stages import only_measures

if TYPE_CHECKING:
    from muwa.data.base import TaskBuilder
    from muwa.data.dataset import Dataset
    from muwa.models.base import Editable
    from muwa.patch.carrying import Carrying
    from muwa.types.data import Task


def task_of(
    carrying: Carrying, builder: TaskBuilder, dataset: Dataset, settings: Mapping[str, Any], progress: bool
) -> Task:
    """The task on a model that may carry requests.

    A run that makes an edit keeps the earlier names apart. A run that only measures forgets all that the
    model carries, unless the command says which names to measure.

    Args:
        settings: The whole config as plain values; its `stages` and `given` are read.

    Raises:
        ValueError: The model carries nothing that could be measured, or only kinds that the task cannot make.
    """
    names = carrying.names
    if only_measures(settings["stages"]) and not is_given(builder, settings):
        named = _carried_names(carrying, builder)
        builder = builder.forgetting(named)
        builder.check(dataset)
        names = tuple(name for name in names if name not in named)
    elif again := [name for name in names if fold(name) in _asked(builder)]:
        notice(f"{', '.join(again)}: already forgotten in this model, by an earlier request")
    if not names:
        return builder(dataset, progress=progress)
    task = builder.after(names, dataset, progress=progress)
    judged = {fold(name) for name in task.eval.earlier_names}
    if lacking := [name for name in task.earlier if fold(name) not in judged]:
        notice(f"{', '.join(lacking)}: forgotten before, but this data has nothing to measure it on")
    return task


def _asked(builder: TaskBuilder) -> set[str]:
    """What the task is to forget, folded."""
    given = getattr(builder, builder.names_setting)
    return {fold(str(name)) for name in ([given] if isinstance(given, str | int) else given or ())}


def is_given(builder: TaskBuilder, settings: Mapping[str, Any]) -> bool:
    """Whether the command says what to forget."""
    return f"task.{builder.names_setting}" in settings["given"]


def _carried_names(carrying: Carrying, builder: TaskBuilder) -> list[str]:
    """The names of the requests whose kind the task makes."""
    mine = [one for one in carrying.requests if not builder.kinds or one.task in ("", *builder.kinds)]
    named = list(dict.fromkeys(name for one in mine for name in one.names))
    if not named:
        kinds = sorted({one.task for one in carrying.requests} - {""})
        raise ValueError(
            f"stages=[eval]: want patches of the kind {' or '.join(builder.kinds)}, {carrying.model.source} "
            f"carries {'some of the kind ' + ', '.join(kinds) if kinds else 'none'}; give patches=[FILE], a "
            f"model that carries patches, another task, or task.{builder.names_setting}=NAME"
        )
    return named


def with_original(carrying: Carrying, load: partial[Editable], base: Mapping[str, Any] | None) -> Carrying:
    """What a run that only measures compares with: the model that `base` describes, or the one that is known.

    Args:
        load: Loads the model that is measured.
        base: Its settings that differ for the unedited model.

    Raises:
        ValueError: A setting does not exist, or there is nothing to compare.
    """
    source = carrying.model.source
    if base:
        load = partial(load.func, *load.args, **{**load.keywords, **base})
        check({"base": load}, whole=True)
        return replace(carrying, original=load())
    if not carrying.requests:
        raise ValueError(
            f"stages=[eval]: {source} carries no patch, so there is nothing to compare; give patches=[FILE], "
            "a model that carries patches, or base={...}, the settings of the unedited model"
        )
    if carrying.original is None:
        notice(
            f"{source}: its unedited weights are not known, so the values before are those of the same "
            "weights as after. To compare, give the settings of the unedited model: 'base={path: FOLDER}'"
        )
    return carrying
