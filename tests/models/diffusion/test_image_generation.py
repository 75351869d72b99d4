"""Each image is generated once; what is recognised in it; the report's examples."""

from dataclasses import replace

import painter
import pytest
import tiny_sd
import torch

from muwa.cache.store import Store
from muwa.models.diffusion.image_generation import ImageGenerator, example_requests, generated, prompts_of
from muwa.run import Run
from muwa.types.image_requests import ImageRequest, Prompts

PROMPTS = Prompts(("a", "a", "b"), (0, 0, 1))


def test_each_image_is_generated_once(tmp_path) -> None:
    """Two of the three prompts are one image."""
    store = Store(tmp_path)
    first = ImageGenerator(tiny_sd.diffusion(), Run(store)).generate(PROMPTS)
    assert store.events["images"] == "partial"
    again = Store(tmp_path)
    assert torch.equal(ImageGenerator(tiny_sd.diffusion(), Run(again)).generate(PROMPTS), first)
    assert again.events["images"] == "hit"
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert torch.equal(ImageGenerator(tiny_sd.diffusion(), Run()).generate(PROMPTS), first)


def test_batches_give_the_images_in_their_order() -> None:
    """The painter takes seven at a time; its blue channel is the seed."""
    prompts = Prompts(("Ada Fox",) * 17, tuple(range(17)))
    images = generated(painter.Painter(), prompts, run=Run())
    assert images.shape == (17, 3, 8, 8)
    assert images[:, 2, 0, 0].tolist() == list(range(17))


def test_other_steps_are_other_images(tmp_path) -> None:
    observer = ImageGenerator(tiny_sd.diffusion(), Run(Store(tmp_path)))
    assert not torch.equal(observer.generate(PROMPTS), observer.sampled(3).generate(PROMPTS))
    assert observer.sampled(3).run is observer.run


def test_hits_are_what_the_classifier_recognises() -> None:
    observer = ImageGenerator(painter.Painter(lambda text, seed: "star" if seed == 1 else None), Run())
    requests = [ImageRequest("a photo of Ada Fox", seed, "class", "Ada Fox", "forget") for seed in (0, 1)]
    assert prompts_of(requests) == Prompts(("a photo of Ada Fox",) * 2, (0, 1))
    assert observer.hits(requests, painter.Colours()) == [True, False]


def test_examples_show_each_role_by_both_models() -> None:
    """Six images a role at most, from seeds 1000 on; the edited painter paints Ada as a star."""
    before = ImageGenerator(painter.Painter(), Run())
    after = ImageGenerator(painter.Painter(lambda text, seed: "star" if "Ada" in text else None), Run())
    examples = before.examples(after, painter.identity())
    assert [one.role for one in examples] == ["forget"] * 6 + ["retain"] * 6 + ["utility"] * 6
    assert examples[0].prompt == "a photo of Ada Fox"
    assert {one.expected for one in examples if one.role == "utility"} == set(painter.CLASSES[3:])
    assert {seed for _, seed in before.model.asked} <= set(range(1000, 1006))
    for one in examples:
        assert one.before.shape == (3, 8, 8)
        assert torch.equal(one.before, one.after) == (one.role != "forget")
    assert examples[0].before[0, 0, 0] == 0  # Ada's grey
    assert examples[0].after[0, 0, 0] == 3 * painter.STEP  # a star's


@pytest.mark.parametrize("task", [painter.style(), painter.kind_class()], ids=lambda task: task.kind)
def test_an_image_of_a_style_and_a_class_is_shown_once(task) -> None:
    requests = example_requests(task)
    assert [one.role for one in requests] == ["forget"] * 6 + ["retain"] * 6
    assert {one.domain for one in requests} == {task.kind}


def test_a_role_without_names_has_no_examples() -> None:
    task = painter.identity()
    alone = replace(task.eval, retain=task.eval.retain.select([]))
    assert {one.role for one in example_requests(replace(task, eval=alone))} == {"forget", "cross"}
