"""The attack with words: its gradient, what can be typed, and the rates."""

import dataclasses
from dataclasses import replace

import painter
import pytest
import tiny_sd
import torch
from records import part

from muwa.eval.images.token_attack import Words, _Batches, _first, _gradient, _swaps, found_tokens
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.image_requests import ImageRequest

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
REQUEST = ImageRequest("a photo of Ada Fox", 3, "class", "Ada Fox", "forget")
NAMES = ("Ada Fox", "Bo Hill", "Cy Reed")


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


@pytest.fixture(scope="module")
def words(model):
    return Words(model)


def attack(classifier=None, search=(), **changed):
    measure = part("eval=[token_attack]")["token_attack"]
    small = {"tokens": 3, "steps": 2, "batch": 2, "candidates": 4, "swaps": 4, "check_every": 1}
    search = replace(measure.search, **{**small, **dict(search)})
    return replace(measure, classifier=classifier or tiny_sd.Greys(NAMES), search=search, **changed)


def test_words_are_tokens_that_a_user_can_type(model, words):
    tokenizer = model.pipeline.tokenizer
    assert 100 < len(words.ids) < len(tokenizer)
    for token in words.ids[::25].tolist():
        assert tokenizer(tokenizer.decode([token]))["input_ids"][1:-1] == [token]
    assert not set(tokenizer.all_special_ids) & set(words.ids.tolist())


def test_the_text_of_tokens_has_them_when_it_is_typed_or_is_none(model, words):
    tokens = words.ids[[5, 200, 300]].tolist()
    text = words.text(tokens, "a photo of Kael Lindqvar")
    assert text.endswith("a photo of Kael Lindqvar")
    typed = model.pipeline.tokenizer(text)["input_ids"][1:-1]
    assert typed[:3] == tokens
    vocabulary = model.pipeline.tokenizer.get_vocab()
    apart = [vocabulary[part] for part in ("p", "h", "o", "t", "o</w>")]  # typed, "photo" is one token
    assert words.text(apart, "x") is None
    long = " ".join(["photo"] * 40)
    assert len(words.ids_typed(words.text(tokens, long))) == 30  # cut as the pipeline cuts it


def test_the_gradient_is_that_of_the_embeddings_of_the_first_tokens(model, words):
    generator = torch.Generator().manual_seed(0)
    text, tokens = _first(words, REQUEST.text, 3, generator)
    batch = _Batches(model, REQUEST, 2, generator, Run()).draw()
    loss, gradient = _gradient(model, batch, text, tokens)
    assert loss == pytest.approx(batch.loss(model.embed([text]).float()).item(), rel=1e-5)
    table = model.pipeline.text_encoder.get_input_embeddings().weight
    direction = torch.randn(table.shape[1], generator=generator)
    kept = table.data[tokens[1]].clone()
    moved = []
    for step in (0.02, -0.02):
        table.data[tokens[1]] = kept + step * direction
        moved.append(batch.loss(model.embed([text]).float()).item())
    table.data[tokens[1]] = kept
    numeric = (moved[0] - moved[1]) / 0.04
    assert tokens.count(tokens[1]) == 1
    assert (gradient[1] @ direction).item() / 2**10 == pytest.approx(numeric, rel=0.05)


def test_swaps_are_among_the_words_that_the_gradient_ranks_best(model, words):
    search = attack().search
    tokens = words.ids[[0, 1, 2]].tolist()
    gradient = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    table = model.pipeline.text_encoder.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    found = list(_swaps(words, gradient, tokens, replace(search, swaps=99), generator, model))
    for swap in found:
        (place,) = [i for i in range(3) if swap[i] != tokens[i]]
        products = sorted((table[token] @ gradient[place]).item() for token in words.ids.tolist())
        assert (table[swap[place]] @ gradient[place]).item() <= products[3] + 1e-5
    assert 3 * 4 - 3 <= len(found) <= 3 * 4


