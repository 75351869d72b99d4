"""What the tests compose is what Hydra composes by itself."""

import json

import forked
import pytest
from omegaconf import OmegaConf

from muwa import config

COMMANDS = [
    (),
    ("seed=3",),  # the choices of the first, other settings
    ("task.identity=Lior_Garrowby", "seed=4"),
    ("model=sd", "task=style", "task.concept=neon"),
    ("experiment=ten_identities", "logger=[]"),
]


@pytest.mark.whole
def test_a_config_of_the_tests_is_that_of_a_process_without_them(tmp_path):
    program = tmp_path / "alone.py"
    program.write_text(
        "import json, sys\nfrom omegaconf import OmegaConf\nfrom muwa import config\n"
        "print(json.dumps([OmegaConf.to_yaml(config.composed(*words)) for words in json.loads(sys.argv[1])]))\n"
    )
    alone = forked.run(str(program), json.dumps(COMMANDS))
    assert alone.returncode == 0, alone.stderr
    composed = config.composed.__wrapped__  # without the copy that it keeps
    for _ in range(2):  # the second time from what was kept
        assert [OmegaConf.to_yaml(composed(*words)) for words in COMMANDS] == json.loads(alone.stdout)


def test_a_config_that_is_changed_changes_no_other():
    composed = config.composed.__wrapped__
    first = composed("seed=5")
    OmegaConf.set_struct(first, False)
    first.task.identity, first.added = "Bo Hill", 1
    second = composed("seed=5")
    assert second.task.identity != "Bo Hill"
    assert "added" not in second
    assert OmegaConf.is_struct(second)


def test_configs_of_a_user_are_read_each_time(tmp_path, monkeypatch):
    own = tmp_path / "conf" / "experiment"
    own.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for seed in (6, 7):
        (own / "mine.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
        assert config.composed.__wrapped__("experiment=mine").seed == seed
