"""What a tool says of a wrong command line, and how it names itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from muwa.cli.parser import OneLineParser

ROOT = Path(__file__).parents[2]


def test_one_line_says_what_is_wrong_and_what_to_type(capsys):
    parser = OneLineParser(prog="tool")
    parser.add_argument("folder")
    command = parser.add_subparsers(dest="command", required=True).add_parser("ls")
    command.add_argument("--stage", required=True)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["here", "ls"])
    said = (
        "tool folder ls: the following arguments are required: --stage; want tool folder ls --stage STAGE\n"
    )
    assert capsys.readouterr().err == said


def test_a_tool_is_named_as_it_was_started():
    done = subprocess.run(
        [sys.executable, "-m", "muwa.cache", "ls"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "python -m muwa.cache ls: the following arguments are required: root; "
        "want python -m muwa.cache ls [--stage STAGE] root\n",
    )


def test_a_comment_behind_a_command_is_left_out():
    """An interactive zsh hands it on, to the parsers of subcommands too."""
    parser = OneLineParser(prog="tool")
    parser.add_subparsers().add_parser("show").add_argument("file")
    assert vars(parser.parse_args(["show", "a#b", "#", "what", "is", "in", "it"])) == {"file": "a#b"}
