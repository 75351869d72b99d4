"""Folders in UnlearnCanvas' layout."""

from pathlib import Path

import pytest
import tiny
from data.datasets import write_canvas

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
    with pytest.raises(FileNotFoundError, match="found \\['Neon'\\]"):
        read_canvas(tmp_path)
    for place in ("Neon/Cats", "Neon/Sea", "Sketch/Cats"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "1.jpg").write_bytes(tiny.png(1))
    with pytest.raises(ValueError, match="no images in sketch/sea"):
        read_canvas(tmp_path)
