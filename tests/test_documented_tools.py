"""Every command of a tool (`python -m muwa.patch ...`) in README, docs, code and cards is parsed by that tool itself.

The story of docs/requests.md is run from its first command to its last.
"""

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from patch import test_card

from muwa.patch.card import FOLDER, HUB, RUN
from muwa.patch.ledger import checked_ledger

ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "muwa").rglob("*.py"))]
COMMAND = re.compile(r"^\s*(?:#\s*)?(?:python -m muwa\.|muwa )(?P<tool>[a-z_.]+) (?P<words>.+)$")
MODULES = {  # a name in a command -> the module with its parser, where that is another
    "retrained": "miniature.retrained",
    "miniature.train_sd": "miniature.train.sd",
    "miniature.train_llava": "miniature.train.llava",
    "miniature.train_classifier": "miniature.train.classifier",
}
TOOLS = ("patch", "cache", "gradients", "data", "retrained", "miniature")


@dataclass(frozen=True)
class Command:
    """A documented command of a tool: where it stands, the tool's module, its words."""

    where: str
    module: str
    words: tuple[str, ...]


class Parsed(BaseException):
    """Raised in place of what a tool does with its arguments; no tool catches it."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(arguments)
        self.arguments = arguments


def commands_in(text: str, where: str) -> list[Command]:
    """The commands that stand on a line of their own; one that ends in a backslash goes on in the next line.

    What is in brackets may be left out: it is given here. A number stands for the placeholder R.
    """
    found = []
    for number, line in enumerate(re.sub(r"\\\n\s*", " ", text).splitlines(), 1):
        match = COMMAND.match(line)
        if match is None or match["tool"].split(".")[0] not in TOOLS:
            continue
        rest = re.split(r"\s+#\s|\s{3,}(?=[a-z(])|\s\(or:", match["words"])[0].translate(
            str.maketrans("", "", "[]")
        )
        words = tuple("8" if word == "R" else word for word in shlex.split(rest) if word != "...")
        found.append(Command(f"{where}:{number}", f"muwa.{MODULES.get(match['tool'], match['tool'])}", words))
    return found


def documented() -> list[Command]:
    return [one for path in TEXTS for one in commands_in(path.read_text(), str(path.relative_to(ROOT)))]


COMMANDS = documented()


def parsed(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The arguments as the tool's own parser reads them. The tool does not run."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self, argv=None, namespace=None):
        raise Parsed(parse(self, argv, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [command.module, *command.words])
    main = importlib.import_module(
        f"{command.module}.__main__" if (ROOT / Path(*command.module.split("."))).is_dir() else command.module
    ).main
    with pytest.raises(Parsed) as found:
        main()
    return found.value.arguments


def test_commands_of_every_tool_and_every_kind_of_text_are_found():
    assert len(COMMANDS) > 50
    for text in (
        "README.md",
        "docs/patch.md",
        "docs/requests.md",
        "docs/tutorial_clip.md",
        "muwa/patch/__main__.py",
    ):
        assert any(one.where.startswith(text) for one in COMMANDS), text
    modules = {one.module for one in COMMANDS}
    assert {"muwa.patch", "muwa.cache", "muwa.gradients", "muwa.data", "muwa.miniature.retrained"} <= modules
    verbs = {one.words[0] for one in COMMANDS if one.module == "muwa.patch"}
    assert verbs == {"apply", "add", "remove", "list", "verify", "show", "push", "pull", "lora"}


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda one: f"{one.where} {one.module} {' '.join(one.words)}"
)
def test_a_documented_command_of_a_tool_is_one_that_it_takes(command, monkeypatch):
    assert parsed(command, monkeypatch)


@pytest.mark.parametrize(
    "line", ["python -m muwa.patch apply PATCH --out DIR", "muwa patch put PATCH BASE --out DIR"]
)
def test_a_command_that_the_tool_does_not_take_is_noticed(line, monkeypatch, capsys):
    (command,) = commands_in(line, "here")
    with pytest.raises(SystemExit):
        parsed(command, monkeypatch)


@pytest.mark.parametrize("place", [RUN, FOLDER, HUB])
def test_the_commands_on_a_card_are_ones_that_the_tool_takes(place, monkeypatch):
    found = commands_in(test_card.card(place, files={"a.safetensors": "e" * 64}), place)
    assert len(found) >= 2
    for command in found:
        with monkeypatch.context() as patched:
            assert parsed(command, patched)


KEPT = ("first", "second", "third", "fourth")  # how the story calls the patch files
STORY = "## A service, told"
FEW = (
    "task.limits.retain_pairs=96",
    "dataset.utility=0.1",
    "dataset.utility_probe=0.05",
    "task.limits.eval_retain=1",
)


def story() -> list[str]:
    """The commands of docs/requests.md's story, in order."""
    text = (ROOT / "docs/requests.md").read_text()
    told = text[text.index(STORY) : text.index("\n## ", text.index(STORY) + 1)]
    return [line.strip() for line in told.splitlines() if line.startswith("    python ")]


def done(words: list[str], folder: Path) -> str:
    """What a command prints that ends well."""
    ended = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, (words, ended.stdout[-2000:], ended.stderr[-2000:])
    return ended.stdout


@pytest.mark.slow
def test_the_story_of_a_service_runs_as_it_is_told(miniature, tmp_path):
    """Only the numbers of samples are smaller, and "the latest run" is the folder of each command's own run."""
    for name in ("launch.py", "muwa"):
        (tmp_path / name).symlink_to(ROOT / name)
    patches, said = [], []
    for number, line in enumerate(story()):
        line, _, remark = line.partition("  #")
        folder = re.search(r"FOLDER: (\S+)", remark)
        line = line.replace("FOLDER", folder[1]) if folder else line
        line = line.replace("FILE1", "first").replace("FILE2", "second")
        words = shlex.split(line)[1:]
        if words[0] == "launch.py":
            run = tmp_path / f"run-{number}"
            fixed = [*FEW, f"dataset.root={miniature}", "runtime.progress=false", f"hydra.run.dir={run}"]
            said.append(done([*words, *fixed], tmp_path))
            if (run / "patch.safetensors").is_file():
                patches.append(run / "patch.safetensors")
                shutil.copy(patches[-1], tmp_path / f"{KEPT[len(patches) - 1]}.safetensors")
        else:
            words = [str(patches[-1]) if word.startswith("outputs/") else word for word in words]
            said.append(done(words, tmp_path))
    last = checked_ledger(tmp_path / "shipped-4")
    assert [one.names for one in last.requests] == [("Edda Everlane",), ("Lior Garrowby",)]
    assert sum("is muwa/miniature/clip + " in text for text in said) == 3  # verified three times
    assert any("shipped-2: 2 patches; its record fits the weights" in text for text in said)
    *_, final = sorted(tmp_path.glob("run-*/results.json"), key=lambda one: int(one.parent.name[4:]))
    assert [row["names"] for row in json.loads(final.read_text())["requests"]] == [
        ["Edda Everlane"],
        ["Lior Garrowby"],
    ]
