from dataclasses import replace

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.methods.nullspace import directions, projected, projection, unlearn
from muwa.models.clip.embeddings import Features


def test_projecting_worked_by_hand_in_both_spellings():
    """U = (0.6, 0.8): W = (1, 2) has 0.6 + 1.6 = 2.2 along it, which is (1.32, 1.76)."""
    u = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    right = projected({"visual.proj": torch.tensor([[1.0, 2.0]])}, "visual.proj", u, 0.5)
    torch.testing.assert_close(right["visual.proj"], torch.tensor([[-0.66, -0.88]]))
    left = projected({"visual_projection.weight": torch.tensor([[1.0], [2.0]])}, "visual_projection.weight", u, 0.5)
    torch.testing.assert_close(left["visual_projection.weight"], right["visual.proj"].T)
    name = "visual.attnpool.c_proj.weight"
    both = projected(
        {name: torch.tensor([[1.0], [2.0]]), name.replace("weight", "bias"): torch.tensor([1.0, 2.0])}, name, u, 1.0
    )
    torch.testing.assert_close(both[name.replace("weight", "bias")], torch.tensor([-1.32, -1.76]))


def test_no_picture_has_anything_of_the_name_left(tmp_path):
    model, task = tiny.clip(), tiny.task()
    edit = unlearn(model, task, store=Store(tmp_path), strengths=[1.0], rule="first")
    assert list(edit.deltas) == ["visual.proj"]
    (move,) = edit.moves
    assert (move.tower, move.layer, move.step, edit.samples) == ("vision", "visual.proj", 1.0, 0)
    edited = model.edited(edit)
    for texts in (["Ada Fox."], ["a photo of Ada Fox"]):
        told = model.encode("text", model.tokenize(texts))
        for pictures in (task.eval.retain, task.eval.forget):
            assert (Features(edited).images(pictures) @ told.T).abs().max() < 1e-5
            assert (Features(model).images(pictures) @ told.T).abs().max() > 1e-2
    row = edit.searches[0].trace[0]
    assert row.forget_cosine == pytest.approx(0, abs=1e-5)


def test_a_part_of_the_way_leaves_that_part(tmp_path):
    model, task = tiny.clip(), tiny.task()
    edit = unlearn(model, task, store=Store(tmp_path), strengths=[0.25], rule="first", templates=["{}."])
    told = model.encode("text", model.tokenize(["Ada Fox."]))[0]
    pixels = tiny.pixels(task.eval.forget.images)
    before, after = (
        one._towers.model.visual(pixels) if one is model else raw(one, pixels) for one in (model, model.edited(edit))
    )
    torch.testing.assert_close(after @ told, 0.75 * (before @ told), atol=1e-5, rtol=1e-4)
    rest = torch.eye(16) - told.outer(told)
    torch.testing.assert_close(after @ rest, before @ rest, atol=1e-5, rtol=1e-4)


def raw(model, pixels):
    return model.go("vision", model.enter("vision", pixels), model.staged_forward("vision").end).x


def test_the_basis_is_orthonormal_spans_the_prompts_and_is_cut_at_its_rank():
    model = tiny.clip()
    prompts = ["Ada Fox.", "a photo of Ada Fox", "Bo Hill.", "Bo Hill."]
    basis = directions(model, prompts, None)
    assert basis.shape == (16, 3)  # two prompts are one
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    told = model.encode("text", model.tokenize(prompts)).double()
    torch.testing.assert_close(told @ basis @ basis.T, told, atol=1e-6, rtol=1e-6)
    assert directions(model, prompts, 1).shape == (16, 1)


def test_several_names_are_taken_out_together(tmp_path):
    model, task = tiny.clip(), replace(tiny.task(), names=tiny.NAMES[:2])
    edit = unlearn(model, task, store=Store(tmp_path), strengths=[1.0], rule="first")
    told = model.encode("text", model.tokenize(["Ada Fox.", "Bo Hill."]))
    assert (Features(model.edited(edit)).images(task.eval.retain) @ told.T).abs().max() < 1e-5


def test_a_model_without_a_projection_is_refused():
    model = tiny.clip()
    other = model.with_weights({})
    other.weights = {name: w for name, w in model.weights.items() if name != "visual.proj"}
    with pytest.raises(ValueError, match="method=nullspace: tiny has none of visual.proj, visual_projection.weight"):
        projection(other)


def test_the_texts_of_a_style_are_those_that_ask_for_it_with_each_class(tmp_path):
    model, task = tiny.clip(), tiny.canvas("style")
    edit = unlearn(model, task, store=Store(tmp_path), strengths=[1.0], rule="first")
    pictures = Features(model.edited(edit)).images(task.eval.retain)
    for text in ("Ada Fox.", "A Bo Hill image in Ada Fox style.", "A Flo Wren image in Ada Fox style."):
        assert (pictures @ model.encode("text", model.tokenize([text])).T).abs().max() < 1e-5
    with pytest.raises(ValueError, match="method.rank: got 5, want 1 to 4"):
        unlearn(model, task, store=Store(tmp_path), rank=5)