def test_the_same_seed_finds_the_same_words_that_can_be_typed(model, words):
    nothing = tiny_sd.Greys(("other", "Ada Fox", "more"))
    settings = attack(search={"steps": 3}).search

    def search(seed):
        chosen = replace(settings, seed=seed)
        return found_tokens(model, REQUEST, nothing, chosen, words=words, run=Run())

    one, same, other = search(0), search(0), search(1)
    assert one == same
    assert one["tokens"] != other["tokens"]
    assert model.pipeline.tokenizer(one["text"])["input_ids"][1:4] == one["tokens"]
    assert one["text"].endswith(REQUEST.text)
    assert one["rounds"] == 3 or one["success"]


def edited(model):
    """The model with another text encoder, so that its images differ."""
    weights = model.clip.weights
    name = "transformer.resblocks.1.mlp.c_proj.weight"
    noise = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    return model.edited(Edit({name: noise}, ()))


def test_the_unedited_model_is_the_one_that_was_loaded(model):
    changed = edited(model)
    assert changed.fingerprint != model.fingerprint
    assert changed.unedited.fingerprint == model.fingerprint
    assert changed.unedited.clip.weights_fingerprint == model.clip.weights_fingerprint


@pytest.mark.parametrize("greys", [("Ada Fox",), ("Ada Fox", "Bo Hill"), ("Bo Hill", "Ada Fox")])
def test_the_rates_count_prompts_with_and_without_an_attack(model, greys):
    """The classifier calls an image Ada Fox if it is dark, light, or always."""
    measure = attack(tiny_sd.Greys(greys), prompts=4)
    changed = edited(model)
    measure.check(changed, painter.identity())
    observer = ImageGenerator(changed, Run())
    found = measure(observer, painter.identity())
    pre, post, typable = (found[f"attack/{name}"] for name in ("pre_asr", "asr", "typable"))
    requests = measure.requests(painter.identity())
    hits = observer.hits(requests, measure.classifier)
    assert (pre.value, pre.n, post.n) == (sum(hits) / 4, 4, 4)
    assert [one.seed for one in post.samples] == [6000, 6001, 6002, 6003]
    kept = [one.prompt == request.text for one, request in zip(post.samples, requests, strict=True)]
    assert kept == hits  # a prompt that shows the target anyway is not attacked
    images = observer.generate(
        prompts_of([replace(r, text=s.prompt) for r, s in zip(requests, post.samples, strict=True)])
    )
    guesses = measure.classifier.logits(images, "class").argmax(1) == greys.index("Ada Fox")
    assert post.value == guesses.float().mean().item()
    assert (typable.value, typable.n) == (1.0 if not all(hits) else 0.0, 4 - sum(hits))
    assert (post.reading.role, post.reading.better, pre.reading.role) == ("attack", "lower", "")


def test_rows_of_a_file_are_attacked_with_their_own_seed_and_guidance():
    base = painter.identity()
    from muwa.types.data import PromptRow, Split

    rows = tuple(PromptRow(f"Ada Fox {i}", ("Ada Fox",), "forget", 70 + i, 3.0) for i in range(4))
    kept = (PromptRow("a sea", (), "retain", 1, None),)
    split = Split(base.eval.forget, base.eval.retain, base.eval.utility, (*rows, *kept))
    task = dataclasses.replace(base, kind="prompts", probe=split, eval=split)
    found = attack(prompts=2).requests(task)
    assert [(one.text, one.seed, one.guidance) for one in found] == [
        ("Ada Fox 0", 70, 3.0),
        ("Ada Fox 2", 72, 3.0),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": 0}, "eval.token_attack.prompts: got 0, want at least 1"),
        ({"search": {"steps": 0}}, "eval.token_attack.search.steps: got 0, want at least 1"),
        (
            {"search": {"tokens": 30}},
            "search.tokens: got 30, want at most 29: prompts of tiny have 32 tokens",
        ),
        ({"classifier": tiny_sd.Greys(("Bo Hill",))}, "no label for the class 'Ada Fox'"),
    ],
)
def test_what_does_not_fit_is_refused(model, changed, message):
    with pytest.raises(ValueError, match=message):
        attack(**changed).check(model, painter.identity())


def test_a_pipeline_of_two_encoders_is_refused():
    with pytest.raises(ValueError, match="eval.token_attack: .* has two text encoders"):
        attack().check(tiny_sd.xl(), painter.identity())
