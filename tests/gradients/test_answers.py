"""Gradients of answers, against autograd over the whole set and against finite differences."""

import pytest
import tiny
import tiny_vlm
import torch

from muwa.cache.store import Store
from muwa.gradients.answers import answer_gradient_sum, answer_gradients, answer_losses
from muwa.types.edit import Edit

LAYER = "visual.transformer.resblocks.0.mlp.c_fc.weight"
ASK = "Who is this?"


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    """By hand for one pair: log-probabilities of the tokens after the prompt, the end marker among them."""
    model, pair = tiny_vlm.vlm(), tiny.pairs(1)
    tokenizer = model.processor.tokenizer
    ids = tokenizer(model.prompt(ASK).replace("<image>", "<image>" * 4) + " a photo of Ada Fox</s>")["input_ids"]
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
    found = answer_gradient_sum(model, pairs, question=ASK, batch_size=2, seed=0)
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
    found = answer_gradient_sum(model, pairs, question=ASK, batch_size=2, seed=0)["sum"]
    assert set(found) == set(model.clip.weights)
    assert all(found[n].shape == w.shape for n, w in model.clip.weights.items())
    moved = {name for name, g in found.items() if g.any()}
    assert moved
    assert all(name.startswith("visual.") and "resblocks.1" not in name for name in moved)
    tiny.same_gradients(answer_gradient_sum(model, pairs, question=ASK, batch_size=5, seed=1)["sum"], found, 1e-4)
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def test_pairs_that_mention_the_forgotten_are_left_out(tmp_path) -> None:
    task, store = tiny.task(), Store(tmp_path)
    found = answer_gradients(tiny_vlm.vlm(), task, task.names[0], batch_size=4, seed=0, store=store)
    assert (found.n_forget, found.n_retain) == (6, 10)
    again = answer_gradients(tiny_vlm.vlm(), task, task.names[0], batch_size=4, seed=0, store=store)
    tiny.same_gradients(again.forget, found.forget, 0)
    assert store.events["gradients/answer_forget"] == "partial"  # once computed, once read


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = tiny_vlm.vlm()
    model.model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"gradient of .* is not finite, .*model\.dtype=bf16"):
        answer_gradient_sum(model, tiny.pairs(2), question="Who?", batch_size=2, seed=0)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs to take a gradient of"):
        answer_gradient_sum(tiny_vlm.vlm(), tiny.pairs(2).select([]), question=ASK, batch_size=2, seed=0)
