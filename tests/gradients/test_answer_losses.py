"""Losses, gradients and moments of answers, against plain formulas, hooks and finite differences."""

import pytest
import tiny
import tiny_vlm
import torch

from muwa.data.samples import decode
from muwa.gradients import answer_losses as module
from muwa.gradients.answer_losses import answer_gradient_sum, answer_losses, answer_moment_sums, in_wordings
from muwa.run import Run
from muwa.types.edit import Edit

LAYER = "visual.transformer.resblocks.0.mlp.c_fc.weight"
ASK = "Who is this?"


def gradient_of(model, dialogues, *, loss="log_probability", batch_size=2, seed=0):
    return answer_gradient_sum(model, dialogues, loss=loss, batch_size=batch_size, seed=seed, run=Run())


def moments_of(model, dialogues, loss, batch_size=2):
    return answer_moment_sums(model, dialogues, loss=loss, batch_size=batch_size, run=Run())


def probabilities(model, pair):
    """-log p of each token of the answer to `ASK` for one pair, end marker included; from one forward pass."""
    tokenizer = model.processor.tokenizer
    prompt = model.prompt(ASK).replace("<image>", "<image>" * 4)
    ids = tokenizer(f"{prompt} {pair.captions[0]}</s>")["input_ids"]
    asked = len(tokenizer(prompt)["input_ids"])
    picture = model.processor.image_processor(images=decode(pair.images[0]), return_tensors="pt")
    logits = model.model(input_ids=torch.tensor([ids]), pixel_values=picture["pixel_values"]).logits[0]
    logs = logits.double().log_softmax(-1)
    return torch.stack([-logs[i - 1, ids[i]] for i in range(asked, len(ids))])


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    model, pair = tiny_vlm.vlm(), tiny.pairs(1)
    each = probabilities(model, pair)
    assert len(each) > 2
    found = answer_losses(model, in_wordings(pair, [ASK]), "log_probability")
    torch.testing.assert_close(found, each.mean()[None].float(), rtol=1e-5, atol=1e-6)


