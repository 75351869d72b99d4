"""The words of a command line, before Hydra reads them.

Old names of settings become present names, and `~` becomes the home folder. Mappings whose keys are names
(`task.aliases`) take new keys. A value that Hydra cannot read is refused with the quoted form to type.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, ValueType
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from muwa.cli.flags import in_an_order_for_hydra, unknown_flag
from muwa.cli.parser import without_comment
from muwa.cli.refused import NOTHING, Refusal
from muwa.cli.several import takes
from muwa.cli.spelling import check_spelling
from muwa.cli.tools import TOOLS
from muwa.data.samples import without_accents
from muwa.runtime.ranks import is_worker

RENAMED = {  # settings that had another name: old -> present
    "recogniser": "classifier",
    "method.gradient": "gradient_source",
    "eval.retrain_gap.twins": "eval.retrain_gap.retrained",
    "eval.linear_probe.twins": "eval.linear_probe.retrained",
}
NAMED = (  # mappings whose keys the user chooses, so that Hydra must not call a new key a misspelt one
    "task.aliases",
    "eval.rewording.descriptions",
    "classifier.domains.style.options",
    "classifier.domains.class.options",
)
CONF = Path(__file__).parent / "conf"  # muwa's configs
OWN_CONF = Path("conf")  # the user's, in the folder where muwa is started
_KEY_OF_MAPPING = re.compile(r"[\w/\-+.$%*@?| ]+", re.ASCII)  # what Hydra reads as the key of a {key: value}
_PAIRS = {"[": "]", "{": "}"}
_HOME = re.compile(r"""(^|[\[,:]\s*|^["']|[\[,]\s*["'])~(?=/|$|[\],])""")


def adapt_command_line() -> None:
    """Rewrite `sys.argv` before Hydra reads it (`adapted`), and end with one line if that is refused.

    Worker ranks get no folder and no log: all processes of a torchrun have the same command line, but only
    the main rank may write.
    """
    try:
        sys.argv[1:] = adapted(sys.argv[1:])
    except ValueError as error:
        print(f"muwa: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if is_worker():
        sys.argv += ["hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=."]
        sys.argv += ["hydra.output_subdir=null"]
        sys.argv += ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]


def adapted(words: Sequence[str]) -> list[str]:
    """The words as Hydra should read them. Flags stay as they are, but not between settings.

    A comment is left out (`without_comment`).

    Args:
        words: What follows launch.py.

    Raises:
        ValueError: Hydra cannot read a value. Gives the word to type in its place.

    >>> adapted(["-m", "task.aliases={Ada Fox: [A. Fox]}"])
    ['-m', '~task.aliases', '+task.aliases={Ada Fox: [A. Fox]}']
    >>> adapted(["task.aliases.Bo=[B]"])
    ['++task.aliases={Bo: [B]}']
    >>> adapted(["seed=1", "#", "another", "order"])
    ['seed=1']
    """
    words = without_comment(words)
    sweep = not {"-m", "--multirun"}.isdisjoint(words)
    if not {"-sc", "--shell-completion"}.isdisjoint(words):
        return list(words)
    typed, words = words, in_an_order_for_hydra(words)
    elsewhere = any(word.startswith(("-cd", "-cp", "-cn", "--config-")) for word in words)
    folders = config_folders()
    _check_flags(words, typed, folders)
    read: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or "=" not in word:
            _check_lone_word(before, word)
            read.append(word)
            continue
        word = with_home(present_name(word))
        _check_name(word)
        _check_choice(word)
        if not elsewhere:  # a folder of configs that is not read here
            check_spelling(word, folders)
        overrides = _with_new_keys(word)
        _check_readable(overrides[-1], sweep=sweep)
        read += overrides
    return read


def refusal_of(error: Exception) -> Refusal:
    """What Hydra refused while it composed a config, as data."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        return Refusal((error.missing_cfg_file or "").rpartition("/")[0], str(error), options=error.options)
    if not isinstance(cause, OmegaConfBaseException):
        return Refusal("", str(error))
    value = cause.value if isinstance(cause, ValidationError) else NOTHING
    unknown = isinstance(cause, ConfigAttributeError | ConfigKeyError)
    return Refusal(cause.full_key or "", str(cause.msg or cause), value, unknown)


def config_folders() -> list[Path]:
    """The folders of configs: muwa's, and the user's own if there is one."""
    return [CONF, *([OWN_CONF] if OWN_CONF.is_dir() else [])]


def _check_lone_word(before: str, word: str) -> None:
    """Raise ValueError if a word is no flag, no value of the flag `before` it, and no deletion (`~KEY`)."""
    if not word.startswith(("-", "~")) and not before.startswith("-"):
        raise ValueError(
            f"{word}: want SETTING=VALUE, GROUP=CHOICE or a flag (--help lists them), or, as the first "
            f"word, a tool: {', '.join(TOOLS)}"
        )


def _check_flags(words: Sequence[str], typed: Sequence[str], folders: Sequence[Path]) -> None:
    """Raise ValueError if Hydra does not know a flag. Hydra answers with its whole usage.

    Args:
        words, typed: As for `unknown_flag`.
    """
    if (found := unknown_flag(words, typed)) is None:
        return
    flag, setting = found
    try:
        check_spelling(setting, folders)
    except ValueError:
        raise ValueError(f"{flag}: no such flag; --help lists them") from None
    raise ValueError(f"{flag}: no such flag; a setting has no dashes: type {_for_shell(setting)}")


def _check_name(word: str) -> None:
    """Raise ValueError if `name`, the first folder of a run below `paths.outputs`, would lie elsewhere."""
    key, _, name = word.partition("=")
    if key == "name" and not all(part.strip(".") for part in name.strip("\"'").split("/")):
        raise ValueError(f"{word}: want a name for a folder below paths.outputs")


def _check_choice(word: str) -> None:
    """Raise ValueError if a group is given no choice, which Hydra answers with a traceback."""
    group, _, choice = word.partition("=")
    if (CONF / group).is_dir() and group != "experiment" and choice in ("", "null"):
        names = sorted({path.stem for conf in (CONF, OWN_CONF) for path in (conf / group).glob("*.yaml")})
        raise ValueError(f"{word}: want one of {', '.join(names)}")


def present_name(override: str) -> str:
    """The override with the present name of its setting. Prints a note on stderr if the name is old.

    >>> present_name("seed=1"), present_name("eval.canvas.seeds=2")
    ('seed=1', 'eval.canvas.seeds=2')
    """
    for old, new in RENAMED.items():
        match = re.match(rf"([+~]*){re.escape(old)}(?=[.=@]|$)", override)
        if match and ("=" in override or match[1]):
            print(f"muwa: {old} is now called {new}", file=sys.stderr)
            return match[1] + new + override[match.end() :]
    return override


def with_home(override: str) -> str:
    """The override with the home folder in place of each `~` that begins a path, also behind `local-dir:`.

    >>> home = str(Path.home())
    >>> with_home("dataset.shards=[~/a.tar,/b~/c.tar]") == f"dataset.shards=[{home}/a.tar,/b~/c.tar]"
    True
    """
    key, _, value = override.partition("=")
    return f"{key}={_HOME.sub(lambda found: found[1] + str(Path.home()), value)}"


def _with_new_keys(override: str) -> list[str]:
    """The overrides to use for one: if it is of a mapping of `NAMED`, or of one of its keys, keys may be new.

    A whole mapping replaces the one that was there.

    Raises:
        ValueError: The key is a name that Hydra cannot read as a key.
    """
    path, _, value = override.partition("=")
    path = path.lstrip("+")
    for mapping in NAMED:
        if path == mapping:
            return [f"~{path}", f"+{path}={value}"]
        if path.startswith(f"{mapping}."):
            name = path.removeprefix(f"{mapping}.").strip("\"'")
            plain = name if _KEY_OF_MAPPING.fullmatch(name) else without_accents(name)
            if not _KEY_OF_MAPPING.fullmatch(plain):
                raise ValueError(
                    f"{override}: Hydra reads no key in this script. Write it into a file conf/experiment/"
                    "NAME.yaml, below the line '# @package _global_', and add experiment=NAME"
                )
            return [f"++{mapping}={{{plain}: {value}}}"]
    return [override]


def _check_readable(word: str, *, sweep: bool) -> None:
    """Raise ValueError if Hydra cannot read an override, or reads several values and does not sweep."""
    read = _parsed(word)
    if read is None:
        raise ValueError(f"{word}: Hydra reads this value only {_advice(word, sweep=sweep)}")
    if read.value_type is ValueType.SIMPLE_CHOICE_SWEEP and not sweep:
        raise ValueError(f"{word}: Hydra reads several values here. {_for_several(word, read)}")


def _for_several(word: str, read: Override) -> str:
    """What to type in place of several values, where the setting takes it."""
    key, _, value = word.partition("=")
    choices = read.value()
    assert isinstance(choices, ChoiceSweep)
    values = [one.text if isinstance(one, QuotedString) else one for one in choices.list]
    typed = (
        (f"{key}=[{value}]", values, "for a list"),
        (f"{key}={_quoted(value)}", value, "for one text with a comma"),
    )
    name, folders = key.lstrip("+~"), config_folders()
    offers = [f"{_for_shell(word)} {what}" for word, given, what in typed if takes(name, given, folders)]
    return f"Type {', '.join(offers)}, or add -m for one run each" if offers else "Add -m for one run each"


def _parsed(word: str) -> Override | None:
    """What Hydra reads in an override; None if it cannot read it."""
    try:
        override = OverridesParser.create().parse_override(word)
        override.value()
    except HydraException:
        return None
    return override


def _advice(word: str, *, sweep: bool) -> str:
    """How to type the value: "in quotes: type WORD", or where its syntax is described."""
    key, _, value = word.partition("=")
    typed = f"{key}={_each_quoted(value, sweep=sweep)}"
    if _parsed(typed) is None or _PAIRS.get(value[:1], value[-1:]) != value[-1:]:
        return "as hydra.cc describes it under 'Override syntax'; check its brackets and quotes"
    return f"in quotes; type {_for_shell(typed)}"


def _each_quoted(value: str, *, sweep: bool) -> str:
    """A value with each of its texts in quotes: the elements of a list, the values of a sweep.

    >>> print(_each_quoted("[O'Brien,'Bo']", sweep=False), _each_quoted("Zoë,Bo", sweep=True))
    ["O'Brien",'Bo'] "Zoë","Bo"
    """
    if value.startswith("[") and value.endswith("]"):
        return f"[{_joined(value[1:-1], _quoted)}]"
    return _joined(value, _quoted) if sweep else _quoted(value)


def _joined(values: str, change: Callable[[str], str]) -> str:
    return ",".join(change(one.strip()) for one in values.split(","))


def _quoted(text: str) -> str:
    """`text` as a quoted value of Hydra."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text
    sign = "'" if '"' in text and "'" not in text else '"'
    return sign + text.replace(sign, f"\\{sign}") + sign


def _for_shell(word: str) -> str:
    """`word` as one types it in a shell; in double quotes where that is easier to read."""
    if "'" in word and not set("$`\\!") & set(word):
        return '"' + word.replace('"', '\\"') + '"'
    return shlex.quote(word)
