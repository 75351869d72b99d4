"""What every model family offers."""

import pytest
import tiny
import tiny_sd
import tiny_vlm
import torch

from muwa.models.base import check_observer
from muwa.models.clip.embeddings import Features
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run
from muwa.types.edit import Edit

FAMILIES = {"clip": (tiny.clip, Features), "diffusion": (tiny_sd.diffusion, ImageGenerator),
            "xl": (tiny_sd.xl, ImageGenerator), "vlm": (tiny_vlm.vlm, QuestionAnswering)}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request):
    """(a tiny model of a family, its kind of observer)."""
    make, observer = FAMILIES[request.param]
    return make(), observer


def first_layer_edit(model):
    """An edit of the first layer of the model's first CLIP that changes every weight of it."""
    clip = next(iter(model.clips.values()))
    name = clip.layers("tensor")[0].edited[0].name
    return Edit({name: torch.full_like(clip.weights[name], 0.25)}, ()), name


def test_the_observer_is_of_the_declared_kind_and_of_this_model(family):
    model, kind = family
    run = Run()
    observer = model.observe(run)
    assert type(observer) is kind is model.observer
    assert observer.model is model
    assert observer.run is run
    assert kind.family
    assert kind.search.startswith("layer_search=")


def test_an_edit_gives_another_model_and_leaves_this_one(family):
    model, _ = family
    edit, name = first_layer_edit(model)
    before = {encoder: clip.weights[name].clone() for encoder, clip in list(model.clips.items())[:1]}
    fingerprint = model.fingerprint
    edited = model.edited(edit)
    ((encoder, kept),) = before.items()
    assert torch.equal(model.clips[encoder].weights[name], kept)
    assert torch.equal(edited.clips[encoder].weights[name], kept + 0.25)
    assert (model.fingerprint, type(edited)) == (fingerprint, type(model))
    assert edited.fingerprint != fingerprint


def test_a_patch_is_bound_to_the_tensors_that_the_deltas_are_added_to(family):
    model, _ = family
    edit, name = first_layer_edit(model)
    base = model.patch_base(edit)
    assert torch.equal(base.weights[name], next(iter(model.clips.values())).weights[name])
    assert len(base.weights_fingerprint) == 64


def test_provenance_says_at_least_where_from_and_what(family):
    model, _ = family
    about = model.about()
    assert (about["source"], about["fingerprint"]) == (model.source, model.fingerprint)


def test_the_encoder_of_a_clip_is_itself():
    model = tiny.clip()
    assert model.clips == {"": model}
    assert list(tiny_sd.xl().clips) == ["text_encoder", "text_encoder_2"]
    assert list(tiny_vlm.vlm().clips) == ["vision_tower"]


def test_a_model_of_another_family_is_refused_with_what_it_is_and_what_is_wanted():
    check_observer("method=ga", Features, tiny.clip())
    with pytest.raises(
        ValueError,
        match=r"eval.canvas: got a CLIP \(model=clip, clip_vit_b32, ...\) \(tiny\), want a text-to-image model \(model=sd",
    ):
        check_observer("eval.canvas", ImageGenerator, tiny.clip())
