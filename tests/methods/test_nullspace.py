from dataclasses import replace

import pytest
import tiny
import torch
from records import part

from muwa.methods.base import make_edit
from muwa.methods.nullspace import directions, projected, projection
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def edit_by(model, task, **settings):
    return make_edit(part("method=nullspace", **{"rule": "first", **settings}), model, task, Run())


def test_projecting_worked_by_hand_in_both_spellings():
    """U = (0.6, 0.8): W = (1, 2) has 0.6 + 1.6 = 2.2 along it, which is (1.32, 1.76)."""
    u = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    right = projected({"visual.proj": torch.tensor([[1.0, 2.0]])}, "visual.proj", u, 0.5)
    torch.testing.assert_close(right["visual.proj"], torch.tensor([[-0.66, -0.88]]))
    left = projected(
        {"visual_projection.weight": torch.tensor([[1.0], [2.0]])}, "visual_projection.weight", u, 0.5
    )
    torch.testing.assert_close(left["visual_projection.weight"], right["visual.proj"].T)
    name = "visual.attnpool.c_proj.weight"
    both = projected(
        {name: torch.tensor([[1.0], [2.0]]), name.replace("weight", "bias"): torch.tensor([1.0, 2.0])},
        name,
        u,
        1.0,
    )
    torch.testing.assert_close(both[name.replace("weight", "bias")], torch.tensor([-1.32, -1.76]))


def test_no_image_has_anything_of_the_name_left():
    model, task = tiny.clip(), tiny.task()
    edit = edit_by(model, task, strengths=[1.0])
    assert list(edit.deltas) == ["visual.proj"]
    (move,) = edit.moves
    assert (move.tower, move.layer, move.step, edit.samples) == ("vision", "visual.proj", 1.0, 0)
    edited = model.edited(edit)
    for texts in (["Ada Fox."], ["a photo of Ada Fox"]):
        prompt = model.encode("text", model.tokenize(texts))
        for images in (task.eval.retain, task.eval.forget):
            assert (Features(edited, Run()).images(images) @ prompt.T).abs().max() < 1e-5
            assert (Features(model, Run()).images(images) @ prompt.T).abs().max() > 1e-2
    row = edit.searches[0].trace[0]
    assert row.metrics["forget_cosine"] == pytest.approx(0, abs=1e-5)


def test_a_part_of_the_way_leaves_that_part():
    model, task = tiny.clip(), tiny.task()
    edit = edit_by(model, task, strengths=[0.25], templates=["{}."])
    prompt = model.encode("text", model.tokenize(["Ada Fox."]))[0]
    pixels = tiny.pixels(task.eval.forget.images)
    before, after = (
        one._towers.model.visual(pixels) if one is model else raw(one, pixels)
        for one in (model, model.edited(edit))
    )
    torch.testing.assert_close(after @ prompt, 0.75 * (before @ prompt), atol=1e-5, rtol=1e-4)
    rest = torch.eye(16) - prompt.outer(prompt)
    torch.testing.assert_close(after @ rest, before @ rest, atol=1e-5, rtol=1e-4)


def raw(model, pixels):
    return model.go("vision", model.enter("vision", pixels), model.staged_forward("vision").end).x


def test_the_basis_is_orthonormal_spans_the_prompts_and_is_cut_at_its_rank():
    model = tiny.clip()
    prompts = ["Ada Fox.", "a photo of Ada Fox", "Bo Hill.", "Bo Hill."]
    basis = directions(model, prompts, None)
    assert basis.shape == (16, 3)  # two prompts are one
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    embeddings = model.encode("text", model.tokenize(prompts)).double()
    torch.testing.assert_close(embeddings @ basis @ basis.T, embeddings, atol=1e-6, rtol=1e-6)
    assert directions(model, prompts, 1).shape == (16, 1)


def test_several_names_are_taken_out_together():
    model, task = tiny.clip(), replace(tiny.task(), names=tiny.NAMES[:2])
    edit = edit_by(model, task, strengths=[1.0])
    prompts = model.encode("text", model.tokenize(["Ada Fox.", "Bo Hill."]))
    assert (Features(model.edited(edit), Run()).images(task.eval.retain) @ prompts.T).abs().max() < 1e-5


def test_a_model_without_a_projection_is_refused():
    model = tiny.clip()
    other = model.with_weights({})
    other.weights = {name: w for name, w in model.weights.items() if name != "visual.proj"}
    with pytest.raises(
        ValueError, match="method=nullspace: tiny has none of visual.proj, visual_projection.weight"
    ):
        projection(other)


def test_the_prompts_of_a_style_are_those_with_each_class():
    model, task = tiny.clip(), tiny.canvas("style")
    edit = edit_by(model, task, strengths=[1.0])
    images = Features(model.edited(edit), Run()).images(task.eval.retain)
    for text in ("Ada Fox.", "A Bo Hill image in Ada Fox style.", "A Flo Wren image in Ada Fox style."):
        assert (images @ model.encode("text", model.tokenize([text])).T).abs().max() < 1e-5
    with pytest.raises(ValueError, match="method.rank: got 5, want 1 to 4"):
        edit_by(model, task, rank=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": []}, r"method.templates: got \[\], want texts with {} where the name stands"),
        (
            {"templates": ["a photo"]},
            r"method.templates: got \['a photo'\], want texts with {} where the name stands",
        ),
        ({"strengths": []}, r"method.strengths: got \[\], want some in \(0, 1\]"),
        ({"strengths": [0.5, 1.5]}, r"method.strengths: got \[0.5, 1.5\], want some in \(0, 1\]"),
        ({"rank": 0}, r"method.rank: got 0, want 1 to 2 \(prompts\), or null for all"),
        ({"criterion": "top3"}, "method.criterion: got 'top3', want one of top5, top1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        edit_by(tiny.clip(), tiny.task(), **settings)
