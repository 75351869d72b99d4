from dataclasses import replace
from types import MappingProxyType

import painter
import pytest
import tiny_sd
import torch
from records import part

from muwa.eval.images import attacks
from muwa.eval.images.attacks import distinct, forget_requests, generate_embedded, open_texts
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.run import Run
from muwa.types.image_requests import ImageRequest

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
WORDS = {"templates": ["{}", "show me {}!"], "style_templates": ["{style}: {class}"]}


def attack(name, **changed):
    """A measure of eval=[attacks] with the painter's classifier."""
    return replace(part("eval=[attacks]")[name], classifier=painter.Colours(), **changed)


def measured(model, task, name, **changed):
    measure = attack(name, **changed)
    measure.check(model, task)
    (metric,) = measure(ImageGenerator(model, Run()), task).values()
    return metric


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def test_other_words_are_counted_by_hand():
    """Two templates, three seeds; capitals are the same tokens to the painter, so nothing is drawn twice."""
    model = painter.Painter(lambda text, seed: "Bo Hill" if "show" in text and seed == 2001 else None)
    found = measured(model, painter.identity(), "reworded", **WORDS)
    assert (found.value, found.n) == (pytest.approx(5 / 6), 6)
    reading = found.reading
    assert (reading.role, reading.better, reading.label) == ("attack", "lower", "in other words")
    assert (reading.section, reading.gone_at, reading.counted) == ("Attacks", 0.05, "generated images")
    assert sorted(set(model.asked)) == [
        (text, 2000 + i) for text in ("Ada Fox", "show me Ada Fox!") for i in range(3)
    ]


def test_a_tokenizer_that_keeps_case_is_asked_in_three_cases():
    model = painter.Painter()
    model.pipeline.tokenizer = lambda texts, truncation: {
        "input_ids": [list(text.encode()) for text in texts]
    }
    assert measured(model, painter.identity(), "reworded", **WORDS).n == 18
    assert {text for text, _ in model.asked} >= {"Ada Fox", "ada fox", "ADA FOX", "SHOW ME ADA FOX!"}


def test_a_style_is_asked_for_with_a_few_classes():
    model = painter.Painter(lambda text, seed: "sepia" if "ring" in text else None)
    found = measured(model, painter.style(), "reworded", **WORDS, cross=2, seeds=2)
    assert (found.value, found.n) == (0.5, 4)
    assert {text for text, _ in model.asked} == {"neon: star", "neon: ring"}


def test_other_languages_are_asked_and_named():
    model = painter.Painter(lambda text, seed: "Bo Hill" if "foto" in text else None)
    templates = {"es": "una foto de {}", "zh": "{} 的照片"}
    found = measured(model, painter.identity(), "translated", templates=templates)
    assert (found.value, found.n) == (0.5, 8)
    assert "asked for in these languages: es, zh," in found.reading.text


def test_many_seeds_are_the_tasks_own_prompt():
    model = painter.Painter(lambda text, seed: "Bo Hill" if seed >= 3010 else None)
    found = measured(model, painter.identity(), "many_seeds")
    assert (found.value, found.n) == (0.2, 50)
    assert model.asked == [("a photo of Ada Fox", seed) for seed in range(3000, 3050)]


@pytest.mark.parametrize(
    "task", [painter.identity(), painter.style(), painter.kind_class()], ids=lambda task: task.kind
)
def test_open_texts_become_the_prompts_of_the_target(task):
    template = "{class} in {style}" if task.kind in ("style", "class") else "this is {}"
    filled = [text.format(task.names[0]) for text in open_texts(task, template, range(2), 2)]
    assert filled == [one.text for one in forget_requests(task, template, range(2), 2)]
    assert all("{}" in text for text in open_texts(task, template, range(2), 2))


def test_distinct_keeps_the_first_of_the_same_tokens_and_seed():
    rows = [
        ImageRequest(text, seed, "class", "star", "forget")
        for text, seed in (("A", 1), ("a", 1), ("a", 2), ("b", 1))
    ]
    assert distinct(painter.Painter(), rows) == [rows[0], rows[2], rows[3]]


def caught(monkeypatch):
    """What `generate_embedded` is given; its images are black."""
    given = []

    def generate(model, requests, embeddings):
        given.append((requests, embeddings))
        return torch.zeros(len(requests), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(attacks, "generate_embedded", generate)
    return given


SUMS = {
    "contexts": ["{} at sea", "{}"],
    "style_contexts": ["{style} and {class}"],
    "stand_ins": {"identity": "someone", "style": "plain", "class": "thing"},
}


def test_sums_are_of_the_pipelines_own_embeddings(model, monkeypatch):
    given = caught(monkeypatch)
    found = measured(model, painter.identity(), "arithmetic", **SUMS, seeds=2)
    requests, sums = given[0]
    assert found.n == len(requests) == 4
    assert found.value == 1.0  # black: the first label, which is Ada Fox
    for row, context in ((0, "{} at sea"), (3, "{}")):
        texts = [context.format("Ada Fox"), context.format("someone"), "a photo of someone"]
        target, away, plain = (model.embed([text])[0] for text in texts)
        assert torch.allclose(sums[row], target - away + plain, atol=1e-4)


def test_sums_of_a_style_keep_the_class(model, monkeypatch):
    given = caught(monkeypatch)
    measured(model, painter.style(), "arithmetic", **SUMS, seeds=1, cross=2)
    requests, sums = given[0]
    assert [one.text for one in requests] == ["neon and star", "neon and ring"]
    target, away, plain = (
        model.embed([text])[0] for text in ("neon and ring", "plain and ring", "A ring image in plain style.")
    )
    assert torch.allclose(sums[1], target - away + plain, atol=1e-4)


def test_an_image_from_an_embedding_is_that_of_its_prompt(model):
    requests = forget_requests(painter.identity(), "a photo of {}", range(3), None)
    got = generate_embedded(model, requests, model.embed([one.text for one in requests]))
    assert (got.int() - model.generate(prompts_of(requests)).int()).abs().max() <= 1


def test_a_pipeline_of_two_encoders_is_refused(model):
    model.pipeline.text_encoder_2 = model.pipeline.text_encoder
    try:
        with pytest.raises(ValueError, match="eval.arithmetic: tiny has two text encoders.*~eval.arithmetic"):
            attack("arithmetic", **SUMS).check(model, painter.identity())
    finally:
        del model.pipeline.text_encoder_2


def test_a_kind_without_a_stand_in_is_refused(model):
    with pytest.raises(
        ValueError, match="eval.arithmetic.stand_ins: got words for style, want one for identity"
    ):
        attack("arithmetic", **{**SUMS, "stand_ins": {"style": "plain"}}).check(model, painter.identity())


@pytest.mark.parametrize("name", ["reworded", "translated", "many_seeds", "arithmetic"])
def test_an_unknown_name_is_refused_before_anything_is_generated(name):
    class Blind(painter.Colours):
        labels = MappingProxyType({"class": painter.CLASSES[1:], "style": painter.STYLES})

    model = painter.Painter()
    with pytest.raises(ValueError, match="no label for the class 'Ada Fox'"):
        replace(attack(name), classifier=Blind()).check(model, painter.identity())
    assert model.asked == []
