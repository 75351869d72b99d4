import io
import math
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import painter
import pytest
import tiny
import tiny_sd
import torch
from PIL import Image
from records import part
from scipy import linalg
from torch import nn

from muwa.eval.images.clips import embed
from muwa.eval.images.quality import nearest_names
from muwa.models.clip.embeddings import Features
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.run import Run
from muwa.types.data import Classes, Split
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts
from muwa.types.metric import NameRate

ALL = {"seeds": 3, "first_seed": 1000, "retain": None, "cross": None}


def tiny_clip(model):
    return tiny.clip()


def quality(name, **changed):
    """A measure of eval=[quality] with the tiny CLIP."""
    return replace(part("eval=[quality]")[name], clip=tiny_clip, **changed)


def measured(model, task, name, **changed):
    measure = quality(name, **changed)
    measure.check(model, task)
    return measure(ImageGenerator(model, Run()), task)


def distances(model, task, **changed):
    return measured(model, task, "distances", **{**ALL, "feature": Blocks, **changed})


class Noisy(painter.Painter):
    """Adds noise of the seed, so that features differ from image to image."""

    def generate(self, prompts):
        noise = [np.random.default_rng(seed).integers(0, 40, (3, 8, 8)) for seed in prompts.seeds]
        return (
            (super().generate(prompts).int() + torch.from_numpy(np.stack(noise)))
            .clamp(0, 255)
            .to(torch.uint8)
        )


class Blocks(nn.Module):
    """Twelve features: means of the four quarters of each channel."""

    num_features = 12

    def forward(self, images):
        assert images.dtype == torch.uint8
        return nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1)


def numpy_fid(x, y):
    root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
    gap = x.mean(0) - y.mean(0)
    return gap @ gap + np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root.real)


def numpy_kid(x, y):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    own = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y)))
    return own - 2 * kernel(x, y).sum() / (n * m)


def real_task(n=24):
    """Forget Ada Fox; 24 real images, 8 x 8 as the painted ones are, of kept people and shapes, and some of Ada."""
    task = painter.identity()
    names = ["Ada Fox", "Bo Hill", "Cy Reed"]
    labels = tuple(i % 3 for i in range(n))
    retain = replace(task.eval.retain, keys=labels, images=tuple(png8(i) for i in range(n)), labels=labels,
                     classes=Classes(tuple(names), ("{}",)))  # fmt: skip
    return replace(task, eval=Split(task.eval.forget, retain, task.eval.utility))


def png8(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def pixels(images):
    rows = [
        np.array(Image.open(io.BytesIO(image)).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        for image in images
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def test_fid_and_kid_are_those_of_numpy_on_the_same_features():
    task, model = real_task(), Noisy()
    found = distances(model, task, subset_size=1000)
    drawn = model.generate(Prompts(*zip(*dict.fromkeys(model.asked), strict=True)))
    kept = [
        image for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) if label
    ]
    real = pixels([*kept, *task.eval.utility.images])
    x, y = (Blocks()(each).double().numpy() for each in (real, drawn))
    assert (len(x), len(y)) == (19, 15)
    assert found["quality/fid"].value == pytest.approx(numpy_fid(x, y), rel=1e-3)
    assert found["quality/kid"].n == 15
    readings = [one.reading for one in found.values()]
    assert {(one.better, one.unit, one.role, one.features) for one in readings} == {
        ("lower", "distance", "", "Blocks")
    }
    assert {one.section for one in readings} == {"Quality of generated images"}
    assert (
        readings[0].text
        == "FID of 15 generated images of what is kept to 19 real ones, on features of Blocks"
    )


def test_kid_of_all_images_is_the_unbiased_estimate():
    """As many painted as real images, so that the one subset is everything."""
    task = real_task(18)
    kept = [
        image for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) if label
    ]
    model = Noisy()
    found = distances(model, task)
    real = pixels([*kept, *task.eval.utility.images])
    drawn = model.generate(Prompts(*zip(*dict.fromkeys(model.asked), strict=True)))
    x, y = (Blocks()(each).double().numpy() for each in (real, drawn))
    assert len(x) == len(y) == 15
    assert found["quality/kid"].value == pytest.approx(numpy_kid(x, y), rel=1e-3)


def test_without_a_module_the_features_are_clips():
    task, model = real_task(18), Noisy()
    found = distances(model, task, feature=None)
    clip = tiny.clip()
    kept = [
        image for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) if label
    ]
    x = embed(clip, pixels([*kept, *task.eval.utility.images])).double().numpy()
    y = embed(clip, model.generate(Prompts(*zip(*dict.fromkeys(model.asked), strict=True)))).double().numpy()
    assert found["quality/fid"].value == pytest.approx(numpy_fid(x, y), rel=1e-2)
    reading = found["quality/fid"].reading
    assert reading.text.endswith("on features of CLIP, not of Inception")
    assert reading.features == "CLIP"


def test_a_module_of_inception_gives_inceptions_features():
    class NoTrainInception(Blocks):
        pass

    found = distances(Noisy(), real_task(18), feature=NoTrainInception)
    assert found["quality/fid"].reading.features == "Inception"


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state():
    before = torch.get_rng_state()
    first, second = (distances(Noisy(), real_task(), subset_size=5) for _ in "ab")
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_images_of_the_target_enter_nowhere():
    for task in (painter.identity(), painter.style(), painter.kind_class()):
        model = Noisy()
        distances(model, task)
        measured(model, task, "clip_score", **ALL)
        assert not any(task.names[0] in text for text, _ in model.asked)


