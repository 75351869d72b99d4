"""Drawing once, recognising."""

from pathlib import Path

import pytest
import tiny_sd
import torch

from muwa.cache.store import Store
from muwa.models.diffusion.image_generation import ImageGenerator, naming, prompts_of, seen
from muwa.types.image_requests import ImageRequest


def test_a_label_of_a_kind_names_the_kind_unless_one_is_the_same() -> None:
    assert naming(("Red_Star", "blue star", "starfish"), "star") == {0, 1}
    assert naming(("star",), "red star") == set()
    assert naming(("Artist_Sketch", "Sketch"), "sketch") == {1}


def test_first_guess_and_first_k() -> None:
    pictures = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 100, 250)])
    judge = tiny_sd.Greys(("dark", "middle", "light"))
    wanted = [ImageRequest("x", 0, "class", name, "forget") for name in ("dark", "light", "light")]
    assert seen(pictures, wanted, judge) == [True, False, True]
    assert seen(pictures, wanted, judge, 2) == [True, False, True]  # grey 100: middle, then dark, then light
    assert seen(pictures, wanted, judge, 9) == [True, True, True]


def test_what_has_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match="no label for the style 'neon'; it knows 0"):
        tiny_sd.Greys(("dark", "light")).check([ImageRequest("x", 0, "style", "neon", "forget")])


def test_each_picture_is_drawn_once(tmp_path: Path) -> None:
    asked = [
        ImageRequest("a", 0, "class", "dark", "forget"),
        ImageRequest("a", 0, "class", "light", "cross"),
        ImageRequest("b", 1, "class", "dark", "retain"),
    ]
    store = Store(tmp_path)
    first = ImageGenerator(tiny_sd.diffusion(), store).draw(prompts_of(asked))
    assert store.events["drawings"] == "partial"  # two of three rows: the first two asks are one picture
    again = Store(tmp_path)
    assert torch.equal(ImageGenerator(tiny_sd.diffusion(), again).draw(prompts_of(asked)), first)
    assert again.events["drawings"] == "hit"
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert torch.equal(ImageGenerator(tiny_sd.diffusion()).draw(prompts_of(asked)), first)


def test_other_steps_are_other_pictures(tmp_path: Path) -> None:
    image_generator = ImageGenerator(tiny_sd.diffusion(), Store(tmp_path))
    asked = [ImageRequest("a", 0, "class", "dark", "forget")]
    assert not torch.equal(image_generator.draw(prompts_of(asked)), image_generator.sampled(3).draw(prompts_of(asked)))
    assert len(image_generator.hits(asked, tiny_sd.Greys(("dark", "light")))) == 1
