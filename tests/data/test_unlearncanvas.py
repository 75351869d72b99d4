"""Folders in UnlearnCanvas' layout."""

import os
from pathlib import Path

import pytest
import tiny
from data.datasets import write_canvas

from muwa.data.image_files import fault
from muwa.data.unlearncanvas import read_canvas


def test_the_layout_is_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_canvas(tmp_path)
    found = read_canvas(tmp_path)
    assert found.styles == ("neon lines", "photo", "sketch")
    assert found.classes == ("cats", "sea")
    assert [path.name for path in found.files["photo", "sea"]][-2:] == ["9.jpg", "10.jpg"]


def test_folders_in_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder.*want <style>/<class>"):
        read_canvas(tmp_path / "none")
    (tmp_path / "Neon" / "Cats").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="found Neon; want"):
        read_canvas(tmp_path)
    for place in ("Neon/Cats", "Neon/Sea", "Sketch/Cats"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "1.jpg").write_bytes(tiny.png(1))
    with pytest.raises(ValueError, match="no images in sketch/sea"):
        read_canvas(tmp_path)


def put(root, *places):
    for i, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(tiny.png(i))


@pytest.mark.parametrize("name", ["Seed_Image", "Seed_Images", "seed images", "SEED_IMAGE"])
def test_the_folder_of_photographs_has_several_names(tmp_path: Path, name: str) -> None:
    put(tmp_path, "Neon/Cats/1.jpg", f"{name}/Cats/1.jpg")
    assert read_canvas(tmp_path).styles == ("neon", "photo")


def test_what_is_no_style_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_canvas(tmp_path)
    for junk in (
        "__MACOSX/Sketch/Cats/._1.jpg",
        "Sketch/Cats/._1.jpg",
        "Sketch/Cats/Thumbs.db",
        "Sketch/.DS_Store",
    ):
        put(tmp_path, junk)
    put(
        tmp_path, "Sketch/@eaDir/1.jpg", "previews/all/1.png", "readme.md", "overview.png", "Sketch/loose.jpg"
    )
    put(tmp_path, "Sketch/Cats/deep/1.jpg", "Sketch/Cats/21.tiff", "Sketch/empty/notes.txt")
    found = read_canvas(tmp_path)
    assert found.styles == ("neon lines", "photo", "sketch")
    assert found.classes == ("cats", "sea")
    assert {len(images) for images in found.files.values()} == {10}
    (said,) = caplog.messages
    assert "images left out, not in <style>/<class>/ or in a format" in said
    assert "5 (overview.png, Sketch/loose.jpg, Sketch/Cats/21.tiff, ...)" in said


def test_folders_of_one_name_are_one_style_or_class(tmp_path: Path) -> None:
    put(
        tmp_path,
        "Caf\u00e9/Cats/1.jpg",
        "Cafe\u0301/Cats/2.jpg",
        "Neon_Lines/cats/1.jpg",
        "neon lines/Cats/2.jpg",
    )
    found = read_canvas(tmp_path)
    assert found.styles == ("caf\u00e9", "neon lines")
    assert found.classes == ("cats",)
    assert {key: len(images) for key, images in found.files.items()} == {
        ("caf\u00e9", "cats"): 2,
        ("neon lines", "cats"): 2,
    }


def test_special_files_and_links_do_not_hang(tmp_path: Path) -> None:
    put(tmp_path, "Neon/Cats/1.jpg", "Sketch/Cats/1.jpg")
    os.mkfifo(tmp_path / "Neon" / "Cats" / "2.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "Neon" / "up").symlink_to(tmp_path)
    found = read_canvas(tmp_path)
    assert len(found.files["neon", "cats"]) == 2  # the pipe is found broken when it is to be decoded
    assert fault(tmp_path / "Neon" / "Cats" / "2.jpg") == f"not a regular file: {tmp_path}/Neon/Cats/2.jpg"
