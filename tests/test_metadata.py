"""The files beside the package agree with each other: version, licence, what is checked before a commit."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_has_the_version_and_the_licence_of_the_project():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    (paper,) = cited["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2407.11867"


def test_the_licence_is_the_one_that_is_named():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n")
    assert "WITHOUT WARRANTY OF ANY KIND" in text
    assert PROJECT["license-files"] == ["LICENSE"]


def test_the_changes_name_this_version_and_what_is_not_out_yet():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert PROJECT["version"] in headings


def test_a_commit_is_checked_as_make_lint_checks():
    """The hooks run the tools of the environment: the same versions, no network."""
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert tools == set(re.findall(r"\$\(BIN\)/(\w+)", lint))
    assert all(hook["language"] == "system" for hook in hooks)


def test_every_file_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "docs" / "command_line.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target
