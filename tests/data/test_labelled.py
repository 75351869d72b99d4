"""Labelled images from files, and which of them can be decoded."""

import re

import pytest
import tiny

from muwa.data.labelled import decodable, labelled
from muwa.types.data import Classes, LabelledImages

CLASSES = Classes(("x", "y"), ("{}",))


def test_a_label_is_the_place_of_the_name_and_a_file_is_its_own_key(tmp_path):
    images = labelled({"y": [tmp_path / "b.png", b"1"], "x": [b"2"]}, CLASSES)
    assert images.images == (tmp_path / "b.png", b"1", b"2")
    assert images.labels == (1, 1, 0)
    assert images.keys == ("b.png", "1", "2")


def test_sound_images_stay_in_order_and_the_others_are_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(tiny.png(2)[:200])
    files = (tiny.png(1), tmp_path / "cut.png", tmp_path / "none.png", tiny.png(4))
    images = LabelledImages(("a", "b", "c", "d"), files, (0, 1, 0, 1), CLASSES)
    sound, broken = decodable(images, 0.5, "these")
    assert (sound.keys, sound.labels) == (("a", "d"), (0, 1))
    assert [one.where for one in broken] == ["b", "c"]
    assert broken[0].why.startswith("cannot be decoded")
    assert "No such file" in broken[1].why
    assert decodable(sound, 0.0, "these") == (sound, [])
    with pytest.raises(ValueError, match=re.escape("these: 2 of 4 samples are broken (50.0%)")):
        decodable(images, 0.49, "these")
