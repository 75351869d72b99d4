"""docs/wandb_workspace.py with the real classes of wandb-workspaces; nothing is sent."""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest

from muwa.report import wandb_content as content

SCRIPT = Path(__file__).parent.parent / "docs" / "wandb_workspace.py"


@pytest.fixture
def dashboard():
    if importlib.util.find_spec("wandb_workspaces") is None:
        pytest.skip("needs wandb-workspaces")
    spec = importlib.util.spec_from_file_location("wandb_workspace", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's old pydantic style
        spec.loader.exec_module(module)
        yield module


def test_the_workspace_shows_what_a_run_sends(dashboard):
    made = dashboard.workspace("me", "muwa")
    sent = json.loads(made._to_model().model_dump_json(by_alias=True))
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    assert [one["name"] for one in sections] == ["Outcome", "Search", "Tables", "Figures"]
    bars = sections[0]["panels"][0]["config"]["metrics"]
    assert bars[:2] == ["before/forget/top1", "after/forget/top1"]
    assert {panel["config"]["xAxis"] for panel in sections[1]["panels"]} == {
        "search/evaluation",
        "training/step",
    }
    assert dashboard.FIGURES == content.PLOTS
