import io
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image
from records import part

from muwa.cache.store import Store
from muwa.data.samples import decode
from muwa.eval.clip import alterations as module
from muwa.eval.clip.alterations import altered, blurred, compressed, cropped, noisy, styled
from muwa.eval.clip.ranks import top_k
from muwa.miniature.population import STYLES
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def alterations(**changed):
    return replace(part("eval=[alterations]")["alterations"], **changed)


CHECKED = Image.fromarray((np.indices((40, 60)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")


def test_each_alteration_does_what_it_says():
    ramp = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (50, 1))).convert("RGB")
    middle = np.asarray(cropped(ramp, 0.5))[25, :, 0]
    assert middle[0] == pytest.approx(25, abs=1)
    assert middle[-1] == pytest.approx(74, abs=1)
    assert np.asarray(blurred(CHECKED, 0.1))[20, 30] == pytest.approx([127] * 3, abs=8)
    assert np.abs(np.asarray(compressed(CHECKED, 5), int) - np.asarray(CHECKED)).mean() > 5
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    assert (np.asarray(noisy(grey, 0.1, 0), float) / 255).std() == pytest.approx(0.1, rel=0.05)
    assert noisy(grey, 0.1, 0).tobytes() == noisy(grey, 0.1, 0).tobytes() != noisy(grey, 0.1, 1).tobytes()
    assert np.asarray(styled(CHECKED, "negative"))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("style", STYLES)
def test_a_style_takes_pictures_of_any_shape(style):
    for size in ((64, 64), (178, 218)):
        picture = Image.effect_noise(size, 60).convert("RGB")
        found = styled(picture, style)
        assert found.size == size
        assert found.tobytes() != picture.tobytes()


def test_what_is_judged_is_the_altered_picture(tmp_path):
    """Halves of black and white swap sides: the model sees exactly the mirrored file."""
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, :16] = 255
    buffer = io.BytesIO()
    Image.fromarray(half).save(buffer, "PNG")
    one = tiny.pictures([0])
    mine = type(one)(one.keys, (buffer.getvalue(),), one.labels, one.classes)
    flipped = altered(mine, module.ImageOps.mirror)
    assert np.array_equal(np.asarray(decode(flipped.images[0])), half[:, ::-1])
    found = alterations(others=4)(Features(tiny.clip(), Run(Store(tmp_path))), tiny.task())
    kinds = ["flip", "crop", "blur", "jpeg", "noise", "style"]
    assert list(found) == [name for kind in kinds for name in (f"altered/{kind}", f"altered/{kind}_others")]
    assert (found["altered/flip"].n, found["altered/flip_others"].n) == (2, 4)
    assert {name: metric.reading.better for name, metric in found.items()} == {
        name: "higher" if name.endswith("_others") else "lower" for name in found
    }
    assert {metric.reading.section for metric in found.values()} == {"In altered images"}
    assert alterations(others=4)(Features(tiny.clip(), Run()), tiny.task()) == found


def test_a_change_that_changes_nothing_changes_nothing():
    features, task = Features(tiny.clip(), Run()), tiny.task()
    found = alterations(crop=1.0, noise=0.0, styles=[], others=None)(features, task)
    hits = top_k(features.images(task.eval.retain), features.classes(task.eval.retain.classes),
                 module.torch.tensor(task.eval.retain.labels), 1)  # fmt: skip
    plain = hits.double().mean().item()
    assert found["altered/crop_others"].value == found["altered/noise_others"].value == pytest.approx(plain)
    assert "altered/style" not in found


def test_settings_are_checked_before_any_compute():
    with pytest.raises(ValueError, match="eval.alterations.jpeg: got 0, want 1 to 95"):
        alterations(jpeg=0).check(tiny.clip(), tiny.task())
    with pytest.raises(ValueError, match="eval.alterations.styles: got 'cubist', want some of sketch"):
        alterations(styles=["cubist"]).check(tiny.clip(), tiny.task())
    with pytest.raises(ValueError, match="eval: got 0 images to look at"):
        alterations(others=0).check(tiny.clip(), tiny.task())
    alterations().check(tiny.clip(), tiny.task())
