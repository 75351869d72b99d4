"""The config: its typed root, the parts that it configures, and how a command ends if it does not fit.

A config group names a class or a function (`_target_`). Its signature is the schema: every keyword is checked
against it before any compute.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

from annotated_types import Interval
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, InstantiationException, SearchPathException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from muwa import multirun
from muwa.cli import help_page
from muwa.cli.refused import in_one_line
from muwa.cli.spelling import choices_with
from muwa.command_line import CONF, OWN_CONF, adapted, config_folders, refusal_of
from muwa.data.addresses import hide
from muwa.errors import message_of
from muwa.runtime import stopping
from muwa.runtime.notices import notice
from muwa.settings import composition, observers
from muwa.settings.signatures import check, check_value
from muwa.settings.unused import unused
from muwa.types.ranges import Device, LearningRate, Positive, Seed, Share, Text, TextsByName

PARTS = ("model", "dataset", "task", "method", "eval", "logger")
# Groups whose parts are records of settings. The parts of the other groups are loaders.
RECORDS = ("task", "method", "eval", "gradient_source", "layer_search")
GROUPS = (*PARTS, "gradient_source", "layer_search", "classifier")
LISTS = ("eval", "logger")  # groups of which several choices are taken: name -> part
RANGES = {  # of the settings at the root; what a group's settings may be stands in the signature they fill
    "seed": Seed,
    "forget_target": Share,
    "learning_rate": LearningRate,
    "checkpoint": Literal["best", "first"],
    "name": Text,
    "gradients": Text | None,
    "paths.outputs": Text,
    "paths.cache": Text,
    "paths.data": Text,
    "runtime.device": Device,
    "whitening.damping": Positive,
    "whitening.output_damping": Positive,
    "whitening.input_power": Share,
    "whitening.output_power": Share,
    "questions": TextsByName,
    "verdict.kept_points": Annotated[float, Interval(ge=0, le=100)],
    "verdict.forget_high": Share,
    "runtime.threads": Annotated[int, Interval(ge=1, le=1024)] | None,
}
_HOME = re.compile(r"(|local-dir:)~(?=/|$)")
STAGES = ("curate", "unlearn", "eval", "report")


@dataclass
class Paths:
    """Folders of this machine. They are part of no cache key."""

    outputs: str = MISSING
    cache: str = MISSING
    data: str = MISSING
    run: str = MISSING
    sweep: str = MISSING


@dataclass
class Runtime:
    """Settings that cannot change a result."""

    device: str = MISSING
    threads: int | None = None
    progress: bool = True


@dataclass
class CurateSettings:
    """Settings of the stage curate."""

    dry_run: bool = False


@dataclass
class ReportSettings:
    """Settings of the report."""

    show_forget: bool = False


@dataclass
class VerdictSettings:
    """The thresholds of the verdict (`muwa.types.verdict.Rules`)."""

    kept_points: float = MISSING
    forget_high: float = MISSING


@dataclass
class RequestSettings:
    """Who asked whom, for the card. Free text, never required."""

    id: str | None = None
    operator: str | None = None
    date: str | None = None
    basis: str | None = None


@dataclass
class Root:
    """muwa/conf/config.yaml's schema: a misspelt key is an error that gives its full name."""

    name: str = MISSING
    seed: int = MISSING
    stages: list[str] = MISSING
    forget_target: float = MISSING
    learning_rate: float = MISSING
    checkpoint: str = MISSING
    gradients: str | None = None
    patches: list[str] = field(default_factory=list)
    base: Any = None
    paths: Paths = field(default_factory=Paths)
    runtime: Runtime = field(default_factory=Runtime)
    curate: CurateSettings = field(default_factory=CurateSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    verdict: VerdictSettings = field(default_factory=VerdictSettings)
    request: RequestSettings = field(default_factory=RequestSettings)
    model: Any = MISSING
    dataset: Any = MISSING
    task: Any = MISSING
    method: Any = MISSING
    gradient_source: Any = MISSING
    whitening: Any = MISSING
    layer_search: Any = MISSING
    eval: Any = field(default_factory=dict)
    classifier: Any = MISSING
    questions: Any = MISSING
    logger: Any = field(default_factory=dict)


def register() -> None:
    """Tell Hydra of the typed root (`root`, config.yaml's first default), own configs and the help."""
    _store_root()
    Plugins.instance().register(OwnConf)
    OmegaConf.register_new_resolver("muwa_program", help_page.started, replace=True)
    OmegaConf.register_new_resolver("muwa_choices", _choices, replace=True)


@functools.cache
def _store_root() -> None:
    ConfigStore.instance().store(name="root", node=Root)


def _choices(*, _root_: DictConfig) -> str:
    """The groups of the page `--help`, with what the command line chose."""
    lists = {group: list(_root_[group]) for group in ("eval", "logger")}
    return help_page.choices(config_folders(), {**HydraConfig.get().runtime.choices, **lists})


class OwnConf(SearchPathPlugin):
    """Adds the folder `conf/` where muwa is started to Hydra's search path, after muwa's own configs.

    Modules in that folder's parent can then be named in `_target_`, also by the installed command.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra when it makes its search path."""
        own = OWN_CONF.resolve()
        if not own.is_dir() or own == CONF:
            return
        hidden = [path for path in sorted(own.glob("*/*.yaml")) if (CONF / path.relative_to(own)).is_file()]
        if hidden:
            some = ", ".join(str(path.relative_to(own.parent)) for path in hidden[:3])
            notice(f"{some}: not read, for muwa has a choice of that name; give yours another name")
        search_path.append("own", f"file://{own}")
        if str(own.parent) not in sys.path:
            sys.path.append(str(own.parent))


class Parts(Mapping[str, Any]):
    """The parts of a composed config: task, method and metrics as records, the others as partials.

    A part is made when it is first asked for. Task and data set are made without torch.

    Raises:
        ValueError: A stage is unknown, or a value is missing (`???`); later, for one part: a keyword does not
            fit. Names the key.
    """

    def __init__(self, cfg: DictConfig):
        try:
            self._plain = _checked_values(cfg)
        except OmegaConfBaseException as error:  # a reference to a key that does not exist
            raise ValueError(_said(error, "config", cfg)) from error
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in PARTS:
            raise KeyError(name)
        if name not in self._made:
            made = _instantiated(self._plain[name], name)
            check({name: made}, whole=name in RECORDS)
            self._made[name] = with_records(made) if name in RECORDS else made
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(PARTS)

    def __len__(self) -> int:
        return len(PARTS)


def build(cfg: DictConfig) -> dict[str, Any]:
    """All parts of a composed config at once (`Parts`)."""
    return dict(Parts(cfg))


def _checked_values(cfg: DictConfig) -> dict[str, Any]:
    """Group -> its settings as plain values.

    Raises:
        ValueError: A value is missing or out of range, or a stage is unknown. Names the key.
    """
    written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    missing = sorted({*_without_value(written)} - {"paths.run"})
    if missing:
        raise ValueError(
            f"config: no value was given for {', '.join(missing)}; add {missing[0]}=VALUE to the command"
        )
    for key, annotation in RANGES.items():
        value = OmegaConf.select(cfg, key)
        check_value(key, annotation, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    unknown = [stage for stage in cfg.stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages: got {unknown[0]!r}, want some of {', '.join(STAGES)}")
    if not {"curate", "unlearn", "eval"} & {*cfg.stages}:
        raise ValueError(
            f"stages: got {list(cfg.stages)}, want curate, unlearn or eval among them: nothing would be done"
        )
    plain = {group: _plain(cfg, group) for group in GROUPS}
    for group in LISTS:
        composition.check_parts(group, plain[group])
    composition.check(plain, written, RECORDS)
    if "unlearn" in cfg.stages:
        observers.check_method(plain, [CONF, OWN_CONF])
    if "eval" in cfg.stages:
        if not cfg.eval:
            raise ValueError("eval: got no measure, want some (eval=[forget,retain]), or stages=[unlearn]")
        observers.check_measures(plain, [CONF, OWN_CONF])
    if cfg.base and "unlearn" in cfg.stages:
        raise ValueError("base: is for stages=[eval], which measures the unedited model first; leave it out")
    return plain


def _without_value(written: Any, key: str = "") -> Iterator[str]:
    """The keys of nested settings that are still to be given (`???`)."""
    if written == MISSING:
        yield key
    elif isinstance(written, Mapping):
        for name, value in written.items():
            yield from _without_value(value, f"{key}.{name}" if key else str(name))
    elif isinstance(written, list):
        for place, value in enumerate(written):
            yield from _without_value(value, f"{key}[{place}]")


def _plain(cfg: DictConfig, group: str) -> Any:
    """The settings of a group as plain values.

    Raises:
        ValueError: A value refers to one that does not exist, or that has no value. Names the key.
    """
    try:
        return in_home(OmegaConf.to_container(cfg[group], resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(_said(error, group, cfg)) from error


def _said(error: OmegaConfBaseException, where: str, cfg: DictConfig) -> str:
    """The error in one line, with the key; or with `where`, if it knows none."""
    if isinstance(error, InterpolationKeyError) and (said := _said_of_choices(error, cfg)):
        return said
    return f"{error.full_key or where}: {str(error.msg).splitlines()[0]}, want a value"


def _said_of_choices(error: InterpolationKeyError, cfg: DictConfig) -> str | None:
    """The error, if a choice of one group refers to a setting that the choice of another does not have."""
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in (error.full_key or "").split("."):
        written = written.get(key) if isinstance(written, Mapping) else None
    wanted = written[2:-1] if isinstance(written, str) and written.startswith("${") else ""
    groups = [path.partition(".")[0] for path in (error.full_key or "", wanted)]
    if not {*groups} <= {*GROUPS} or groups[0] == groups[1]:
        return None
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    using, lacking = (f"{group}={chosen[group]}" if group in chosen else f"this {group}" for group in groups)
    having = choices_with(groups[1], wanted.partition(".")[2], config_folders())
    others = f"{groups[1]}={'|'.join(having)}" if having else f"another {groups[1]}"
    return (
        f"{using} reads {wanted} ({error.full_key}), and {lacking} has no such setting: the two do not go "
        f"together. Take {others}, or another model, whose {groups[0]} does without"
    )


def _instantiated(plain: Any, group: str) -> Any:
    """What Hydra makes of the settings of a group: partials of the classes and functions that its nodes name.

    Raises:
        ValueError: A `_target_` does not exist, as in a config that another version wrote, or its module
            cannot be imported. Names it and says why.
    """
    try:
        return instantiate(plain, _convert_="all")
    except InstantiationException as error:
        said = str(error).splitlines()[0].partition(", set env var")[0]
        why = f" ({_first_cause(error)})" if error.__cause__ else ""
        raise ValueError(f"{group}: {said}{why}; want a class or function that exists") from error


def _first_cause(error: BaseException) -> str:
    """The error that all others of a chain followed from, as Python names it: an import that failed, say."""
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    return f"{type(first).__name__}: {' '.join(str(first).split())}"


def in_home(value: Any) -> Any:
    """`value` with the home folder in place of `~` at the start of each path, also behind `local-dir:`.

    >>> in_home({"path": ["local-dir:~/clip"], "prompt": "a ~/b"}) == {
    ...     "path": [f"local-dir:{Path.home()}/clip"], "prompt": "a ~/b"}
    True
    """
    if isinstance(value, Mapping):
        return {key: in_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [in_home(inner) for inner in value]
    if isinstance(value, str) and (found := _HOME.match(value)):
        return found[1] + str(Path.home()) + value[found.end() :]
    return value


def with_records(part: Any) -> Any:
    """`part` with every partial of a class called, at any depth. Such classes are records of settings.

    Partials of functions stay: they load something when they are called.

    Raises:
        ValueError: A record refuses one of its settings. Names the setting.
    """
    if isinstance(part, Mapping):
        return {name: with_records(inner) for name, inner in part.items()}
    if isinstance(part, partial) and inspect.isclass(part.func):
        return part.func(*part.args, **{name: with_records(inner) for name, inner in part.keywords.items()})
    return part


def part(choice: str, *more: str, **changed: Any) -> Any:
    """One part of the config with the defaults of muwa/conf/, for use from Python.

    Args:
        choice: "group=file" as on the command line: "method=ga", "layer_search=grid", "eval=[forget]".
        more: Further overrides as on the command line, such as "dataset.root=DIR". Settings that refer to an
            overridden one change with it.
        changed: New values of settings, of any type. A mapping changes some settings of a nested record:
            `part("task=celeba", identity="Kael_Lindqvar", limits={"retain_pairs": 96})`.

    Returns:
        What `build` makes of that group: a record of settings, or a partial.

    Raises:
        ValueError: A setting does not exist.

    >>> part("layer_search=pareto_bisect", max_evals=4).max_evals
    4
    """
    group = choice.partition("=")[0]
    cfg = composed(choice, *more).copy()
    for key in changed:
        if OmegaConf.is_missing(cfg[group], key):
            cfg[group][key] = None  # so that the rest can be built; `_with` sets the given value below
    built = _instantiated(_plain(cfg, group), group)
    if isinstance(built, partial):
        built = _with(built, changed)
    elif changed:
        raise ValueError(f"{choice}: holds {', '.join(built)}; change the settings of one of them instead")
    check({group: built}, whole=group in RECORDS)
    return with_records(built) if group in RECORDS else built


def _with(built: partial, changed: Mapping[str, Any]) -> partial:
    """A partial with other keywords; a mapping changes some settings of a nested record."""
    keywords = dict(built.keywords)
    for name, value in changed.items():
        value = in_home(value)
        nested = keywords.get(name)
        if isinstance(nested, partial) and isinstance(value, Mapping):
            value = _with(nested, value)
        keywords[name] = value
    return partial(built.func, *built.args, **keywords)


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The config of launch.py with some overrides. The folders of a launched run are set to outputs/."""
    register()
    if GlobalHydra.instance().is_initialized():
        raise ValueError("config.part: Hydra is running already; take the parts that config.build makes")
    if not CONF.is_dir():
        raise FileNotFoundError(
            f"{CONF}: no such folder, want the defaults of muwa; install it with pip install -e ."
        )
    words = [*adapted(overrides), "paths.run=outputs", "paths.sweep=outputs"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose("config", words)
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise ValueError(refused(error, words)) from error


def refused(error: Exception, words: Sequence[str]) -> str:
    """One line on what Hydra refuses in a command line, in place of its several."""
    return in_one_line(refusal_of(error), words, config_folders(), Root, RANGES)


def settings(cfg: DictConfig) -> dict[str, Any]:
    """The whole config as plain values, with the `command` of this run, for provenance and dashboards."""
    plain = in_home(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(plain, dict)
    return {**{str(key): value for key, value in plain.items()}, "command": _command(), "given": _given()}


def _given() -> list[str]:
    """The settings that the command line gives, by their keys ("task.identity")."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [word.partition("=")[0].lstrip("+~") for word in words]


def tell_unused(cfg: DictConfig) -> None:
    """A notice for each setting of the command line that nothing in this run uses."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    frame = {name for name, kind in get_type_hints(Root).items() if is_dataclass(kind)}  # paths, runtime, ...
    asked = [word for word in words if re.split("[.=]", word.lstrip("+~"))[0] not in frame]
    written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    for word, users in unused(asked, written, PARTS, config_folders()).items():
        notice(f"{hide(word)}: nothing in this run uses it; it is for {', '.join(users)}")


def _command() -> str:
    """The command that repeats this run. For one run of a multirun, it runs only that one.

    Logins and queries of URLs and the commands of `pipe:` are left out: they are secrets.
    """
    program, words = help_page.started(), sys.argv[1:]
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        program, words = help_page.shortest(), list(HydraConfig.get().overrides.task)
    return shlex.join([*shlex.split(program), *map(hide, words)])


def read_run(run: Path, *, trusted: Sequence[str], commands: bool) -> DictConfig:
    """The config of a finished run, as Hydra saved it in `.hydra/config.yaml`.

    The file may be a stranger's, and parts are made of what it names.

    Args:
        trusted: Packages beside muwa whose classes and functions it may name.
        commands: Whether it may have commands run (`pipe:...`).

    Raises:
        ValueError: `run` is not the folder of a run, or its config would run what is not allowed.
    """
    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{run}: no .hydra/config.yaml in it; want the folder of a run, outputs/<name>/<date>/<time>"
        )
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    cfg.paths.run = cfg.paths.sweep = str(run)
    for key, value in _texts(OmegaConf.to_container(cfg, resolve=True)):
        if key.endswith("._target_") and (package := _package_of(value)) not in ("muwa", *trusted):
            raise ValueError(
                f"{path}: {key} is {value}, which is not a part of muwa. If you trust this run: "
                f"--trust {package}"
            )
        runs = value.startswith("pipe:") or key == "classifier.command"
        if runs and not commands:
            raise ValueError(f"{path}: {key} runs a command. If you trust this run: --trust-commands")
    return cfg


def _package_of(target: str) -> str:
    """The package that a target is defined in, also if it is reached through another package's module.

    `muwa.config.os.system` is defined in posix. A target outside muwa is not imported.
    """
    package = target.partition(".")[0]
    if package != "muwa":
        return package
    try:
        return str(get_object(target).__module__).partition(".")[0]
    except (ImportError, AttributeError, InstantiationException, ValueError):
        return package  # `_instantiated` says that it does not exist


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(Key, text) of every text in nested plain values."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in pairs:
            yield from _texts(inner, f"{key}.{name}".lstrip("."))


@contextmanager
def one_line_errors(cfg: DictConfig) -> Iterator[None]:
    """End a run on bad input with one line on stderr. HYDRA_FULL_ERROR=1 shows the traceback instead.

    In a multirun the line is raised: the other runs go on, and Hydra prints that of the first one at the end.
    A run that a signal stops says so in its folder (`muwa.multirun.noted`).

    Raises:
        RefusedError: A run of a multirun had bad input.
    """
    try:
        with multirun.noted(cfg), stopping.errors_of_a_stop():
            yield
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        line = f"muwa: {message_of(error)}"
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise multirun.RefusedError(line) from error
        print(line, file=sys.stderr)
        raise SystemExit(2) from error


@contextmanager
def one_line_refusals() -> Iterator[None]:
    """End a command with one line on stderr if its config cannot be composed, or refers to what is not there.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    try:
        yield
    except (ConfigCompositionException, SearchPathException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"muwa: {refused(error, sys.argv[1:])}", file=sys.stderr)
        raise SystemExit(2) from error