def test_the_margin_is_the_log_odds_of_the_whole_answer() -> None:
    model, pair = tiny_vlm.vlm(), tiny.pairs(1)
    p = (-probabilities(model, pair).sum()).exp()
    found = answer_losses(model, in_wordings(pair, [ASK]), "margin")
    torch.testing.assert_close(found, torch.log((1 - p) / p)[None].float(), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_margin_is_that_of_the_plain_formula() -> None:
    """In fp64, by autograd; three tokens, of which the last is no part of the second answer."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 3, 1], [4, 2, 2]])
    in_answer = torch.tensor([[True, True, True], [True, True, False]])
    p = logits.softmax(-1).gather(-1, targets[..., None])[..., 0].where(in_answer, torch.ones(()).double())
    (want,) = torch.autograd.grad(((1 - p.prod(1)) / p.prod(1)).log().sum(), logits)
    found = module.negative_log_odds(logits, targets, in_answer)
    torch.testing.assert_close(found, ((1 - p.prod(1)) / p.prod(1)).log().detach().float())
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, want, rtol=1e-6, atol=1e-9)
    assert not gradient[1, 2].any()


def test_the_margin_does_not_saturate() -> None:
    """Of two tokens, one with a lead of 40: in fp32 its probability is 1, its margin 40, and the slope -1."""
    logits = torch.tensor([[[40.0, 0.0]]], requires_grad=True)
    loss = module.negative_log_odds(logits, torch.tensor([[0]]), torch.tensor([[True]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == pytest.approx(-40)
    assert gradient.flatten().tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize("loss", ["log_probability", "margin"])
def test_a_step_along_the_gradient_raises_the_loss_by_its_length(loss) -> None:
    model, dialogues = tiny_vlm.vlm(), in_wordings(tiny.pairs(5), [ASK])
    found = gradient_of(model, dialogues, loss=loss)
    gradient = found["sum"][LAYER]
    assert found["n"] == 5
    size = 1e-3
    with torch.no_grad():
        losses = []
        for sign in (-1, 1):
            edited = model.edited(Edit({LAYER: sign * size * gradient / gradient.norm()}, ()))
            with edited.loaded():
                losses.append(answer_losses(edited, dialogues, loss).sum().item())
    assert (losses[1] - losses[0]) / (2 * size) == pytest.approx(gradient.norm().item(), rel=0.02)


def test_wordings_are_asked_about_every_image() -> None:
    model, pairs, wordings = tiny_vlm.vlm(), tiny.pairs(3), tiny_vlm.WORDINGS["identity"]
    both = in_wordings(pairs, wordings)
    assert both.questions == (wordings[0],) * 3 + (wordings[1],) * 3
    assert both.pairs.keys == pairs.keys * 2
    found = gradient_of(model, both)
    each = [gradient_of(model, in_wordings(pairs, [text]))["sum"] for text in wordings]
    assert found["n"] == 6
    tiny.same_gradients(found["sum"], {name: g + each[1][name] for name, g in each[0].items()}, 1e-4)


def test_what_the_model_does_not_read_has_no_gradient_and_batches_do_not_matter() -> None:
    model, dialogues = tiny_vlm.vlm(), in_wordings(tiny.pairs(5), [ASK])
    found = gradient_of(model, dialogues)["sum"]
    assert set(found) == set(model.clip.weights)
    assert all(found[n].shape == w.shape for n, w in model.clip.weights.items())
    moved = {name for name, g in found.items() if g.any()}
    assert moved
    assert all(name.startswith("visual.") and "resblocks.1" not in name for name in moved)
    tiny.same_gradients(gradient_of(model, dialogues, batch_size=5, seed=1)["sum"], found, 1e-4)
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def hooked(model, dialogues, loss):
    """Module name -> (sum of x x^T, sum of d d^T) of every linear map of the tower that is read, by hooks."""
    sums: dict[str, list[torch.Tensor]] = {}
    tower = {n: m for n, m in model.model.named_modules() if "vision_tower" in n and "layers.0" in n}
    handles = []
    for name, linear in tower.items():
        if isinstance(linear, torch.nn.Linear):
            sums[name] = [torch.zeros(linear.in_features, linear.in_features),
                          torch.zeros(linear.out_features, linear.out_features)]  # fmt: skip

            def hook(_module, args, out, name=name):
                x = args[0].detach().flatten(0, -2)
                sums[name][0] += x.T @ x

                def see(d):
                    d = d.flatten(0, -2)
                    sums[name][1] += d.T @ d

                out.register_hook(see)

            handles.append(linear.register_forward_hook(hook))
    for parameter in model.parameters.values():
        parameter.requires_grad_(True)
    try:
        for i in range(len(dialogues)):
            with torch.enable_grad(), model.loaded():
                answer_losses(model, dialogues.select([i]), loss).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters.values():
            parameter.requires_grad_(False).grad = None
    return sums


def test_moments_are_those_that_hooks_see() -> None:
    """One pair at a time against batches of two, of an edited model."""
    torch.manual_seed(0)
    plain, dialogues = tiny_vlm.vlm(), in_wordings(tiny.pairs(5), [ASK])
    model = plain.edited(Edit({LAYER: 0.1 * torch.randn(plain.clip.weights[LAYER].shape)}, ()))
    want = hooked(model, dialogues, "margin")
    assert len(want) == 6  # q, k, v, out, fc1, fc2
    inputs, outputs = moments_of(model, dialogues, None), moments_of(model, dialogues, "margin")
    for name, (c, s) in want.items():
        torch.testing.assert_close(inputs[f"{name}.weight"], c, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs[f"{name}.weight"], s, rtol=1e-4, atol=1e-4 * s.max().item())
    patches = next(name for name in inputs if name.endswith("patch_embedding.weight"))
    assert set(inputs) == {*(f"{name}.weight" for name in want), patches}
    pixels = model.inputs(module.Questions(dialogues.questions, tuple((i,) for i in dialogues.pairs.images)))
    windows = torch.nn.functional.unfold(pixels["pixel_values"], 16, stride=16).mT.flatten(0, 1)
    torch.testing.assert_close(inputs[patches], windows.T @ windows, rtol=1e-4, atol=1e-2)
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def test_a_sum_that_is_not_finite_is_refused() -> None:
    model, dialogues = tiny_vlm.vlm(), in_wordings(tiny.pairs(2), ["Who?"])
    model.model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"the gradient of .* is not finite, .*model\.dtype=bf16"):
        gradient_of(model, dialogues)
    with pytest.raises(ValueError, match=r"the output moment of .* is not finite, .*model\.dtype=bf16"):
        moments_of(model, dialogues, "margin")


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs to take a gradient of"):
        gradient_of(tiny_vlm.vlm(), in_wordings(tiny.pairs(2).select([]), [ASK]))
