"""The gradient sources of answers: what is asked, what is left out, what is cached."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_vlm
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.answer_losses import Dialogues, answer_gradient_sum, answer_moment_sums, in_wordings
from muwa.gradients.answers import DESCRIBE
from muwa.gradients.base import Recipe
from muwa.gradients.towers import moments_by_clip
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.data import Classes

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")
ANSWER = part("gradient_source=answer")
MARGIN = part("gradient_source=margin", wordings=tiny_vlm.WORDINGS)
IDENTIFY = "What is the name of the person in this image?"


def mean_of(model, dialogues, loss):
    found = answer_gradient_sum(model, dialogues, loss=loss, batch_size=5, seed=1, run=Run())
    return {name: tensor / found["n"] for name, tensor in found["sum"].items()}


def others_of(task):
    return task.retain.select([i for i in range(len(task.retain)) if i not in task.mentions])


def named(task, pairs):
    """What `retained: named` asks, from the captions of the tiny pairs: "a photo of NAME"."""
    known = [*tiny.NAMES, *task.probe.utility.classes.names]
    answers = [next((name for name in known if name in caption), caption) for caption in pairs.captions]
    asked = dict.fromkeys(tiny.NAMES, "Who is this?")
    questions = [asked.get(answer, "What is this?" if answer in known else DESCRIBE) for answer in answers]
    return Dialogues(replace(pairs, captions=tuple(answers)), tuple(questions))


def test_pairs_that_mention_the_forgotten_are_left_out(tmp_path) -> None:
    model, task, store = tiny_vlm.vlm(), tiny.task(), Store(tmp_path)
    first, again = (ANSWER(model, task, task.names[0], RECIPE, Run(store)) for _ in range(2))
    assert list(first) == list(model.clips) == ["vision_tower"]
    gradients = first["vision_tower"]
    assert (gradients.n_forget, gradients.n_retain) == (6, 10)
    tiny.same_gradients(again["vision_tower"].forget, gradients.forget, 0)
    assert store.events["gradients/answer_forget"] == "partial"  # once computed, once read
    want = mean_of(model, in_wordings(others_of(task), [DESCRIBE]), "log_probability")
    tiny.same_gradients(gradients.retain, want, 1e-4)
    forgotten = task.forget[task.names[0]].with_caption(task.names[0])
    want = mean_of(model, in_wordings(forgotten, [IDENTIFY]), "log_probability")
    tiny.same_gradients(gradients.forget, want, 1e-4)


def test_without_a_retain_gradient_no_retained_answer_is_differentiated(tmp_path) -> None:
    model, task, store = tiny_vlm.vlm(), tiny.task(), Store(tmp_path)
    both = ANSWER(model, task, task.names[0], RECIPE, Run())["vision_tower"]
    alone = replace(RECIPE, retain_gradient=False)
    found = ANSWER(model, task, task.names[0], alone, Run(store))["vision_tower"]
    tiny.same_gradients(found.forget, both.forget, 0)
    assert (found.retain, found.n_forget, found.n_retain) == ({}, 6, 0)
    assert list(store.events) == ["gradients/answer_forget"]
    assert found.fingerprint == both.without_retain().fingerprint


@pytest.mark.parametrize("both", [True, False])
def test_a_retain_set_of_which_nothing_is_left_is_refused(both) -> None:
    task = replace(tiny.task(), mentions=tuple(range(len(tiny.task().retain))))
    recipe = replace(RECIPE, retain_gradient=both)
    with pytest.raises(ValueError, match="Ada Fox: no retain pair is left"):
        ANSWER(tiny_vlm.vlm(), task, task.names[0], recipe, Run())


def test_the_margin_is_asked_for_in_all_wordings_of_the_kind() -> None:
    model, task = tiny_vlm.vlm(), tiny.task()
    forgotten = task.forget[task.names[0]].with_caption(task.names[0])
    for kind in ("identity", "object"):
        gradients = MARGIN(model, replace(task, kind=kind), task.names[0], RECIPE, Run())["vision_tower"]
        want = mean_of(model, in_wordings(forgotten, tiny_vlm.WORDINGS[kind]), "margin")
        tiny.same_gradients(gradients.forget, want, 1e-4)
        assert (gradients.n_forget, gradients.n_retain) == (6, 10)


def test_a_retained_image_is_named_or_else_described() -> None:
    """Captions with one known name, with two, with none, and with a part of a name."""
    task = tiny.task()
    classes = Classes(("red star", "ball"), ("{}.",))
    probe = replace(task.probe, utility=replace(task.probe.utility, classes=classes))
    one, two = tiny.NAMES[:2]
    captions = (f"a photo of {one.upper()}!", f"{one} and {two}", "a red_star, at noon", "balls on stage")
    pairs = replace(tiny.pairs(4), captions=captions)
    found = MARGIN._retained(replace(task, probe=probe), pairs)
    assert found.pairs.captions == (one, captions[1], "red star", captions[3])
    assert found.questions == ("Who is this?", DESCRIBE, "What is this?", DESCRIBE)
    assert found.pairs.images == pairs.images


@pytest.mark.parametrize("source", [ANSWER, MARGIN])
def test_moments_leave_out_mentions_exactly_and_share_the_rest(tmp_path, source) -> None:
    model, task, store = tiny_vlm.vlm(), tiny.task(), Store(tmp_path)
    assert task.mentions
    moments = source.moments(model, task, RECIPE, Run(store), outputs=True)["vision_tower"]
    others = others_of(task)
    asked = named(task, others) if source is MARGIN else in_wordings(others, [DESCRIBE])
    c, s = (
        answer_moment_sums(model, asked, loss=loss, batch_size=3, run=Run()) for loss in (None, source.loss)
    )
    want = moments_by_clip(model.clip, model.tower, c, s)
    assert set(moments["inputs"]) == set(want["inputs"])
    assert len(moments["inputs"]) == len(moments["outputs"]) == 5  # of block 0, and the patch embedding
    for side in ("inputs", "outputs"):
        for name, moment in want[side].items():
            torch.testing.assert_close(
                moments[side][name], moment, rtol=1e-3, atol=1e-4 * moment.abs().max().item()
            )
    unedited = replace(task, mentions=())
    source.moments(model, unedited, RECIPE, Run(store), outputs=True)  # both sums are read
    assert store.events["moments/answer_outputs"] == "partial"


def test_without_outputs_only_inputs_are_summed(tmp_path) -> None:
    store = Store(tmp_path)
    moments = MARGIN.moments(tiny_vlm.vlm(), tiny.task(), RECIPE, Run(store), outputs=False)["vision_tower"]
    assert moments["inputs"]
    assert not moments["outputs"]
    assert "moments/answer_outputs" not in store.events


def test_micro_batches_are_the_batches_of_answers() -> None:
    """They change the gradient by rounding only, and an origin names what was really computed."""
    model, task = tiny_vlm.vlm(), tiny.task()
    small = replace(RECIPE, micro_batch_size=2)
    one, two = (ANSWER(model, task, task.names[0], recipe, Run()) for recipe in (RECIPE, small))
    tiny.same_gradients(two["vision_tower"].forget, one["vision_tower"].forget, 1e-4)
    assert [each["vision_tower"].origin["batch_size"] for each in (one, two)] == ["4", "2"]


def test_worker_ranks_compute_nothing(tmp_path) -> None:
    run, task = Run(Store(tmp_path), distributed=Distributed(1, 2)), tiny.task()
    assert ANSWER(tiny_vlm.vlm(), task, task.names[0], RECIPE, run) is None
    assert ANSWER.moments(tiny_vlm.vlm(), task, RECIPE, run, outputs=True) is None
    assert not list(tmp_path.iterdir())


def test_only_a_model_that_answers_has_gradients_of_answers() -> None:
    for source in (ANSWER, MARGIN):
        source.check(tiny_vlm.vlm(), RECIPE, Run())
        with pytest.raises(
            ValueError, match=r"gradient_source=answer: got a CLIP .*\(tiny\), want a vision-language model"
        ):
            source.check(tiny.clip(), RECIPE, Run())
    with pytest.raises(
        ValueError,
        match="gradients=g: a file holds gradients of a CLIP, gradient_source=answer takes those of answers",
    ):
        ANSWER.check(tiny_vlm.vlm(), RECIPE, Run(gradient_file=Path("g")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "odds"}, "gradient_source.loss: got 'odds', want one of log_probability, margin"),
        ({"retained": "asked"}, "gradient_source.retained: got 'asked', want one of described, named"),
        ({"wordings": {"identity": ["Who?"]}},
         "gradient_source.wordings: got identity, want questions of kind object too"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MARGIN, **changed).check(tiny_vlm.vlm(), RECIPE, Run())
