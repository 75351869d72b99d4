"""Every command with files that are missing, empty, binary, no text, folders and pipes: one line, no traceback, no hang."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from special_files import in_time

from muwa.cache.__main__ import main as cache
from muwa.data.__main__ import main as data
from muwa.gradients.__main__ import main as gradients
from muwa.patch.__main__ import main as patch


def missing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def latin(path: Path) -> None:
    path.write_text("Zoë", encoding="latin-1")


def number(path: Path) -> None:
    path.write_text("2")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def weights(path: Path) -> None:
    save_file({"layer": torch.zeros(2, 2)}, path)


def strange_metadata(path: Path) -> None:
    save_file(
        {"delta/a": torch.ones(2), "base/a": torch.zeros(2)},
        path,
        metadata={"muwa_patch": "2", "muwa-patch-1": "2"},
    )


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def long_name(path: Path) -> None:
    path.symlink_to("x" * 250 + "/y" * 100)


KINDS = (
    missing,
    empty,
    binary,
    latin,
    number,
    deep,
    weights,
    strange_metadata,
    folder,
    fifo,
    dangling,
    loop,
    device,
    long_name,
)
COMMANDS: dict[str, tuple[Callable, list[str]]] = {
    "patch show": (patch, ["show", "{bad}"]),
    "patch apply": (patch, ["apply", "{bad}", "{bad}", "--out", "{out}"]),
    "patch remove": (patch, ["remove", "{bad}", "{bad}", "--out", "{out}"]),
    "patch add": (patch, ["add", "{bad}", "{bad}", "--out", "{out}"]),
    "patch lora": (patch, ["lora", "{bad}", "--rank", "2", "--out", "{out}"]),
    "patch push": (patch, ["push", "{bad}", "./hub"]),
    "patch pull": (patch, ["pull", "{bad}", "--out", "{out}"]),
    "cache ls": (cache, ["ls", "{bad}"]),
    "cache clear": (cache, ["clear", "{bad}"]),
    "cache why": (cache, ["why", "0", "--root", "{bad}"]),
    "gradients export": (gradients, ["export", "{bad}", "{out}"]),
    "data urls": (data, ["urls", "{bad}", "--name", "Ada Fox", "--out", "{out}"]),
}


def said_in_one_line(main: Callable, argv: list[str], capsys) -> tuple[int, str]:
    """(The exit code, what was said on stderr). A traceback would raise here."""
    with in_time(30):
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
    said = capsys.readouterr().err.strip()
    return code, said


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_the_file_and_the_reason(command, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad, out = tmp_path / "bad.safetensors", tmp_path / "out.safetensors"
    kind(bad)
    before = set(tmp_path.rglob("*"))
    main, words = COMMANDS[command]
    code, said = said_in_one_line(main, [word.format(bad=bad, out=out) for word in words], capsys)
    if (code, said) == (0, ""):
        assert command in ("cache ls", "cache clear")  # of a folder without entries
        return
    assert code == 2, said
    assert said.startswith(f"muwa.{command.split()[0]}: ")
    assert "bad.safetensors" in said
    assert len(said.splitlines()) == 1, said
    assert len(said.partition("bad.safetensors")[2]) > 10, said  # a reason follows
    assert set(tmp_path.rglob("*")) <= before | {tmp_path / "hub"}, "something was written"


def test_a_socket_is_no_patch(tmp_path, capsys, monkeypatch):
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)
        listening.bind("s.safetensors")
        code, said = said_in_one_line(patch, ["show", "s.safetensors"], capsys)
    assert code == 2
    assert "s.safetensors: " in said
