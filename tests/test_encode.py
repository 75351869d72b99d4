import pytest
import tiny
import torch

from muwa.cache import Store
from muwa.data.samples import decode
from muwa.encode import BATCH, Features, pixel_batches
from muwa.types import Classes, Edit


def test_batches_keep_the_order_whatever_their_size():
    images = [tiny.png(i) for i in range(7)]
    want = torch.stack([tiny.prepare(decode(image)) for image in images])
    for size in (1, 3, 7, 100):
        batches = list(pixel_batches(tiny.clip(), images, size))
        assert [len(batch) for batch in batches] == [size] * (7 // size) + [7 % size] * (7 % size > 0)
        assert torch.equal(torch.cat(batches), want)
    assert list(pixel_batches(tiny.clip(), [], 3)) == []


def test_a_broken_picture_is_an_error_and_no_hang():
    with pytest.raises(ValueError, match="cannot identify"):
        list(pixel_batches(tiny.clip(), [tiny.png(1), b"text", tiny.png(2)], 1))


def test_a_classifier_is_the_mean_over_templates_made_of_length_one(tmp_path):
    model = tiny.clip()
    classes = Classes(tiny.NAMES, ("{}.", "a photo of {}"))
    found = Features(model, Store(tmp_path), progress=False).classes(classes)
    for row, name in zip(found, tiny.NAMES, strict=True):
        each = model.encode("text", tiny.tokenize([f"{name}.", f"a photo of {name}"]))
        want = each.mean(0) / each.mean(0).norm()
        torch.testing.assert_close(row, want, rtol=1e-5, atol=1e-6)


def test_an_edit_of_one_tower_leaves_the_features_of_the_other_valid(tmp_path):
    model, pictures = tiny.clip(), tiny.pictures([0, 1])
    edited = model.edited(Edit({"text_projection": torch.ones_like(model.weights["text_projection"])}, ()))
    Features(model, Store(tmp_path), progress=False).images(pictures)
    again = Store(tmp_path)
    Features(edited, again, progress=False).images(pictures)
    assert again.events == {"features": "hit"}
    Features(edited, again, progress=False).classes(pictures.classes)
    assert again.events == {"features": "partial"}


def test_many_pictures_are_encoded_in_batches_as_one(tmp_path):
    model, pictures = tiny.clip(), tiny.pictures([i % 8 for i in range(BATCH + 3)])
    found = Features(model, Store(tmp_path), progress=False).images(pictures)
    last = model.encode("vision", tiny.prepare(decode(pictures.images[-1]))[None])[0]
    assert found.shape == (BATCH + 3, 16)
    torch.testing.assert_close(found[-1], last, rtol=1e-4, atol=1e-5)
