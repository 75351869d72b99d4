"""docs/wandb_sweep.yaml: every combination composes, and what W&B's own agent makes of it runs."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SMALL
from report.offline import settled_records

from muwa import config

pytest.importorskip("wandb")
ROOT = Path(__file__).parent.parent
SWEEP = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
VALUES = {key: one.get("values", [one.get("value")]) for key, one in SWEEP["parameters"].items()}
COMBINATIONS = [dict(zip(VALUES, each, strict=True)) for each in itertools.product(*VALUES.values())]


def arguments(values):
    """What `${args_no_hyphens}` stands for, by wandb's own code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    return create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})[
        "args_no_hyphens"
    ]


@pytest.mark.parametrize("values", COMBINATIONS, ids=lambda values: " ".join(map(str, values.values())))
def test_each_combination_composes_and_builds(values):
    others = SWEEP["command"][SWEEP["command"].index("${args_no_hyphens}") + 1 :]
    assert set(config.build(config.composed(*arguments(values), *others))) == set(config.PARTS)


def test_there_are_combinations_and_the_goal_is_what_a_run_reports():
    assert len(COMBINATIONS) == 16
    assert SWEEP["metric"] == {"name": "objective", "goal": "minimize"}


@pytest.mark.filterwarnings("default")
@pytest.mark.whole
def test_a_run_of_the_agent(miniature, tmp_path, monkeypatch):
    """The agent's code starts a process as it would for a server; only W&B's server is missing: the run is offline."""
    from wandb.wandb_agent import Agent

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in (("WANDB_SWEEP_ID", "abc"), ("WANDB_RUN_ID", ""), ("WANDB_SWEEP_PARAM_PATH", "")):
        monkeypatch.setenv(name, value)  # the agent sets them for its processes
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / "wandb" / "sweep-abc").mkdir(parents=True)
    monkeypatch.chdir(ROOT)
    agent = Agent(None, None, sweep_id="abc")
    own = [f"paths.outputs={tmp_path}/out", f"dataset.root={miniature}", "logger.wandb.mode=offline"]
    agent._sweep_command = [*SWEEP["command"], *SMALL, *own]
    args = {key: {"value": value} for key, value in COMBINATIONS[0].items()}
    agent._command_run({"type": "run", "program": SWEEP["program"], "run_id": "agent123", "args": args})
    assert agent._run_processes["agent123"].wait() == 0
    (results,) = (tmp_path / "out").glob("runs/*/*/results.json")
    found = json.loads(results.read_text())
    assert found["edit"]["layer"] == COMBINATIONS[0]["layer_search.layer"]
    records = settled_records(results.parent)
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    run = runs[-1]
    assert run.run_id == "agent123"
    assert run.sweep_id == "abc"
    sent = {}
    for record in records:
        for item in record.summary.update if record.WhichOneof("record_type") == "summary" else ():
            sent["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert sent["objective"] == found["objective"]
    assert not (results.parent / "wandb_id.txt").exists()
