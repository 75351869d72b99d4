"""Image files are read and decoded once: in a process, and by a manifest in later ones."""

import hashlib
import os
import socket

import pytest
import tiny

from muwa import fingerprint
from muwa.data import image_files
from muwa.data.image_files import fault, manifest


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that knows of no file."""
    forget(monkeypatch)


def forget(monkeypatch):
    digests = {}
    for module in (fingerprint, image_files):
        monkeypatch.setattr(module, "DIGESTS", digests)
    monkeypatch.setattr(image_files, "FAULTS", {})


@pytest.fixture
def files(tmp_path):
    """A sound image and a broken one."""
    sound, broken = tmp_path / "a.png", tmp_path / "b.png"
    sound.write_bytes(tiny.png(1))
    broken.write_bytes(tiny.png(2)[:200])
    return sound, broken


def counting(monkeypatch):
    """The images that are decoded from now on."""
    decoded = []
    decode = image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda content: decoded.append(content) or decode(content))
    return decoded


def test_a_file_is_decoded_once_and_again_when_it_changed(files, monkeypatch):
    decoded = counting(monkeypatch)
    assert [fault(files[0]), fault(files[0])] == [None, None]
    assert fault(files[1]) == fault(files[1]) != None  # noqa: E711
    assert len(decoded) == 2
    files[1].write_bytes(tiny.png(3))
    assert fault(files[1]) is None
    assert fingerprint.image_digest(files[1]) == hashlib.sha256(tiny.png(3)).hexdigest()


def test_the_same_size_with_another_time_is_another_file(files, monkeypatch):
    fault(files[0])
    decoded = counting(monkeypatch)
    os.utime(files[0], ns=(1, 1))
    fault(files[0])
    assert len(decoded) == 1


def test_a_later_process_reads_the_manifest_and_no_image(files, tmp_path, monkeypatch):
    path = tmp_path / "new" / "images.parquet"
    with manifest(path):
        first = [fault(file) for file in files]
    digests = dict(fingerprint.DIGESTS)
    forget(monkeypatch)
    decoded = counting(monkeypatch)
    with manifest(path):
        assert [fault(file) for file in files] == first
        assert [fingerprint.image_digest(file) for file in files] == list(digests.values())
    assert decoded == []
    assert fingerprint.image_digest(files[0]) == hashlib.sha256(tiny.png(1)).hexdigest()


def test_a_manifest_grows_and_keeps_the_last_state_of_a_file(files, tmp_path, monkeypatch):
    path = tmp_path / "images.parquet"
    with manifest(path):
        fault(files[0])
    forget(monkeypatch)
    files[0].write_bytes(tiny.png(7))
    with manifest(path):
        assert [fault(file) is None for file in files] == [True, False]
    assert {row[0] for row in image_files._read(path)} == {str(file) for file in files}


@pytest.mark.parametrize("content", [b"", b"no parquet", None])
def test_a_damaged_manifest_is_made_anew(files, tmp_path, content):
    path = tmp_path / "images.parquet"
    if content is not None:
        path.write_bytes(content)
    with manifest(path):
        fault(files[0])
    assert len(image_files._read(path)) == 1


def test_nothing_new_writes_nothing(tmp_path):
    with manifest(tmp_path / "new" / "images.parquet"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_manifest_of_other_rules_is_not_believed(files, tmp_path, monkeypatch):
    path = tmp_path / "images.parquet"
    with manifest(path):
        fault(files[0])
    forget(monkeypatch)
    monkeypatch.setattr(image_files, "RULES", image_files.RULES + 1)
    decoded = counting(monkeypatch)
    with manifest(path):
        fault(files[0])
    assert len(decoded) == 1


@pytest.mark.parametrize("kind", ["pipe", "socket", "broken link", "cyclic link", "folder", "device"])
def test_special_files_are_faults_and_never_hang(tmp_path, monkeypatch, kind):
    path = tmp_path / "a.jpg"
    monkeypatch.chdir(tmp_path)  # the address of a socket has to be short
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.jpg")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"broken link": "nowhere", "cyclic link": "a.jpg", "device": "/dev/zero"}[kind])
    why = {"broken link": "No such file", "cyclic link": "symbolic links"}.get(kind, "not a regular file")
    assert why in fault(path)
