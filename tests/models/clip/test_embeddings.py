import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.models.clip.embeddings import Features, batch_size, image_batch, pixel_batches, token_batches
from muwa.run import Run
from muwa.types.data import Classes
from muwa.types.edit import Edit


def test_batches_keep_the_order_whatever_their_size():
    images = [tiny.png(i) for i in range(7)]
    for sizes in ([1] * 7, [3, 3, 1], [2, 5], [7]):
        batches = list(pixel_batches(tiny.clip(), images, sizes))
        assert [len(batch) for batch in batches] == sizes
        torch.testing.assert_close(torch.cat(batches), tiny.pixels(images))
    assert list(pixel_batches(tiny.clip(), [], [])) == []


def test_a_broken_image_raises_and_does_not_hang():
    with pytest.raises(ValueError, match="cannot identify"):
        list(pixel_batches(tiny.clip(), [tiny.png(1), b"text", tiny.png(2)], [1, 1, 1]))


def test_a_zero_shot_classifier_is_the_normalised_mean_over_templates(tmp_path):
    model = tiny.clip()
    classes = Classes(tiny.NAMES, ("{}.", "a photo of {}"))
    found = Features(model, Run(Store(tmp_path))).classes(classes)
    for row, name in zip(found, tiny.NAMES, strict=True):
        each = model.encode("text", tiny.tokenize([f"{name}.", f"a photo of {name}"]))
        want = each.mean(0) / each.mean(0).norm()
        torch.testing.assert_close(row, want, rtol=1e-5, atol=1e-6)


def test_an_edit_of_one_tower_leaves_the_features_of_the_other_valid(tmp_path):
    model, images = tiny.clip(), tiny.pictures([0, 1])
    edited = model.edited(Edit({"text_projection": torch.ones_like(model.weights["text_projection"])}, ()))
    Features(model, Run(Store(tmp_path))).images(images)
    again = Store(tmp_path)
    Features(edited, Run(again)).images(images)
    assert again.events == {"features": "hit"}  # and no image is decoded again
    Features(edited, Run(again)).classes(images.classes)
    assert again.events == {"features": "partial"}


def test_many_images_are_encoded_in_batches_as_one_alone_is(tmp_path):
    model = tiny.clip()
    size = image_batch(model)
    images = tiny.pictures([i % 8 for i in range(size + 3)])
    found = Features(model, Run(Store(tmp_path))).images(images)
    last = model.encode("vision", tiny.pixels(images.images[-1:]))[0]
    assert found.shape == (size + 3, 16)
    torch.testing.assert_close(found[-1], last, rtol=1e-4, atol=1e-5)


def test_prompts_of_similar_length_form_batches_and_come_back_in_order():
    model = tiny.clip()
    tokens = tiny.tokenize([name * (1 + i % 2) for i, name in enumerate(tiny.NAMES * 5)])
    batches, order = token_batches(model, tokens)
    lengths = [length for batch in batches for length in (batch.argmax(-1) + 1).tolist()]
    assert lengths == sorted(lengths)
    assert torch.equal(torch.cat(batches)[order], tokens)


def test_pixels_are_bytes_and_each_image_is_decoded_once_for_all_sets(tmp_path):
    images, other = tiny.pictures([0, 1, 2]), tiny.pictures([0, 1, 2, 3])
    Features(tiny.clip(), Run(Store(tmp_path))).pixels(images)
    again = Store(tmp_path)
    found = Features(tiny.clip(1), Run(again)).pixels(other)
    assert again.events == {"pixels": "partial"}
    assert found.dtype == torch.uint8
    torch.testing.assert_close(tiny.prepare.scale(found), tiny.pixels(other.images))


def test_a_batch_holds_a_million_values_before_the_first_block():
    model = tiny.clip()  # width 32; 4 patches and a class token
    assert batch_size(model, "text", 64) == 512  # 512 x 64 x 32 = 2 ** 20
    assert batch_size(model, "text", 10**6) == 4
    assert image_batch(model) == 1024
