"""A vision-language model: which layers it reads, an edit of its tower, its answers."""

import pytest
import tiny
import tiny_vlm
import torch

from muwa.models.vlm.model import TOWER, Vlm
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.models.vlm.question_answering import answered as answered_by
from muwa.patch import names
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.questions import Questions

LAYER = "visual.transformer.resblocks.0.attn.in_proj_weight"


def answered(model: Vlm, questions: Questions) -> torch.Tensor:
    return answered_by(model, questions, run=Run())


def asked(n: int = 5) -> Questions:
    return Questions(("Who is this?", "Name it.", "What is this person called?", "a", "b c d")[:n],
                     tuple((tiny.png(100 * i),) for i in range(n)))  # fmt: skip


def edit(size: float = 1.0) -> Edit:
    shape = tiny.clip().weights[LAYER].shape
    return Edit({LAYER: size * torch.randn(shape, generator=torch.Generator().manual_seed(0))}, ())


def test_only_layers_before_the_one_it_reads_can_be_edited() -> None:
    """LLaVA reads the last layer but one: of two blocks the first, without the second, the last norm, the projection."""
    second = [layer.name for layer in tiny_vlm.vlm().clip.layers("tensor")]
    assert LAYER in second
    assert not any(
        "resblocks.1" in name or "ln_post" in name or name.split(".")[-1] == "proj" for name in second
    )
    assert all(name.startswith("visual.") for name in second)
    unread = tiny_vlm.vlm().unread
    assert {"visual.proj", "visual.transformer.resblocks.1.attn.in_proj_weight"} <= set(unread)
    assert not set(unread) & set(second)
    last = [layer.name for layer in tiny_vlm.vlm(layer=-1).clip.layers("tensor")]
    assert any("resblocks.1" in name for name in last)


def test_an_edit_reaches_the_tower_and_leaves_the_model_as_it_was() -> None:
    model = tiny_vlm.vlm()
    before = answered(model, asked())
    edited = model.edited(edit())
    q, k, v = edit().deltas[LAYER].chunk(3)
    for part, delta in zip("qkv", (q, k, v), strict=True):
        name = next(n for n in model.tower if n.endswith(f"layers.0.self_attn.{part}_proj.weight"))
        torch.testing.assert_close(edited.tower[name], model.tower[name] + delta)
    assert set(edited.changes) <= set(model.tower)
    assert len(edited.changes) == 3  # nothing else is copied
    assert not torch.equal(answered(edited, asked()), before)
    assert torch.equal(answered(model, asked()), before)
    torch.testing.assert_close(edited.clip.weights[LAYER], model.clip.weights[LAYER] + edit().deltas[LAYER])
    assert edited.fingerprint != model.fingerprint == tiny_vlm.vlm().fingerprint


def test_an_answer_is_that_of_plain_transformers_with_the_edited_weights() -> None:
    plain, processor = tiny_vlm.parts()
    changed = names.convert_to_target(edit().deltas, dict(plain.named_parameters()))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in changed:
                parameter += changed[name]
    edited = Vlm(plain, processor, tiny.clip().edited(edit()), max_new_tokens=6, source="by hand")
    assert torch.equal(answered(edited, asked()), answered(tiny_vlm.vlm().edited(edit()), asked()))


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch() -> None:
    model = tiny_vlm.vlm()
    together = answered(model, asked())
    alone = torch.cat([answered(model, asked().select([i])) for i in range(5)])
    assert torch.equal(together, alone)
    assert together.shape == (5, 6)
    assert len(model.words(together)) == 5


def test_prompts_follow_the_processors_template_or_llavas() -> None:
    assert tiny_vlm.vlm().prompt("Who is this?") == "USER: <image>\nWho is this? ASSISTANT:"
    assert tiny_vlm.vlm(chat=None).prompt("Who is this?") == "USER: <image>\nWho is this? ASSISTANT:"
    assert tiny_vlm.vlm().prompt("Both?", 2) == "USER: <image>\n<image>\nBoth? ASSISTANT:"


def test_several_images_are_shown_at_once() -> None:
    both = Questions(("Who?",), ((tiny.png(0), tiny.png(100)),))
    assert answered(tiny_vlm.vlm(), both).shape == (1, 6)


def test_a_question_without_an_image_is_asked_as_text_and_no_edit_of_the_tower_changes_its_answer() -> None:
    """The language model alone answers; it stands between questions with images, in any order."""
    model = tiny_vlm.vlm()
    text = "Who is Ada Fox?"
    alone = model.model.generate(
        **model.processor.tokenizer(f"USER: {text} ASSISTANT:", return_tensors="pt"),
        max_new_tokens=6, do_sample=False, pad_token_id=model.processor.tokenizer.eos_token_id,
    )  # fmt: skip
    mixed = Questions(("Who is this?", text, "Name it."), ((tiny.png(0),), (), (tiny.png(1),)))
    before, after = answered(model, mixed), answered(model.edited(edit(3.0)), mixed)
    said = model.processor.tokenizer.batch_decode(alone[:, -6:], skip_special_tokens=True)[0].strip()
    assert model.words(before)[1] == said
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.equal(before[[0, 2]], answered(model, mixed.select([0, 2])))


def test_another_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.clip: tiny is not the vision tower of here: .* differs"):
        Vlm(*tiny_vlm.parts(), tiny.clip(seed=1), max_new_tokens=6, source="here")


def test_a_half_precision_tower_is_its_clips() -> None:
    model, processor = tiny_vlm.parts()
    half = Vlm(model.half().float(), processor, tiny.clip(), max_new_tokens=2, source="half")
    assert half.clips[TOWER].layers("tensor")


def test_it_says_what_it_is_and_what_a_patch_of_it_is_bound_to() -> None:
    model = tiny_vlm.vlm()
    assert model.about() == {
        "source": "tiny",
        "fingerprint": model.fingerprint,
        "max_new_tokens": 6,
        "parameters": sum(tensor.numel() for tensor in model.model.parameters()),
    }
    assert model.patch_base(edit()) is model.clip
    assert model.clip.weights_fingerprint == tiny.clip().weights_fingerprint
    assert list(model.clips) == ["vision_tower"]
    assert type(model.observe(Run())) is model.observer is QuestionAnswering
