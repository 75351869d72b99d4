"""Gradients of answers, against autograd over the whole set and against finite differences."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_vlm
import torch

from muwa.cache.store import Store
from muwa.gradients.answers import DESCRIBE, IDENTIFY, AnswerGradients, answer_gradient_sum, answer_losses
from muwa.gradients.base import Recipe
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.edit import Edit

LAYER = "visual.transformer.resblocks.0.mlp.c_fc.weight"
ASK = "Who is this?"
RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    """By hand for one pair: log-probabilities of the tokens after the prompt, the end marker among them."""
    model, pair = tiny_vlm.vlm(), tiny.pairs(1)
    tokenizer = model.processor.tokenizer
    ids = tokenizer(model.prompt(ASK).replace("<image>", "<image>" * 4) + " a photo of Ada Fox</s>")[
        "input_ids"
    ]
    asked = len(tokenizer(model.prompt(ASK).replace("<image>", "<image>" * 4))["input_ids"])
    pixels = model.processor.image_processor(images=tiny_picture(pair), return_tensors="pt")["pixel_values"]
    logits = model.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0].log_softmax(-1)
    said = torch.stack([-logits[i - 1, ids[i]] for i in range(asked, len(ids))])
    torch.testing.assert_close(answer_losses(model, pair, ASK), said.mean()[None], rtol=1e-5, atol=1e-6)


def tiny_picture(pair):
    from muwa.data.samples import decode

    return decode(pair.images[0])


def test_a_step_along_it_raises_the_loss_by_its_length() -> None:
    model, pairs = tiny_vlm.vlm(), tiny.pairs(5)
    found = answer_gradient_sum(model, pairs, question=ASK, batch_size=2, seed=0, run=Run())
    gradient = found["sum"][LAYER]
    assert found["n"] == 5
    size = 1e-3
    with torch.no_grad():
        losses = []
        for sign in (-1, 1):
            edited = model.edited(Edit({LAYER: sign * size * gradient / gradient.norm()}, ()))
            with edited.loaded():
                losses.append(answer_losses(edited, pairs, ASK).sum().item())
    assert (losses[1] - losses[0]) / (2 * size) == pytest.approx(gradient.norm().item(), rel=0.02)


def test_what_the_model_does_not_read_has_no_gradient_and_batches_do_not_matter() -> None:
    model, pairs = tiny_vlm.vlm(), tiny.pairs(5)
    found = answer_gradient_sum(model, pairs, question=ASK, batch_size=2, seed=0, run=Run())["sum"]
    assert set(found) == set(model.clip.weights)
    assert all(found[n].shape == w.shape for n, w in model.clip.weights.items())
    moved = {name for name, g in found.items() if g.any()}
    assert moved
    assert all(name.startswith("visual.") and "resblocks.1" not in name for name in moved)
    tiny.same_gradients(
        answer_gradient_sum(model, pairs, question=ASK, batch_size=5, seed=1, run=Run())["sum"], found, 1e-4
    )
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def test_pairs_that_mention_the_forgotten_are_left_out(tmp_path) -> None:
    model, task, store = tiny_vlm.vlm(), tiny.task(), Store(tmp_path)
    first, again = (AnswerGradients()(model, task, task.names[0], RECIPE, Run(store)) for _ in range(2))
    assert list(first) == list(model.clips) == ["vision_tower"]
    gradients = first["vision_tower"]
    assert (gradients.n_forget, gradients.n_retain) == (6, 10)
    tiny.same_gradients(again["vision_tower"].forget, gradients.forget, 0)
    assert store.events["gradients/answer_forget"] == "partial"  # once computed, once read
    others = task.retain.select([i for i in range(12) if i not in task.mentions])
    want = answer_gradient_sum(model, others, question=DESCRIBE, batch_size=5, seed=1, run=Run())["sum"]
    tiny.same_gradients(gradients.retain, {name: tensor / 10 for name, tensor in want.items()}, 1e-4)
    named = task.forget[task.names[0]].with_caption(task.names[0])
    want = answer_gradient_sum(model, named, question=IDENTIFY, batch_size=6, seed=1, run=Run())["sum"]
    tiny.same_gradients(gradients.forget, {name: tensor / 6 for name, tensor in want.items()}, 1e-4)


def test_micro_batches_are_the_batches_of_answers() -> None:
    """They change the gradient by rounding only, and an origin names what was really computed."""
    model, task = tiny_vlm.vlm(), tiny.task()
    small = replace(RECIPE, micro_batch_size=2)
    one, two = (AnswerGradients()(model, task, task.names[0], recipe, Run()) for recipe in (RECIPE, small))
    tiny.same_gradients(two["vision_tower"].forget, one["vision_tower"].forget, 1e-4)
    assert [each["vision_tower"].origin["batch_size"] for each in (one, two)] == ["4", "2"]


def test_worker_ranks_compute_nothing(tmp_path) -> None:
    run, task = Run(Store(tmp_path), distributed=Distributed(1, 2)), tiny.task()
    assert AnswerGradients()(tiny_vlm.vlm(), task, task.names[0], RECIPE, run) is None
    assert not list(tmp_path.iterdir())


def test_only_a_model_that_answers_has_gradients_of_answers() -> None:
    AnswerGradients().check(tiny_vlm.vlm(), RECIPE, Run())
    with pytest.raises(
        ValueError, match=r"gradient_source=answer: got a CLIP .*\(tiny\), want a vision-language model"
    ):
        AnswerGradients().check(tiny.clip(), RECIPE, Run())
    with pytest.raises(
        ValueError,
        match="gradients=g: a file holds gradients of a CLIP, gradient_source=answer takes those of answers",
    ):
        AnswerGradients().check(tiny_vlm.vlm(), RECIPE, Run(gradient_file=Path("g")))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = tiny_vlm.vlm()
    model.model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"gradient of .* is not finite, .*model\.dtype=bf16"):
        answer_gradient_sum(model, tiny.pairs(2), question="Who?", batch_size=2, seed=0, run=Run())


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs to take a gradient of"):
        answer_gradient_sum(
            tiny_vlm.vlm(), tiny.pairs(2).select([]), question=ASK, batch_size=2, seed=0, run=Run()
        )
