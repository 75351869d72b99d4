"""Gradients and moments of prompt embeddings, against finite differences, autograd and hooks."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_sd
import torch
from torch import nn

from muwa.cache.store import Store
from muwa.data.prompts import retain_prompts
from muwa.gradients.base import Recipe
from muwa.gradients.prompts import PromptGradients, prompt_gradient_sums, prompt_moment_sums
from muwa.models.diffusion.model import Diffusion
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.edit import Edit

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")
C_PROJ, FUSED = "transformer.resblocks.0.mlp.c_proj.weight", "transformer.resblocks.1.attn.in_proj_weight"
PROMPTS = ("Ada Fox", "a photo of Ada Fox")
STAND_INS = (("Bo Hill", "a photo of Bo Hill"), ("Cy Reed", "a photo of Cy Reed"))
MEAN = PromptGradients(anchor=None, stand_ins=3)


@functools.cache
def pipeline() -> Diffusion:
    return tiny_sd.diffusion()


@functools.cache
def xl() -> Diffusion:
    return tiny_sd.xl()


def read(model, prompts):
    """What the UNet reads, prompt by prompt, by `encode_prompt` alone: (n, d) fp64."""
    rows = []
    with model.loaded() as loaded, torch.no_grad():
        for prompt in prompts:
            found = loaded.encode_prompt(
                prompt=[prompt], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            rows.append(torch.cat([x.flatten() for x in found if x is not None]).double())
    return torch.stack(rows)


def distance(model, unedited, prompts=PROMPTS, stand_ins=STAND_INS):
    """The sum over prompts of the squared distance to the mean of the stand-ins' prompts before the edit."""
    target = torch.stack([read(unedited, one) for one in stand_ins]).mean(0)
    return (read(model, prompts) - target).square().sum().item()


@pytest.mark.parametrize(("model", "encoder", "name", "prefix"), [
    (pipeline, "text_encoder", C_PROJ, ""),
    (pipeline, "text_encoder", FUSED, ""),
    (xl, "text_encoder", C_PROJ, ""),
    (xl, "text_encoder_2", C_PROJ, "text_encoder_2/"),
    (xl, "text_encoder_2", "text_projection", "text_encoder_2/"),
])  # fmt: skip
def test_a_step_along_the_gradient_moves_the_name_towards_its_stand_ins_by_its_length(
    model, encoder, name, prefix
) -> None:
    unedited = model()
    gradient = prompt_gradient_sums(unedited, (PROMPTS,), STAND_INS, batch_size=1, run=Run())[encoder][name]
    size = 1e-2
    after = [
        distance(
            unedited.edited(Edit({prefix + name: sign * size * gradient / gradient.norm()}, ())), unedited
        )
        for sign in (1, -1)
    ]
    assert after[0] < distance(unedited, unedited) < after[1]
    assert (after[1] - after[0]) / (2 * size) == pytest.approx(gradient.norm().item(), rel=0.02)


def test_batches_do_not_matter_and_nothing_of_the_pass_is_left() -> None:
    small, large = (
        prompt_gradient_sums(pipeline(), (PROMPTS, STAND_INS[0]), STAND_INS, batch_size=n, run=Run())
        for n in (1, 3)
    )
    for name, gradient in small["text_encoder"].items():
        torch.testing.assert_close(large["text_encoder"][name], gradient, rtol=1e-4, atol=1e-4)
    assert not any(
        p.requires_grad or p.grad is not None for p in pipeline().pipeline.text_encoder.parameters()
    )


def test_an_edited_pipelines_gradients_and_moments_are_those_of_its_own_weights() -> None:
    delta = 0.2 * torch.randn(
        pipeline().clip.weights[C_PROJ].shape, generator=torch.Generator().manual_seed(0)
    )
    edited = pipeline().edited(Edit({C_PROJ: delta}, ()))
    found, of_base = (
        prompt_gradient_sums(one, (PROMPTS,), STAND_INS, batch_size=2, run=Run())["text_encoder"][FUSED]
        for one in (edited, pipeline())
    )
    assert not torch.allclose(found, of_base, rtol=0.1)
    sums, base = (
        prompt_moment_sums(one, PROMPTS, outputs=False, seed=0, batch_size=2, run=Run())["text_encoder"][
            "inputs"
        ]
        for one in (edited, pipeline())
    )
    assert list(sums) == list(base)
    first, later = "encoder.layers.0.mlp.fc2.weight", "encoder.layers.1.mlp.fc1.weight"
    torch.testing.assert_close(sums[first], base[first])  # before the edited weight
    assert not torch.allclose(sums[later], base[later], rtol=0.1)


