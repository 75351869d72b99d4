import dataclasses

import pytest
import tiny_sd
import torch
from diffusers import StableDiffusionPipeline

from muwa.library import load_clip as load
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import generated
from muwa.models.diffusion.model import Diffusion, Sampling
from muwa.patch.names import by_component, convert_to_target
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts

PROMPTS = Prompts(("a photo of a dog", "red", "Ada Fox in oil"), (3, 4, 3))
FUSED, PROJ = "transformer.resblocks.2.attn.in_proj_weight", "transformer.resblocks.3.mlp.c_proj.weight"
CONV = "unet/conv_in.weight"


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


@pytest.fixture(scope="module")
def xl():
    return tiny_sd.xl()


def edit(model, *keys, size=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for key in keys:
        component, _, name = key.rpartition("/")
        clip = model.clips.get(component or "text_encoder")
        shape = (clip.weights if clip else model.weights(component))[name].shape
        deltas[key] = size * torch.randn(shape, generator=generator)
    return Edit(deltas, ())


def state(model):
    return {key: p.detach().clone() for key, p in model._parameters.items()}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_seed_gives_the_same_image_whatever_is_in_its_batch(model):
    together = model.generate(PROMPTS)
    assert (together.shape, together.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert together.float().std() > 10
    for i in range(3):
        assert torch.equal(model.generate(PROMPTS.select([i]))[0], together[i])
    assert torch.equal(generated(model, PROMPTS, run=Run()), together)
    other = model.generate(Prompts(PROMPTS.texts, (5, 4, 3)))
    assert [torch.equal(a, b) for a, b in zip(other, together, strict=True)] == [False, True, True]


def test_images_are_those_of_diffusers(model):
    noise = [torch.Generator().manual_seed(seed) for seed in PROMPTS.seeds]
    images = tiny_sd.pipeline()(list(PROMPTS.texts), generator=noise, num_inference_steps=2, guidance_scale=2.0,
                                  output_type="np").images  # fmt: skip
    want = torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2)
    assert torch.equal(model.generate(PROMPTS), want)


def test_an_edit_gives_another_model_and_leaves_this_one(model):
    before, images, mark = state(model), model.generate(PROMPTS), model.fingerprint
    step = edit(model, FUSED, CONV)
    edited = model.edited(step)
    assert not torch.equal(edited.generate(PROMPTS), images)
    assert edited.fingerprint != mark
    assert torch.equal(edited.clip.weights[FUSED], model.clip.weights[FUSED] + step.deltas[FUSED])
    for place, delta in convert_to_target({FUSED: step.deltas[FUSED]}, model.weights("text_encoder")).items():
        assert torch.equal(
            edited.weights("text_encoder")[place], model.weights("text_encoder")[place] + delta
        )
    assert torch.equal(
        edited.weights("unet")["conv_in.weight"], model.weights("unet")["conv_in.weight"] + step.deltas[CONV]
    )
    assert len(edited.changes) == 4
    assert same(state(model), before)
    assert model.fingerprint == mark
    assert torch.equal(model.generate(PROMPTS), images)


def test_a_step_of_zero_is_the_identity_and_edits_add_up(model):
    zero = model.edited(edit(model, FUSED, PROJ, CONV, size=0.0))
    assert zero.fingerprint == model.fingerprint
    assert torch.equal(zero.generate(PROMPTS), model.generate(PROMPTS))
    one, two = edit(model, FUSED), edit(model, PROJ, CONV, seed=1)
    both = Edit({**one.deltas, **two.deltas}, ())
    assert model.edited(one).edited(two).fingerprint == model.edited(both).fingerprint


def test_an_edit_that_does_not_fit_is_refused(model):
    for key, error, message in (
        ("visual.proj", KeyError, "visual_projection.weight: not in this model"),
        ("unet/none", KeyError, "unet/none: not a parameter of tiny, which has text_encoder, unet, vae"),
        ("prior/x", KeyError, "prior: tiny has no such component, only text_encoder, unet, vae"),
        (
            "unet/conv_in.bias",
            ValueError,
            r"unet/conv_in.bias: got shape \(128, 128\), want \(8,\) as in tiny",
        ),
    ):
        with pytest.raises(error, match=message):
            model.edited(Edit({key: torch.ones(128, 128)}, ()))
    with pytest.raises(ValueError, match=r"unet/conv_in.bias: got shape \(1,\), want \(8,\)"):
        model.edited(Edit({"unet/conv_in.bias": torch.ones(1)}, ()))  # would have been spread over all eight


def test_weights_can_be_replaced(model):
    other = model.with_weights({CONV: torch.zeros(8, 4, 3, 3)})
    assert not other.weights("unet")["conv_in.weight"].any()
    assert not torch.equal(other.generate(PROMPTS), model.generate(PROMPTS))
    assert other.clip is model.clip
    with pytest.raises(
        ValueError, match=r"unet/conv_in.weight: got shape \(1,\), want \(8, 4, 3, 3\) as in tiny"
    ):
        model.with_weights({CONV: torch.ones(1)})
    with pytest.raises(KeyError, match="unet/none: not a parameter of tiny"):
        model.with_weights({"unet/none": torch.ones(1)})


def test_weights_are_put_back_after_an_error(model):
    before = state(model)
    edited = model.edited(edit(model, FUSED, CONV))
    with pytest.raises(RuntimeError, match="out of paint"), edited.loaded() as pipeline:
        assert torch.equal(pipeline.unet.conv_in.weight, edited.weights("unet")["conv_in.weight"])
        raise RuntimeError("out of paint")
    assert same(state(model), before)


def test_inside_loaded_the_unedited_model_is_still_itself():
    model = tiny_sd.diffusion()
    edited = model.edited(edit(model, FUSED, CONV))
    want = tiny_sd.diffusion().fingerprint
    with edited.loaded():
        assert model.fingerprint == want != edited.fingerprint
        assert model.edited(edit(model, FUSED, CONV)).fingerprint == edited.fingerprint


def test_a_fingerprint_is_of_what_decides_an_image(model, tmp_path):
    assert model.fingerprint == tiny_sd.diffusion().fingerprint
    assert model.sampled(size=16).fingerprint != model.fingerprint
    different = [
        tiny_sd.diffusion(1),
        tiny_sd.diffusion(0, torch.bfloat16),
        model.sampled(steps=3),
        model.sampled(guidance=3.0),
    ]
    other = tiny_sd.pipeline()
    other.scheduler = type(other.scheduler).from_config(
        other.scheduler.config, prediction_type="v_prediction"
    )
    different.append(Diffusion(other, {"text_encoder": load()}, Sampling(2, 2.0), source="v"))
    assert len({one.fingerprint for one in (model, *different)}) == 6
    model.pipeline.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, requires_safety_checker=False
    )
    same = Diffusion(again, {"text_encoder": load()}, Sampling(2, 2.0), source="elsewhere")
    assert same.fingerprint == model.fingerprint


