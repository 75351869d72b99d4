"""The bench of a service, without running it: its folders, its commands, its table."""

import pytest

from bench import service
from bench.service import FAMILIES, MINIATURE, Service, add, cells


def found(forget, retain, utility, by_name, gone_at=0.05):
    after = {forget: {"by_name": {n: {"value": v} for n, v in by_name.items()}, "gone_at": gone_at}}
    after |= {retain: {"value": 0.9}, utility: {"value": 0.975}}
    before = {retain: {"value": 0.95}, utility: {"value": 0.97}}
    return {"metrics": {"before": before, "after": after}}


def test_a_row_counts_who_is_still_recognised_and_what_was_lost():
    about = FAMILIES["clip"]
    made = {"edit": {"layer": "transformer.resblocks.0.mlp.c_proj.weight"}, "cost": {"seconds": 12.4}}
    row = cells("2. Bo Hill", found(*about.rates, {"Ada Fox": 0.0, "Bo Hill": 0.5}), about, made)
    assert row == [
        "2. Bo Hill",
        "1 of 2",
        "25.0 % (Bo Hill 50 %)",
        "5.00",
        "-0.50",
        "0.mlp.c_proj.weight",
        "12",
    ]


def test_where_a_higher_rate_means_forgotten_it_is_turned_round():
    about = FAMILIES["sd"]
    row = cells("x", found(*about.rates, {"Ada Fox": 0.95, "Bo Hill": 0.5}), about, None)
    assert row[1:3] == ["1 of 2", "27.5 % (Bo Hill 50 %)"]
    assert row[-2:] == ["", ""]


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """(The words of every command, a service of three requests)."""
    words: list[list[str]] = []
    monkeypatch.setattr(service, "run_command", lambda *given: words.append([str(word) for word in given]))
    monkeypatch.setattr(service.json, "loads", lambda text: {})
    three = Service("clip", ("Ada Fox", "Bo Hill", "Cy Reed"), tmp_path / "out", tmp_path, "cpu")
    for run in ("request-2", "state-2", "state-3-without-2"):
        (three.out / run).mkdir(parents=True)

    def launched(self, run, state, *overrides):
        words.append(["launch", run, state, *overrides])
        return {}

    monkeypatch.setattr(Service, "launch", launched)
    return words, three


def test_a_request_starts_on_the_state_that_the_last_one_left(commands):
    words, three = commands
    three.meet(2)
    assert words == [
        ["launch", "request-2", "1", "task.identity=Bo_Hill"],
        [
            "-m",
            "muwa.patch",
            "apply",
            str(three.patch(2)),
            str(three.folder("1")),
            "--out",
            str(three.folder("2")),
        ],
    ]
    assert three.folder("0") == MINIATURE / "clip"


def test_what_is_taken_back_is_measured_with_all_others(commands):
    words, three = commands
    three.take_back(2)
    remove, verify, launch = words
    assert remove[2:4] == ["remove", str(three.patch(2))]
    assert remove[-2:] == [str(three.patch(1)), str(three.patch(3))]
    assert verify[2:4] == ["verify", str(three.folder("3-without-2"))]
    assert launch[-1] == "task.identity=[Ada_Fox,Bo_Hill,Cy_Reed]"
    assert "stages=[eval]" in launch


def test_the_table_is_written_after_every_row(tmp_path):
    rows: list[list[str]] = []
    add(rows, ["a", "1 of 1", "0.0 %", "0.00", "0.00", "l", "3"], tmp_path, 0.0)
    add(rows, ["b", "2 of 2", "0.0 %", "0.10", "0.00", "l", "3"], tmp_path, 0.0)
    assert (tmp_path / "table.md").read_text().count("\n| ") == 4
