import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from muwa.cli.flags import VALUE_OR_NONE, WITH_VALUE, in_an_order_for_hydra
from muwa.command_line import adapted

ROOT = Path(__file__).parents[2]
FLAGS = [
    ["--cfg", "job"], ["-c", "job"], ["--info"], ["--info", "config"], ["-i"], ["--package", "task"],
    ["--config-name", "mine"], ["--config-path", "a/b"], ["--config-dir", "a b"], ["--resolve"], ["-m"],
    ["--cfg=job"],
]  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS, ids=" ".join)
def test_a_flag_may_stand_anywhere(flag):
    parser = get_args_parser()
    settings = ["model=vlm", "seed=1", "~logger"]
    wanted = vars(parser.parse_args([*settings, *flag]))
    for place in range(4):
        words = [*settings[:place], *flag, *settings[place:]]
        if place == 0 and flag in (["--info"], ["-i"]):
            continue  # in order: Hydra says that it wants a value of --info here
        assert vars(parser.parse_args(in_an_order_for_hydra(words))) == wanted


def test_two_flags_may_stand_anywhere_in_any_order():
    parser, parts = get_args_parser(), (["--cfg", "job"], ["--package", "task"], ["a=1"], ["b=2"], ["-m"])
    for order in itertools.permutations(parts):
        read = parser.parse_args(in_an_order_for_hydra(list(itertools.chain(*order))))
        assert (read.cfg, read.package, read.multirun, sorted(read.overrides)) == (
            "job",
            "task",
            True,
            ["a=1", "b=2"],
        )


def test_words_in_order_stay_as_they_are():
    for words in (["-m", "a=1", "b=2"], ["a=1", "-c", "job"], ["--cfg", "job", "a=1", "-m"], [], ["--help"]):
        assert in_an_order_for_hydra(words) == words


def test_the_flags_with_values_are_hydras():
    takes = {
        (option, action.nargs) for action in get_args_parser()._actions for option in action.option_strings
        if type(action).__name__ == "_StoreAction"
    }  # fmt: skip
    assert {option for option, nargs in takes if nargs is None} == {*WITH_VALUE}
    assert {option for option, nargs in takes if nargs == "?"} == {*VALUE_OR_NONE}


def test_the_command_line_is_put_in_order():
    assert adapted(["model=vlm", "--cfg", "job", "seed=1"]) == ["model=vlm", "seed=1", "--cfg", "job"]
    with pytest.raises(ValueError, match="jobs: want SETTING=VALUE"):
        adapted(["model=vlm", "--resolve", "jobs", "seed=1"])


def test_the_config_is_printed_with_a_flag_between_settings(tmp_path):
    words = ["seed=3", "--cfg", "job", "--package", "verdict", "verdict.kept_points=2"]
    done = subprocess.run(
        [sys.executable, ROOT / "launch.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "kept_points: 2" in done.stdout


@pytest.mark.parametrize(("words", "said"), [
    ("--method=slug", "--method=slug: no such flag; a setting has no dashes: type method=slug"),
    ("--method slug model=clip", "--method slug: no such flag; a setting has no dashes: type method=slug"),
    ("model=clip --seed 1", "--seed 1: no such flag; a setting has no dashes: type seed=1"),
    ("-m --task.identity=Ada,Bo", "--task.identity=Ada,Bo: no such flag; a setting has no dashes: type task.identity=Ada,Bo"),
    ("--seed", "--seed: no such flag; a setting has no dashes: type seed=VALUE"),
    ("--metod=slug", "--metod=slug: no such flag; --help lists them"),
    ("-x seed=1", "-x: no such flag; --help lists them"),
    ("--cfg", "argument --cfg/-c: expected one argument (--help lists the flags)"),
    ("-m --cfg job", "--multirun and --cfg: want only one of them (--help lists the flags)"),
])  # fmt: skip
def test_a_flag_that_hydra_does_not_know_is_refused_in_one_line(words, said):
    with pytest.raises(ValueError, match="flag") as caught:
        adapted(words.split())
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["--hydra-help"], ["--multirun", "seed=1,2"], ["-cd=x", "--resolve"]]
)
def test_flags_of_hydra_pass(words):
    assert adapted(words) == words