def test_other_sampling_gives_other_images_from_the_same_weights(model):
    more = model.sampled(steps=3)
    assert not torch.equal(more.generate(PROMPTS), model.generate(PROMPTS))
    assert (model.sampling.steps, more.sampling) == (2, dataclasses.replace(model.sampling, steps=3))
    assert model.sampled(size=32).generate(PROMPTS).shape == (3, 3, 32, 32)
    assert (model.batch, model.sampled(size=32).batch) == (64, 16)


def test_embeddings_stand_for_prompts(model):
    embedded = model.embed(PROMPTS.texts)
    assert embedded.shape == (3, 32, 128)
    assert torch.equal(model.generate(PROMPTS, embeddings=embedded), model.generate(PROMPTS))
    step = edit(model, FUSED)
    assert torch.equal(model.edited(step).embed(PROMPTS.texts), model.edited(step).embed(PROMPTS.texts))
    assert not torch.equal(model.edited(step).embed(PROMPTS.texts), embedded)


def test_the_conditioning_is_the_clips_last_states(model):
    clip = load()
    towers = clip._towers.model
    tokens = clip.tokenize(list(PROMPTS.texts))
    x = towers.token_embedding(tokens) + towers.positional_embedding
    x = towers.ln_final(towers.transformer(x, attn_mask=towers.attn_mask))
    ends = tokens.argmax(dim=-1)
    embedded = model.embed(PROMPTS.texts)
    for row, end in enumerate(ends):  # what stands behind the end is padded otherwise
        torch.testing.assert_close(embedded[row, : end + 1], x[row, : end + 1], rtol=0, atol=1e-4)


def layer_names(clip):
    return {layer.name for layer in clip.layers("tensor")}


