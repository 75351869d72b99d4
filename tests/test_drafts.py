"""A file or folder appears whole or not at all, and no file of the user's is touched on the way."""

import os

import pytest
from safetensors.torch import save_file
from torch import ones

from muwa.drafts import check_writable, new_file, new_folder, remove, write_text


def modes(folder):
    return {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_what_is_written_replaces_what_was_there_with_the_mode_of_the_umask(tmp_path, umask):
    (tmp_path / "a").write_text("old")
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "a") as draft:
            save_file({"x": ones(1)}, draft)
            assert (tmp_path / "a").read_text() == "old"
        with new_folder(tmp_path / "b") as draft:
            save_file({"x": ones(1)}, draft / "c")
    finally:
        os.umask(before)
    assert modes(tmp_path) == {"a": 0o666 & ~umask, "c": 0o666 & ~umask}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_replaces_a_folder_and_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    (tmp_path / "b").write_text("old")
    for name in ("a", "b"):
        with new_folder(tmp_path / name) as draft:
            (draft / "new").write_text("new")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["new"]


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_after_an_error_all_is_as_before(tmp_path, new):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), new(tmp_path / "a") as draft:
        assert draft.exists()
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_users_file_with_the_name_of_a_draft_stays(tmp_path):
    (tmp_path / "a.draft").write_text("mine")
    with new_file(tmp_path / "a") as one, new_file(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1"
    assert (tmp_path / "a.draft").read_text() == "mine"


def test_remove_takes_a_file_a_folder_a_link_and_nothing(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder" / "inner").is_dir()
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_text_is_whole_and_leaves_no_draft(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "é\n")
    write_text(tmp_path / "a" / "b.txt", "ü\n")
    assert (tmp_path / "a" / "b.txt").read_text() == "ü\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_folder_that_cannot_be_written_is_said_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=rf"paths.cache={tmp_path}/file/x: cannot be written \(Not a directory\)"
    ):
        check_writable("paths.cache", tmp_path / "file" / "x")
    check_writable("paths.cache", tmp_path / "new" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
