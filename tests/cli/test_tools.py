"""`muwa TOOL ...` is `python -m muwa.TOOL ...`."""

import sys

import pytest

from muwa.__main__ import main
from muwa.cli.tools import TOOLS


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_a_help_page_that_shows_how_it_was_called(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/muwa", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out.startswith(f"usage: muwa {name} [-h]")


def test_a_tool_gets_its_words_and_gives_its_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["muwa", "patch", "show", str(tmp_path / "nothing.safetensors")])
    assert main() == 2
    assert capsys.readouterr().err.startswith("muwa.patch: ")