def test_restricting_changes_nothing_else(model):
    assert model.clip.fingerprint == load().fingerprint
    assert layer_names(model.edited(edit(model, FUSED)).clip) == layer_names(model.clip)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_pipeline_keeps_full_deltas(dtype):
    model = tiny_sd.diffusion(0, dtype)
    step = edit(model, FUSED, CONV, size=1e-3)
    edited = model.edited(step)
    assert torch.equal(edited.clip.weights[FUSED], model.clip.weights[FUSED] + step.deltas[FUSED])
    assert edited.clip.weights[FUSED].dtype == torch.float32
    now = model.weights("unet")["conv_in.weight"]
    assert now.dtype == edited.weights("unet")["conv_in.weight"].dtype == dtype
    assert torch.equal(edited.weights("unet")["conv_in.weight"], (now.float() + step.deltas[CONV]).to(dtype))
    assert edited.generate(PROMPTS).dtype == torch.uint8


def test_an_edited_pipeline_saved_gives_the_same_images_in_plain_diffusers(model, tmp_path):
    edited = model.edited(edit(model, FUSED, PROJ, CONV))
    with edited.loaded() as pipeline:
        pipeline.save_pretrained(tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in PROMPTS.seeds]
    images = plain(
        list(PROMPTS.texts), generator=noise, num_inference_steps=2, guidance_scale=2.0, output_type="pt"
    ).images
    assert torch.equal((images * 255).round().to(torch.uint8), edited.generate(PROMPTS))


def test_deltas_without_a_component_are_the_first_encoders():
    assert by_component({"a.b": 1, "unet/c": 2, "unet/d": 3, "text_encoder_2/a.b": 4}) == {
        "text_encoder": {"a.b": 1}, "unet": {"c": 2, "d": 3}, "text_encoder_2": {"a.b": 4},
    }  # fmt: skip


def test_a_patch_is_bound_to_the_clip_or_to_the_components_concerned(model):
    assert model.patch_base(edit(model, FUSED, PROJ)) is model.clip
    assert model.patch_base(Edit({}, ())) is model.clip
    step = edit(model, FUSED, CONV)
    base = model.patch_base(step)
    assert list(base.weights) == [FUSED, CONV]
    assert torch.equal(base.weights[FUSED], model.clip.weights[FUSED])
    assert torch.equal(base.weights[CONV], model.weights("unet")["conv_in.weight"])
    again = model.patch_base(edit(model, CONV, FUSED, seed=1)).weights_fingerprint
    assert base.weights_fingerprint == again == tiny_sd.diffusion().patch_base(step).weights_fingerprint
    assert model.patch_base(edit(model, CONV)).weights_fingerprint != base.weights_fingerprint
    assert tiny_sd.diffusion(1).patch_base(step).weights_fingerprint != base.weights_fingerprint
    with pytest.raises(KeyError, match="unet/none: not a parameter of tiny"):
        model.patch_base(Edit({"unet/none": torch.ones(1)}, ()))


def test_both_encoders_of_xl_are_edited(xl):
    images = xl.generate(PROMPTS)
    assert torch.equal(xl.generate(PROMPTS.select([1]))[0], images[1])
    second = f"text_encoder_2/{FUSED.replace('.2.', '.1.')}"
    for key in (FUSED, second):
        assert not torch.equal(xl.edited(edit(xl, key)).generate(PROMPTS), images)
    edited = xl.edited(edit(xl, FUSED, second))
    assert isinstance(edited.clips["text_encoder_2"], Clip)
    assert edited.clips["text_encoder_2"].fingerprint != xl.clips["text_encoder_2"].fingerprint
    assert {key.split("/")[0] for key in edited.changes} == {"text_encoder", "text_encoder_2"}
    assert list(xl.patch_base(edit(xl, second)).weights) == [second]
    assert xl.embed(PROMPTS.texts).shape == (3, 32, 160)


def test_it_says_what_it_is(model):
    assert model.about() == {
        "source": "tiny",
        "fingerprint": model.fingerprint,
        "sampling": {"steps": 2, "guidance": 2.0, "size": None},
        "parameters": sum(
            tensor.numel() for module in model._modules.values() for tensor in module.parameters()
        ),
    }
    observer = model.observe(Run())
    assert type(observer) is model.observer
    assert observer.model is model
