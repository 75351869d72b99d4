"""`muwa TOOL ...` is `python -m muwa.TOOL ...`."""

import re
import sys
from pathlib import Path

import pytest

import muwa
from muwa.__main__ import main
from muwa.cli.tools import TOOLS

MUWA = Path(muwa.__file__).parent


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


@pytest.mark.parametrize("name", TOOLS)
def test_a_wrong_command_line_of_a_tool_is_refused_in_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["muwa", name, "--no-such-flag"])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"muwa {name}: .+; want muwa {name} ", line)
    assert "[-h]" not in line


def test_the_usage_of_verify_can_be_typed(monkeypatch, capsys):
    """argparse's own would stand the edited folder behind --base, which takes it for a patch."""
    monkeypatch.setattr(sys, "argv", ["muwa", "patch", "verify", "X", "P"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = "muwa patch verify: the following arguments are required: --base; want muwa patch verify edited --base BASE patch ...\n"
    assert capsys.readouterr().err == said


def test_every_tool_has_the_parser_that_says_it_in_one_line():
    """Also those that no list has, such as `python -m muwa.miniature.data`."""
    makers = [path for path in MUWA.rglob("*.py") if " argparse.ArgumentParser(" in path.read_text()]
    assert makers == []
    assert len([path for path in MUWA.rglob("*.py") if " OneLineParser(" in path.read_text()]) >= len(TOOLS)
