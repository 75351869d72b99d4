"""What is in a folder of a data set."""

import os

import pytest

from muwa.data.folders import content, listing


def test_images_folders_and_others_sorted_without_what_systems_add(tmp_path):
    for name in (
        "b.JPG",
        "a.webp",
        "c.tiff",
        "notes.txt",
        "._b.JPG",
        "Thumbs.db",
        ".DS_Store",
        "desktop.ini",
    ):
        (tmp_path / name).touch()
    for name in ("Neon", "__MACOSX", ".git", "folder.jpg"):
        (tmp_path / name).mkdir()
    found = listing(tmp_path)
    assert found.images == ("a.webp", "b.JPG")
    assert found.folders == ("Neon", "folder.jpg")
    assert found.other_images == ("c.tiff",)


def test_links_and_pipes_are_listed_by_name_and_not_opened(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "away.jpg").symlink_to("nowhere")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    found = listing(tmp_path)
    assert found.images == ("away.jpg", "loop.jpg", "pipe.jpg")
    assert found.folders == ("up",)


def test_content_for_messages(tmp_path):
    assert content(tmp_path) == "nothing"
    assert content(tmp_path / "none") == "no such folder"
    for i in range(9):
        (tmp_path / f"{i}").touch()
    assert content(tmp_path) == "0, 1, 2, 3, 4, 5"
    with pytest.raises(OSError, match="No such file"):
        listing(tmp_path / "none")