@pytest.mark.parametrize(("model", "encoders"), [(pipeline, 1), (xl, 2)])
def test_moments_are_those_that_hooks_see_at_every_position_of_the_retained_prompts(model, encoders) -> None:
    found = MEAN.moments(model(), tiny.task(), RECIPE, Run(), outputs=True)
    prompts, seen, handles = retain_prompts(tiny.task()), {}, []

    def add(key, x):
        x = x.detach().flatten(0, -2).double()
        seen[key] = seen.get(key, 0) + x.T @ x

    modules = [getattr(model().pipeline, encoder) for encoder in found]
    try:
        for encoder, module in zip(found, modules, strict=True):
            module.requires_grad_(True)
            for name, linear in module.named_modules():
                if isinstance(linear, nn.Linear):
                    key = encoder, name.removeprefix("text_model.")
                    handles += [
                        linear.register_forward_pre_hook(lambda m, args, k=key: add((*k, 0), args[0])),
                        linear.register_full_backward_hook(lambda m, i, o, k=key: add((*k, 1), o[0])),
                    ]
        generator = torch.Generator().manual_seed(RECIPE.seed)
        for start in range(0, len(prompts), 4):
            embedded = model().pipeline.encode_prompt(
                prompt=list(prompts[start : start + 4]), device="cpu", num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )  # fmt: skip
            rows = torch.cat([x.flatten(1) for x in embedded if x is not None], 1)
            (rows * torch.randn(rows.shape, generator=generator)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            module.requires_grad_(False)
            module.zero_grad(set_to_none=True)
    assert len(found) == encoders
    for encoder, moments in found.items():
        blocks = [f"encoder.layers.1.self_attn.{part}_proj" for part in "qkv"]
        mlp = "encoder.layers.0.mlp.fc2"
        same = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3, check_dtype=False)
        same(moments["inputs"][C_PROJ], seen[encoder, mlp, 0])
        same(moments["outputs"][C_PROJ], seen[encoder, mlp, 1])
        same(moments["inputs"][FUSED], seen[encoder, blocks[2], 0])
        same(moments["outputs"][FUSED], torch.block_diag(*(seen[encoder, one, 1] for one in blocks)))
    assert MEAN.moments(model(), tiny.task(), RECIPE, Run(), outputs=False)["text_encoder"]["outputs"] == {}


def test_the_gradients_are_means_over_prompts_and_the_stand_ins_are_spread_over_the_retained_names() -> None:
    (found,) = MEAN(pipeline(), tiny.task(), "Ada Fox", RECIPE, Run()).values()
    # three of the seven others: places 0, 2 and 4
    stand_ins = [(name, f"a photo of {name}") for name in ("Bo Hill", "Di Moss", "Flo Wren")]
    total = prompt_gradient_sums(pipeline(), (PROMPTS,), stand_ins, batch_size=4, run=Run())["text_encoder"]
    torch.testing.assert_close(found.forget[C_PROJ], total[C_PROJ] / 2)
    others = [(name, f"a photo of {name}") for name in tiny.NAMES[1:]]
    total = prompt_gradient_sums(pipeline(), others, stand_ins, batch_size=4, run=Run())["text_encoder"]
    torch.testing.assert_close(found.retain[FUSED], total[FUSED] / 14)
    assert (found.n_forget, found.n_retain) == (2, 14)


def test_an_anchor_stands_in_and_changes_the_origin(tmp_path: Path) -> None:
    run = Run(Store(tmp_path))
    anchored = PromptGradients("a person", 3)(pipeline(), tiny.task(), "Ada Fox", RECIPE, run)["text_encoder"]
    stand_in = (("a person", "a photo of a person"),)
    total = prompt_gradient_sums(pipeline(), (PROMPTS,), stand_in, batch_size=4, run=Run())["text_encoder"]
    torch.testing.assert_close(anchored.forget[C_PROJ], total[C_PROJ] / 2)
    mean = MEAN(pipeline(), tiny.task(), "Ada Fox", RECIPE, run)["text_encoder"]
    again = MEAN(pipeline(), tiny.task(), "Ada Fox", RECIPE, run)["text_encoder"]
    assert mean.fingerprint == again.fingerprint != anchored.fingerprint
    assert torch.equal(mean.forget[C_PROJ], again.forget[C_PROJ])


def test_without_a_retain_gradient_the_retained_prompts_are_not_differentiated(tmp_path: Path) -> None:
    store = Store(tmp_path)
    both = MEAN(pipeline(), tiny.task(), "Ada Fox", RECIPE, Run())["text_encoder"]
    alone = replace(RECIPE, retain_gradient=False)
    found = MEAN(pipeline(), tiny.task(), "Ada Fox", alone, Run(store))["text_encoder"]
    tiny.same_gradients(found.forget, both.forget, 0)
    assert (found.retain, found.n_forget, found.n_retain) == ({}, both.n_forget, 0)
    assert list(store.events) == ["gradients/prompts_forget"]
    assert found.fingerprint == both.without_retain().fingerprint


def test_the_seed_of_the_moments_changes_the_origin() -> None:
    """It draws the targets of the moments at the outputs, so whitened gradients depend on it."""
    one, other = (
        MEAN(pipeline(), tiny.task(), "Ada Fox", replace(RECIPE, seed=seed), Run())["text_encoder"]
        for seed in (0, 1)
    )
    assert one.fingerprint != other.fingerprint


def test_a_worker_rank_gets_none() -> None:
    worker = Run(distributed=Distributed(1, 2))
    assert MEAN(pipeline(), tiny.task(), "Ada Fox", RECIPE, worker) is None
    assert MEAN.moments(pipeline(), tiny.task(), RECIPE, worker, outputs=False) is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_source=prompts"):
        MEAN.check(tiny.clip(), RECIPE, Run())
    with pytest.raises(ValueError, match="gradient_source.stand_ins: got 0, want at least 1"):
        PromptGradients(None, 0).check(pipeline(), RECIPE, Run())
    with pytest.raises(ValueError, match="gradients=here: a file holds gradients of a CLIP"):
        MEAN.check(pipeline(), RECIPE, Run(gradient_file=Path("here")))
    with pytest.raises(ValueError, match="gradient_source.anchor: got 'Ada Fox', which is to be forgotten"):
        PromptGradients("Ada Fox", 3)(pipeline(), tiny.task(), "Ada Fox", RECIPE, Run())
    alone = replace(tiny.task(), probe=replace(tiny.task().probe, retain=tiny.pictures([0])))
    with pytest.raises(ValueError, match="the task has no names to retain"):
        MEAN(pipeline(), alone, "Ada Fox", RECIPE, Run())
