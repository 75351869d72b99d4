"""A disk that is full, a folder that cannot be written, a home that is not there: one line with the place and the reason."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from noticed import noticed

from muwa.cache.store import Store
from muwa.drafts import new_file, new_folder, write_text
from muwa.errors import message_of
from muwa.patch.__main__ import main as patch

ROOT = Path(__file__).parent.parent.parent
FULL = "No space left on device"
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB of its own; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if LIBC.mount(b"none", str(folder).encode(), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    LIBC.umount2(str(folder).encode(), 2)


@pytest.fixture
def read_only(small_disk):
    """A disk that cannot be written, not by root either."""
    LIBC.mount(b"none", str(small_disk).encode(), b"tmpfs", 33, b"size=64k")  # MS_REMOUNT | MS_RDONLY
    return small_disk


def test_a_file_that_does_not_fit_leaves_the_old_one_and_names_itself(small_disk):
    write_text(small_disk / "a.txt", "old")
    with pytest.raises(OSError, match="a.txt") as caught:
        write_text(small_disk / "a.txt", "x" * 100_000)
    assert message_of(caught.value) == f"{small_disk}/a.txt: {FULL}"
    assert (small_disk / "a.txt").read_text() == "old"
    assert [path.name for path in small_disk.iterdir()] == ["a.txt"]


def test_tensors_that_do_not_fit_name_the_file(small_disk):
    from safetensors.torch import save_file

    with (
        pytest.raises(OSError, match=rf"a.safetensors: .*{FULL}"),
        new_file(small_disk / "a.safetensors") as draft,
    ):
        save_file({"a": torch.zeros(100_000)}, draft)
    with pytest.raises(OSError, match=rf"folder: .*{FULL}"), new_folder(small_disk / "folder") as draft:
        save_file({"a": torch.zeros(100_000)}, draft / "a.safetensors")
    assert not list(small_disk.iterdir())


def zeros(n: int) -> torch.Tensor:
    return torch.zeros(n)


def test_a_full_disk_under_the_cache_is_named_and_leaves_no_entry(small_disk):
    with pytest.raises(OSError, match=FULL) as caught:
        Store(small_disk / "cache").get("stage", zeros, 100_000)
    assert str(small_disk / "cache") in message_of(caught.value)
    assert not list(small_disk.rglob("value.json"))
    assert not list(small_disk.rglob("*.draft"))


def test_a_read_only_cache_is_only_read(read_only):
    with noticed("cannot be written .Read-only file system.; it is only read"):
        assert len(Store(read_only / "cache").get("stage", zeros, 3)) == 3


def test_a_patch_on_a_disk_without_room_or_without_writing(read_only, tmp_path, capsys):
    assert (
        patch(["add", str(tmp_path / "none.safetensors"), "--out", str(read_only / "out.safetensors")]) == 2
    )
    assert (
        capsys.readouterr().err
        == f"muwa.patch: {tmp_path}/none.safetensors: no such patch file; a run writes one to its folder: patch.safetensors\n"
    )


def launched(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """launch.py in a process of its own."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "HF_HOME")
    }
    return subprocess.run(
        [sys.executable, "launch.py", *words], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow  # whole runs
@pytest.mark.parametrize("home", [None, "/dev/null", "/nowhere/at/all"])
def test_a_run_needs_no_home(home, miniature, tmp_path):
    words = (*SMALL, f"dataset.root={miniature}", f"paths.outputs={tmp_path}", "layer_search.max_evals=2")
    done = launched(*words, **({} if home is None else {"HOME": home}))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("results.json"))


@pytest.mark.slow  # whole runs
@pytest.mark.parametrize("place", ["paths.outputs", "paths.cache"])
@pytest.mark.parametrize("disk", ["full", "read_only"])
def test_a_run_on_such_a_disk_ends_with_one_line(place, disk, miniature, tmp_path, small_disk):
    if disk == "read_only":
        LIBC.mount(b"none", str(small_disk).encode(), b"tmpfs", 33, b"size=64k")
    words = [*SMALL, f"dataset.root={miniature}", "layer_search.max_evals=2"]
    # A cache that is there and may not be written is only read.
    folder = small_disk if disk == "read_only" else small_disk / "cache"
    words += (
        [f"paths.outputs={small_disk}"]
        if place == "paths.outputs"
        else [f"paths.outputs={tmp_path}/out", f"paths.cache={folder}"]
    )
    done = launched(*words)
    if (place, disk) == ("paths.cache", "read_only"):
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert str(small_disk) in done.stderr
    assert FULL in done.stderr or "Read-only file system" in done.stderr
