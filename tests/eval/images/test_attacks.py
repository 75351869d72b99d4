from types import MappingProxyType

import painter
import pytest
import tiny_sd
import torch

from muwa.eval.images import attacks
from muwa.eval.images.attacks import (
    arithmetic,
    distinct,
    forgotten,
    many_seeds,
    open_texts,
    reworded,
    translated,
)
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.types.image_requests import ImageRequest

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
WORDS = {"classifier": painter.Colours, "templates": ["{}", "show me {}!"], "style_templates": ["{style}: {class}"]}


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def test_other_words_are_counted_by_hand():
    """Two templates, three seeds; capitals are the same tokens to the painter, so nothing is drawn twice."""
    model = painter.Painter(lambda text, seed: "Bo Hill" if "show" in text and seed == 2001 else None)
    found = reworded(ImageGenerator(model), painter.identity(), **WORDS)["attack/reworded"]
    assert (found.value, found.n, found.better) == (pytest.approx(5 / 6), 6, "lower")
    assert sorted(set(model.asked)) == [(text, 2000 + i) for text in ("Ada Fox", "show me Ada Fox!") for i in range(3)]


def test_a_tokenizer_that_keeps_case_is_asked_in_three_cases():
    model = painter.Painter()
    model.pipeline.tokenizer = lambda texts, truncation: {"input_ids": [list(text.encode()) for text in texts]}
    found = reworded(ImageGenerator(model), painter.identity(), **WORDS)["attack/reworded"]
    assert found.n == 18
    assert {text for text, _ in model.asked} >= {"Ada Fox", "ada fox", "ADA FOX", "SHOW ME ADA FOX!"}


def test_a_style_is_asked_for_with_a_few_classes():
    model = painter.Painter(lambda text, seed: "sepia" if "ring" in text else None)
    found = reworded(ImageGenerator(model), painter.style(), **{**WORDS, "cross": 2, "seeds": 2})["attack/reworded"]
    assert (found.value, found.n) == (0.5, 4)
    assert {text for text, _ in model.asked} == {"neon: star", "neon: ring"}


def test_other_languages_are_asked_and_named():
    model = painter.Painter(lambda text, seed: "Bo Hill" if "foto" in text else None)
    found = translated(ImageGenerator(model), painter.identity(), classifier=painter.Colours, seeds=4,
                       templates={"es": "una foto de {}", "zh": "{} 的照片"}, style_templates={"fr": "{class} {style}"})  # fmt: skip
    assert (found["attack/translated"].value, found["attack/translated"].n) == (0.5, 8)
    assert "asked for in es, zh," in found["attack/translated"].reads


def test_many_seeds_are_the_tasks_own_prompt():
    model = painter.Painter(lambda text, seed: "Bo Hill" if seed >= 3010 else None)
    found = many_seeds(ImageGenerator(model), painter.identity(), classifier=painter.Colours)["attack/seeds"]
    assert (found.value, found.n) == (0.2, 50)
    assert model.asked == [("a photo of Ada Fox", seed) for seed in range(3000, 3050)]


@pytest.mark.parametrize(
    "task", [painter.identity(), painter.style(), painter.kind_class()], ids=lambda task: task.kind
)
def test_open_texts_become_the_prompts_of_the_forgotten(task):
    template = "{class} in {style}" if task.kind in ("style", "class") else "this is {}"
    filled = [text.format(task.names[0]) for text in open_texts(task, template, range(2), 2)]
    assert filled == [ask.text for ask in forgotten(task, template, range(2), 2)]
    assert all("{}" in text for text in open_texts(task, template, range(2), 2))


def test_distinct_keeps_the_first_of_the_same_tokens_and_seed():
    rows = [ImageRequest(text, seed, "class", "star", "forget") for text, seed in (("A", 1), ("a", 1), ("a", 2), ("b", 1))]
    assert distinct(painter.Painter(), rows) == [rows[0], rows[2], rows[3]]


def caught(monkeypatch):
    """What `draw_embedded` is given, in place of drawing."""
    given = []

    def draw(model, wanted, embeddings):
        given.append((wanted, embeddings))
        return torch.zeros(len(wanted), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(attacks, "draw_embedded", draw)
    return given


SUMS = {"classifier": painter.Colours, "contexts": ["{} at sea", "{}"], "style_contexts": ["{style} and {class}"],
        "stand_ins": {"identity": "someone", "style": "plain", "class": "thing"}}  # fmt: skip


def test_sums_are_of_the_pipelines_own_embeddings(model, monkeypatch):
    given = caught(monkeypatch)
    found = arithmetic(ImageGenerator(model), painter.identity(), **SUMS, seeds=2)["attack/arithmetic"]
    wanted, sums = given[0]
    assert found.n == len(wanted) == 4
    assert found.value == 1.0  # black: the first label, which is Ada Fox
    for row, context in ((0, "{} at sea"), (3, "{}")):
        texts = [context.format("Ada Fox"), context.format("someone"), "a photo of someone"]
        target, away, plain = (model.embed([text])[0] for text in texts)
        assert torch.allclose(sums[row], target - away + plain, atol=1e-4)


def test_sums_of_a_style_keep_the_class(model, monkeypatch):
    given = caught(monkeypatch)
    arithmetic(ImageGenerator(model), painter.style(), **SUMS, seeds=1, cross=2)
    wanted, sums = given[0]
    assert [ask.text for ask in wanted] == ["neon and star", "neon and ring"]
    target, away, plain = (
        model.embed([text])[0] for text in ("neon and ring", "plain and ring", "A ring image in plain style.")
    )
    assert torch.allclose(sums[1], target - away + plain, atol=1e-4)


def test_a_picture_of_an_embedding_is_that_of_its_prompt(model):
    wanted = forgotten(painter.identity(), "a photo of {}", range(3), None)
    texts = [ask.text for ask in wanted]
    got = attacks.draw_embedded(model, wanted, model.embed(texts))
    assert (got.int() - ImageGenerator(model).draw(attacks.prompts_of(wanted)).int()).abs().max() <= 1


def test_a_pipeline_of_two_encoders_is_refused(model):
    model.pipeline.text_encoder_2 = model.pipeline.text_encoder
    try:
        with pytest.raises(ValueError, match="eval.arithmetic: tiny has two text encoders.*~eval.arithmetic"):
            arithmetic(ImageGenerator(model), painter.identity(), **SUMS)
    finally:
        del model.pipeline.text_encoder_2


@pytest.mark.parametrize("attack", [reworded, translated, many_seeds])
def test_an_unknown_name_is_refused_before_anything_is_drawn(attack):
    class Blind(painter.Colours):
        labels = MappingProxyType({"class": painter.CLASSES[1:], "style": painter.STYLES})

    model = painter.Painter()
    more = (
        {}
        if attack is many_seeds
        else {"templates": {"en": "{}"} if attack is translated else ["{}"], "style_templates": {}}
    )
    with pytest.raises(ValueError, match="no label for the class 'Ada Fox'"):
        attack(ImageGenerator(model), painter.identity(), classifier=Blind, **more)
    assert model.asked == []