def test_the_clip_score_is_a_mean_of_cosines():
    model, task, clip = Noisy(), painter.identity(), tiny.clip()
    found = measured(model, task, "clip_score", **ALL)["utility/clip_score"]
    scores = []
    for name in painter.CLASSES[3:]:
        for seed in range(1000, 1003):
            text = f"a photo of a {name}"
            picture = embed(clip, model.generate(Prompts((text,), (seed,))))[0]
            scores.append(max(0.0, 100 * (picture @ clip.encode("text", tiny.tokenize([text]))[0]).item()))
    spread = 1.959964 * np.std(scores, ddof=1) / math.sqrt(9)
    reading = found.reading
    assert (found.n, reading.better, reading.unit, reading.in_objective) == (9, "higher", "score", False)
    assert found.value == pytest.approx(np.mean(scores), abs=1e-3)
    assert found.low == pytest.approx(max(0, np.mean(scores) - spread), abs=1e-3)
    assert found.high == pytest.approx(np.mean(scores) + spread, abs=1e-3)


def test_prompts_of_ones_own_are_taken_instead():
    model = Noisy()
    settings = {"prompts": ["a heart", "a ring"], "seeds": 2, "first_seed": 5}
    found = measured(model, painter.identity(), "clip_score", **settings)
    assert found["utility/clip_score"].n == 4
    assert model.asked == [("a heart", 5), ("a heart", 6), ("a ring", 5), ("a ring", 6)]


def test_the_nearest_names_are_those_of_the_largest_cosine():
    clip, names = tiny.clip(), list(tiny.NAMES)
    rows = torch.cat([clip.encode("text", tiny.tokenize([name])) for name in names])
    order = (rows[0] @ rows[1:].T).argsort(descending=True).tolist()
    assert nearest_names(clip, names[:1], names[1:], 3, run=Run()) == [names[1:][i] for i in order[:3]]
    assert sorted(nearest_names(clip, names[:2], names[2:], 99, run=Run())) == sorted(names[2:])
    assert nearest_names(clip, names[:1], [], 3, run=Run()) == []


def test_lookalikes_are_generated_and_counted_by_hand():
    """The nearest of two kept people is painted as Ada from one of three seeds."""
    near = nearest_names(tiny.clip(), ("Ada Fox",), painter.CLASSES[1:3], 1, run=Run())[0]
    model = painter.Painter(lambda text, seed: "Ada Fox" if seed == 1002 else None)
    settings = {"classifier": painter.Colours(), "nearest": 1, "kept_seeds": 3}
    found = measured(model, painter.identity(), "lookalike", **settings)
    assert (found["retain/lookalike"].value, found["retain/lookalike"].n) == (pytest.approx(2 / 3), 3)
    assert f"({near})" in found["retain/lookalike"].reading.text
    assert found["retain/lookalike"].by_name == {near: NameRate(pytest.approx(2 / 3), 3)}
    assert {text for text, _ in model.asked} == {f"a photo of {near}"}


def test_lookalikes_of_a_style_have_as_many_images_per_prompt_as_in_the_benchmark():
    """1 look-alike x 3 shapes x 2 seeds; of a person 1 x 4."""
    settings = {"classifier": painter.Colours(), "nearest": 1, "seeds": 2, "kept_seeds": 4, "cross": None}
    for task, n in ((painter.style(), 6), (painter.identity(), 4)):
        assert measured(painter.Painter(), task, "lookalike", **settings)["retain/lookalike"].n == n


def test_an_embedding_is_that_of_features():
    """`embed` of an image of the tower's size is `Features` of the same image."""
    clip, images = tiny.clip(), tiny.pictures([1, 2])
    raw = ((tiny.pixels(images.images) + 1) * 127.5).round().to(torch.uint8)
    assert torch.allclose(embed(clip, raw), Features(clip, Run()).images(images), atol=1e-5)


def test_too_few_images_are_refused():
    with pytest.raises(
        ValueError, match="eval.distances: 0 generated and 0 real images, want at least 2 of each"
    ):
        quality("distances", **{**ALL, "retain": 0, "cross": 0}).check(Noisy(), painter.identity())


def test_a_lookalike_without_a_label_is_refused_before_anything_is_generated():
    class Blind(painter.Colours):
        labels = MappingProxyType({"class": painter.CLASSES[:2], "style": painter.STYLES})

    model = painter.Painter()
    with pytest.raises(ValueError, match="no label for the class 'Cy Reed'"):
        quality("lookalike", classifier=Blind(), nearest=2).check(model, painter.identity())
    assert model.asked == []


def test_by_default_the_pipelines_unedited_clip_scores():
    """All three measures of an edited pipeline load the CLIP that the pipeline was made with."""
    model = tiny_sd.diffusion()
    layer = "transformer.resblocks.2.attn.in_proj_weight"
    edited = model.edited(Edit({layer: torch.ones_like(model.clip.weights[layer])}, ()))
    for name, measure in part("eval=[quality]").items():
        assert measure.clip(edited).fingerprint == model.clip.fingerprint != edited.clip.fingerprint, name
