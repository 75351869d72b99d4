"""Modules outside muwa: what can be told from their source, and what is left to their import."""

import subprocess
import sys
from pathlib import Path

import pytest

from muwa.settings.other_modules import source_file, why_missing
from muwa.settings.source_signatures import source_signature

ROOT = Path(__file__).parents[2]
RANK = """\
raise AssertionError("imported too early")
import functools
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Generic, Protocol

from muwa.data.splits import Limits
from elsewhere import Base


@dataclass(frozen=True)
class Rank:
    kind: ClassVar[str] = "rank"
    other: "ClassVar[str]"
    largest: int
    smallest: int = 1


@dataclass
class Higher(Rank):
    seed: int


@dataclass
class OfMuwa(Limits):
    more: int


class Plain:
    def __init__(self, a, *, b=1):
        pass


def make(a, *, b=1, **more):
    pass


@functools.cache
def wrapped(a):
    pass


@dataclass
class Mixed(Plain):
    c: int


@dataclass
class Keywords:
    _: KW_ONLY
    a: int


class Meta(metaclass=type):
    def __init__(self, a):
        pass


@dataclass
class Unknown(Base):
    a: int


class New:
    def __new__(cls, *args):
        pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package that is not imported: own.rank is the module above."""
    name = f"own{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "rank.py").write_text(RANK)
    (tmp_path / name / "broken.py").write_text("class Rank(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(("name", "required", "optional"), [
    ("Rank", ["largest"], ["smallest"]),
    ("Higher", ["largest", "seed"], ["smallest"]),
    ("Plain", ["a"], ["b"]),
    ("make", ["a"], ["b", "more"]),
])  # fmt: skip
def test_the_names_of_settings_are_read_without_an_import(name, required, optional, own):
    parameters = source_signature(f"{own}.rank.{name}").signature.parameters.values()
    found = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    assert sorted(found) == required
    assert sorted(one.name for one in parameters if one.name not in found) == optional
    assert not [module for module in sys.modules if module.startswith(own)]


def test_a_class_with_a_base_of_muwa_takes_its_settings_too(own):
    of_muwa = set(source_signature("muwa.data.splits.Limits").signature.parameters)
    assert set(source_signature(f"{own}.rank.OfMuwa").signature.parameters) == {*of_muwa, "more"}


@pytest.mark.parametrize(
    "name", ["wrapped", "Mixed", "Keywords", "Meta", "Unknown", "New", "Base", "Nothing"]
)
def test_what_may_take_other_settings_is_left_to_the_import(name, own):
    assert source_signature(f"{own}.rank.{name}") is None
    assert source_signature(f"{own}.broken.{name}") is None


def test_what_cannot_be_there_is_said(own, tmp_path):
    assert why_missing("nowhere_at_all.Rank") == "there is no module 'nowhere_at_all'"
    assert why_missing(f"{own}.rank.Ranking") == f"{tmp_path}/{own}/rank.py has no 'Ranking'"
    for there in (
        f"{own}.rank.Rank",
        f"{own}.rank.functools.cache",
        "os.path.join",
        "json.loads",
        "torch.nn.Linear",
    ):
        assert why_missing(there) is None
    assert source_file(f"{own}.rank") == tmp_path / own / "rank.py"
    assert source_file(f"{own}.nothing") is source_file(own) is source_file("") is source_file("sys") is None


@pytest.mark.parametrize(("settings", "said"), [
    ("", "eval.own_rank: mine.rank.Rank() missing a required argument: 'largest'"),
    ("    largest: 3\n    lowest: 1\n", "eval.own_rank: mine.rank.Rank() got an unexpected keyword argument 'lowest'"),
])  # fmt: skip
def test_a_setting_that_is_missing_is_said_before_the_data_are_opened(settings, said, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rank.py").write_text(RANK)
    (tmp_path / "conf/eval").mkdir(parents=True)
    (tmp_path / "conf/eval/own_rank.yaml").write_text(
        f"own_rank:\n    _target_: mine.rank.Rank\n    _partial_: true\n{settings}"
    )
    words = [sys.executable, str(ROOT / "launch.py"), "eval=[own_rank]"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (2, f"muwa: {said}\n")
    assert not (tmp_path / "outputs/miniature").exists()
