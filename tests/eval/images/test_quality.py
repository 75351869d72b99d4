import io
import math
from dataclasses import replace

import numpy as np
import painter
import pytest
import tiny
import torch
from PIL import Image
from scipy import linalg
from torch import nn

from muwa.eval.images.classifiers import embed
from muwa.eval.images.quality import clip_score, distances, lookalike, nearest_names
from muwa.models.clip.embeddings import Features
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.types.data import Classes, Split
from muwa.types.image_requests import Prompts

ALL = {"seeds": 3, "first_seed": 1000, "retain": None, "cross": None}


class Noisy(painter.Painter):
    """Adds noise of the seed, so that features differ from picture to picture."""

    def draw(self, prompts):
        noise = [np.random.default_rng(seed).integers(0, 40, (3, 8, 8)) for seed in prompts.seeds]
        return (super().draw(prompts).int() + torch.from_numpy(np.stack(noise))).clamp(0, 255).to(torch.uint8)


class Blocks(nn.Module):
    """Twelve features: means of the four quarters of each channel."""

    num_features = 12

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8
        return nn.functional.avg_pool2d(pictures.float() / 255, 4).flatten(1)


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
    """Forget Ada Fox; 24 real pictures, 8 x 8 as drawings are, of kept people and shapes, and some of Ada."""
    task = painter.identity()
    names = ["Ada Fox", "Bo Hill", "Cy Reed"]
    labels = tuple(i % 3 for i in range(n))
    retain = replace(task.eval.retain, keys=labels, images=tuple(png8(i) for i in range(n)), labels=labels,
                     classes=Classes(tuple(names), ("{}",)))  # fmt: skip
    return replace(task, eval=Split(task.eval.forget, retain, task.eval.utility))


def png8(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(images):
    rows = [
        np.array(Image.open(io.BytesIO(image)).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        for image in images
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def test_fid_and_kid_are_those_of_numpy_on_the_same_features():
    task, model = real_task(), Noisy()
    found = distances(ImageGenerator(model), task, clip=tiny.clip, feature=Blocks, **ALL, subset_size=1000)
    drawn = model.draw(Prompts(*zip(*dict.fromkeys(model.asked), strict=True)))
    kept = [image for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) if label]
    real = pixels([*kept, *task.eval.utility.images])
    x, y = (Blocks()(each).double().numpy() for each in (real, drawn))
    assert (len(x), len(y)) == (19, 15)
    assert found["quality/fid"].value == pytest.approx(numpy_fid(x, y), rel=1e-3)
    assert found["quality/kid"].n == 15
    assert {one.better for one in found.values()} == {"lower"}
    assert (
        "15 drawings of what is kept to 19 real pictures, on features that are Blocks's" in found["quality/fid"].reads
    )


def test_kid_of_all_pictures_is_the_unbiased_estimate():
    """As many drawings as real pictures, so that the one subset is everything."""
    task = real_task(18)
    kept = [image for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) if label]
    model = Noisy()
    found = distances(ImageGenerator(model), task, clip=tiny.clip, feature=Blocks, **ALL)
    real = pixels([*kept, *task.eval.utility.images])
    drawn = model.draw(Prompts(*zip(*dict.fromkeys(model.asked), strict=True)))
    x, y = (Blocks()(each).double().numpy() for each in (real, drawn))
    assert len(x) == len(y) == 15
    assert found["quality/kid"].value == pytest.approx(numpy_kid(x, y), rel=1e-3)


def test_without_a_module_the_features_are_clips():
    task, model = real_task(18), Noisy()
    found = distances(ImageGenerator(model), task, clip=tiny.clip, **ALL)
    clip = tiny.clip()
    kept = [image for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) if label]
    x = embed(clip, pixels([*kept, *task.eval.utility.images])).double().numpy()
    y = embed(clip, model.draw(Prompts(*zip(*dict.fromkeys(model.asked), strict=True)))).double().numpy()
    assert found["quality/fid"].value == pytest.approx(numpy_fid(x, y), rel=1e-2)
    assert "features that are CLIP's, not Inception's" in found["quality/fid"].reads


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state():
    before = torch.get_rng_state()
    first, second = (
        distances(ImageGenerator(Noisy()), real_task(), clip=tiny.clip, feature=Blocks, **ALL, subset_size=5) for _ in "ab"
    )
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_of_the_forgotten_enter_nowhere():
    for task in (painter.identity(), painter.style(), painter.kind_class()):
        model = Noisy()
        distances(ImageGenerator(model), task, clip=tiny.clip, feature=Blocks, **ALL)
        clip_score(ImageGenerator(model), task, clip=tiny.clip, **ALL)
        assert not any(task.names[0] in text for text, _ in model.asked)


