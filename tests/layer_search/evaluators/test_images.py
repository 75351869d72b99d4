"""One step judged by the images that are generated with it."""

from dataclasses import replace

import pytest
import tiny
import tiny_sd
import torch
from layer_search.examples import OUT_PROJ, layer_of, pipeline, pipeline_gradients, remembering
from PIL import Image
from records import part

from muwa.data.earlier import set_apart
from muwa.eval.statistics import wilson
from muwa.layer_search.evaluators.images import ImageEvaluator, probe_earlier, probe_requests
from muwa.layer_search.steps import edit_layers
from muwa.models.diffusion.image_classifier import recognised
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.run import Run
from muwa.types.data import PromptRow
from muwa.types.search import RELATIVE

SEARCH = part("layer_search=generation", pictures=4, retain_pictures=9, sampling_steps=1, forget_at_most=0.5)


def test_requests_of_each_role_and_fresh_seeds() -> None:
    asked = probe_requests(SEARCH, tiny.task(), fresh=False)
    assert [one.role for one in asked] == ["forget"] * 4 + ["retain"] * 6 + ["cross"] * 3
    assert len({one.concept for one in asked if one.role == "retain"}) == 6
    assert {one.seed for one in asked} <= set(range(4))
    assert {one.seed for one in probe_requests(SEARCH, tiny.task(), fresh=True)} <= set(range(4, 8))


def test_every_name_has_as_many_images_and_is_compared_with_its_own_name() -> None:
    names = tiny.NAMES[:2]
    both = replace(tiny.task(), names=names, forget={name: tiny.pairs(2) for name in names})
    asked = probe_requests(SEARCH, both, fresh=False)
    assert [one.concept for one in asked if one.role == "forget"] == [names[0]] * 4 + [names[1]] * 4
    assert not {one.concept for one in asked if one.role != "forget"} & set(names)
    search = part("layer_search=generation", classifier=tiny_sd.Greys(tiny.NAMES), pictures=4, retain_pictures=9,
                  sampling_steps=1, forget_at_most=0.5)  # fmt: skip
    before = ImageEvaluator(search, pipeline(), pipeline_gradients(), both, Run()).before()
    images = ImageGenerator(pipeline().sampled(steps=1), Run()).generate(prompts_of(asked))[:8]
    clip = pipeline().clip
    ready = torch.stack([clip.prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    features = clip.encode("vision", clip.prepare.scale(ready))
    cosines = features @ clip.encode("text", clip.tokenize(list(names))).T
    assert before.closeness == pytest.approx(
        (cosines[:4, 0].mean() + cosines[4:, 1].mean()).item() / 2, abs=1e-6
    )
    row, _ = ImageEvaluator(search, pipeline(), pipeline_gradients(), both, Run())(
        {"text_encoder": layer_of(clip, OUT_PROJ)}, 0.1
    )
    assert row.relative_norm == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("kind", ["style", "class"])
def test_a_style_and_a_class_are_asked_of_the_same_image(kind) -> None:
    asked = probe_requests(SEARCH, tiny.canvas(kind), fresh=False)
    retain = {(one.text, one.seed) for one in asked if one.role == "retain"}
    cross = [(one.text, one.seed) for one in asked if one.role == "cross"]
    assert len(cross) == 3
    assert set(cross) <= retain


@pytest.mark.parametrize(("confirm", "steps"), [(False, 1), (True, 2)])
def test_rates_are_those_counted_by_hand(confirm, steps) -> None:
    task, layers = tiny.task(), {"text_encoder": layer_of(pipeline().clip, OUT_PROJ)}
    classifier = remembering(task, {"Ada Fox": 0.0})
    search = part("layer_search=generation", classifier=classifier, pictures=4, retain_pictures=9, sampling_steps=1,
                  forget_at_most=0.5)  # fmt: skip
    evaluator = ImageEvaluator(search, pipeline(), pipeline_gradients(), task, Run())
    before = evaluator.before()
    assert (before.forgotten, before.metrics["retain_top1"], before.metrics["utility_top1"]) == (1, 1, 1)
    assert (before.feasible, before.candidate.name, before.step) == (False, "", 0)
    row, lost = evaluator(layers, 0.8, confirm=confirm)
    edit = edit_layers(pipeline(), pipeline_gradients(), layers, 0.8, unit=RELATIVE, concept="Ada Fox")
    asked = probe_requests(search, task, fresh=confirm)
    images = ImageGenerator(pipeline().edited(edit).sampled(steps=steps), Run()).generate(prompts_of(asked))
    hits = {role: [] for role in ("forget", "retain", "cross")}
    for one, logits in zip(asked, classifier.logits(images, "class"), strict=True):
        hits[one.role].append(classifier.labels["class"][logits.argmax()] == one.concept)
    assert row.forgotten == row.metrics["forget_top1"] == sum(hits["forget"]) / 4 == 0
    assert row.metrics["retain_top1"] == sum(hits["retain"]) / 6
    assert row.metrics["utility_top1"] == sum(hits["cross"]) / 3
    assert row.kept == (sum(hits["retain"]) / 6 + sum(hits["cross"]) / 3) / 2
    assert row.feasible == (wilson(0, 4)[1] <= 0.5)
    others = hits["retain"] + hits["cross"]
    assert lost == wilson(others.count(False), 9)[1]
    assert row.relative_norm == pytest.approx(0.8, rel=1e-5)
    assert -1 <= row.closeness == row.metrics["forget_cosine"] <= 1
    assert (dict(row.candidate.layers), row.candidate.tower) == ({"text_encoder": OUT_PROJ}, "text")
    assert evaluator.confirmation == "2 sampling steps, fresh seeds"


def prompts_task():
    """Six prompts to forget and six to keep, as a file has them."""
    base = tiny.task()
    rows = [PromptRow(f"Ada Fox {i}", ("Ada Fox",), "forget", None, None) for i in range(6)]
    rows += [PromptRow(f"{name} at sea", (name,), "retain") for name in tiny.NAMES[1:4]]
    rows += [PromptRow(f"a calm sea {i}", (), "retain", None, 3.0) for i in range(3)]
    split = replace(base.probe, prompts=tuple(rows))
    return replace(base, kind="prompts", probe=split, eval=split, prompts=())


def test_prompts_of_a_file_are_searched_by_a_detector_and_by_what_is_kept() -> None:
    task = prompts_task()
    asked = probe_requests(SEARCH, task, fresh=False)
    assert [one.role for one in asked] == ["forget"] * 4 + ["retain"] * 9
    assert {one.domain for one in asked if one.role == "retain"} == {"prompt"}
    assert {one.seed for one in probe_requests(SEARCH, task, fresh=True)} <= set(range(4, 8))
    search = part("layer_search=generation", classifier=tiny_sd.Greys(tiny.NAMES), pictures=4, retain_pictures=9,
                  sampling_steps=1, forget_at_most=0.5)  # fmt: skip
    search.check(pipeline(), task)
    ready = search.ready(pipeline(), task)
    assert ready.classifier.labels["prompt"] == (
        *tiny.NAMES[1:4],
        "a calm sea 0",
        "a calm sea 1",
        "a calm sea 2",
    )
    row = ImageEvaluator(ready, pipeline(), pipeline_gradients(), task, Run()).before()
    images = ImageGenerator(pipeline().sampled(steps=1), Run()).generate(prompts_of(asked))
    hits = recognised(images, asked, ready.classifier)
    assert row.kept == sum(hits[4:]) / 9
    assert row.forgotten == sum(hits[:4]) / 4
    with pytest.raises(ValueError, match="layer_search.start: got 'clip', but task=prompts has no images"):
        replace(search, start="clip").check(pipeline(), task)


def test_earlier_names_are_generated_too() -> None:
    task = set_apart(tiny.task(), tiny.NAMES[1:3], (1, 2, 9, 10))
    asked = probe_earlier(SEARCH, task, fresh=False)
    assert [one.concept for one in asked] == [tiny.NAMES[1]] * 2 + [tiny.NAMES[2]] * 2
    assert {one.role for one in asked} == {"earlier"}
    assert {one.seed for one in probe_earlier(SEARCH, task, fresh=True)} <= set(range(4, 8))
    many = set_apart(tiny.task(), tiny.NAMES[1:5], (1, 2, 3, 4))
    assert len(probe_earlier(SEARCH, many, fresh=False)) == 8  # two of each
    search = part("layer_search=generation", classifier=tiny_sd.Greys(tiny.NAMES), pictures=4, retain_pictures=9,
                  sampling_steps=1, forget_at_most=0.5)  # fmt: skip
    before = ImageEvaluator(search, pipeline(), pipeline_gradients(), task, Run()).before()
    assert 0 <= before.metrics["earlier_top1"] <= 1
    unknown = part("layer_search=generation", classifier=tiny_sd.Greys((*tiny.NAMES[:1], *tiny.NAMES[3:])), pictures=4,
                   retain_pictures=9, sampling_steps=1, forget_at_most=0.5)  # fmt: skip
    before = ImageEvaluator(unknown, pipeline(), pipeline_gradients(), task, Run()).before()
    assert "earlier_top1" not in before.metrics  # the classifier has no label for them