def test_the_clip_score_is_a_mean_of_cosines():
    model, task, clip = Noisy(), painter.identity(), tiny.clip()
    found = clip_score(ImageGenerator(model), task, clip=tiny.clip, **ALL)["utility/clip_score"]
    scores = []
    for name in painter.CLASSES[3:]:
        for seed in range(1000, 1003):
            text = f"a photo of a {name}"
            picture = embed(clip, model.draw(Prompts((text,), (seed,))))[0]
            scores.append(max(0.0, 100 * (picture @ clip.encode("text", tiny.tokenize([text]))[0]).item()))
    spread = 1.959964 * np.std(scores, ddof=1) / math.sqrt(9)
    assert (found.n, found.better) == (9, "higher")
    assert found.value == pytest.approx(np.mean(scores), abs=1e-3)
    assert found.low == pytest.approx(max(0, np.mean(scores) - spread), abs=1e-3)
    assert found.high == pytest.approx(np.mean(scores) + spread, abs=1e-3)


def test_prompts_of_ones_own_are_taken_instead():
    model = Noisy()
    found = clip_score(
        ImageGenerator(model), painter.identity(), clip=tiny.clip, prompts=["a heart", "a ring"], seeds=2, first_seed=5
    )
    assert found["utility/clip_score"].n == 4
    assert model.asked == [("a heart", 5), ("a heart", 6), ("a ring", 5), ("a ring", 6)]


def test_the_nearest_names_are_those_of_the_largest_cosine():
    clip, names = tiny.clip(), list(tiny.NAMES)
    rows = torch.cat([clip.encode("text", tiny.tokenize([name])) for name in names])
    order = (rows[0] @ rows[1:].T).argsort(descending=True).tolist()
    assert nearest_names(clip, names[:1], names[1:], 3) == [names[1:][i] for i in order[:3]]
    assert sorted(nearest_names(clip, names[:2], names[2:], 99)) == sorted(names[2:])
    assert nearest_names(clip, names[:1], [], 3) == []


def test_lookalikes_are_drawn_and_counted_by_hand():
    """Of two kept people one is nearest; she is drawn as Ada from one of three seeds."""
    near = nearest_names(tiny.clip(), ("Ada Fox",), painter.CLASSES[1:3], 1)[0]
    model = painter.Painter(lambda text, seed: "Ada Fox" if seed == 1002 else None)
    found = lookalike(ImageGenerator(model), painter.identity(), classifier=painter.Colours, clip=tiny.clip, nearest=1, seeds=3)
    assert (found["retain/lookalike"].value, found["retain/lookalike"].n) == (pytest.approx(2 / 3), 3)
    assert near in found["retain/lookalike"].reads
    assert {text for text, _ in model.asked} == {f"a photo of {near}"}


def test_real_pictures_are_features_of_encode_too():
    """`embed` of a picture of the tower's own size is `Features` of the same picture."""
    clip, pictures = tiny.clip(), tiny.pictures([1, 2])
    raw = ((tiny.pixels(pictures.images) + 1) * 127.5).round().to(torch.uint8)
    assert torch.allclose(embed(clip, raw), Features(clip).images(pictures), atol=1e-5)


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="eval.distances: 0 drawings and 0 real pictures"):
        distances(ImageGenerator(Noisy()), painter.identity(), clip=tiny.clip, **{**ALL, "retain": 0, "cross": 0})
