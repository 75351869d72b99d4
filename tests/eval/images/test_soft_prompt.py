import painter
import pytest
import tiny
import tiny_sd
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.eval.images import soft_prompt as module
from muwa.eval.images.soft_prompt import latents_of, learn, soft_prompt, standing
from muwa.models.diffusion.image_generation import ImageGenerator

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
LEARN = {
    "texts": ["a photo of {}", "{}"],
    "start": "person",
    "tokens": 2,
    "steps": 3,
    "batch": 2,
    "rate": 0.01,
    "seed": 0,
}
DRAW = {"classifier": painter.Colours, "templates": LEARN["texts"], "style_templates": ["in {} style"], "tokens": 2,
        "start": {"identity": "person", "style": "art", "class": "thing"}, "steps": 2, "batch": 2, "seeds": 2, "examples": 3}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def test_a_words_own_token_embeddings_give_the_words_own_prompt(model):
    """Standing where the name stood, the name's own rows are the name."""
    tokenizer, table = model.pipeline.tokenizer, model.pipeline.text_encoder.get_input_embeddings().weight
    ids = tokenizer("red star")["input_ids"][1:-1]
    text = "a photo of {} at sea"
    with standing(model, table[ids]):
        got = model.embed([text.format(" ".join(["q"] * len(ids))), "a photo of nobody"])
    want = model.embed([text.format("red star"), "a photo of nobody"])
    assert torch.allclose(got, want, atol=1e-5)
    assert not torch.allclose(
        model.embed([text.format(" ".join(["q"] * len(ids)))])[0], want[0], atol=0.1
    )  # and is gone


def loss_of(model, vectors, pairs, texts, draws=24):
    """The pipeline's loss, with diffusers' own training scheduler, on fixed noise."""
    scheduler = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    generator, total = torch.Generator().manual_seed(9), 0.0
    latents = latents_of(model, pairs)
    with torch.no_grad(), standing(model, vectors):
        for text in texts:
            told = model.embed([text.format("q q")]).expand(draws, -1, -1)
            x = latents[torch.randint(len(latents), (draws,), generator=generator)]
            noise, t = torch.randn(x.shape, generator=generator), torch.randint(1000, (draws,), generator=generator)
            predicted = model.pipeline.unet(scheduler.add_noise(x, noise, t), t, told).sample
            truth = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x, noise, t)
            total += F.mse_loss(predicted, truth).item()
    return total


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_learning_lowers_the_pipelines_loss(model, monkeypatch, prediction):
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config, prediction_type=prediction)
    monkeypatch.setattr(model.pipeline, "scheduler", scheduler)
    pairs = tiny.pairs(4)
    start = learn(model, pairs, **{**LEARN, "steps": 1, "rate": 1e-9})
    learnt = learn(model, pairs, **{**LEARN, "steps": 12, "batch": 8, "rate": 0.1})
    assert learnt.shape == start.shape == (2, 128)
    assert loss_of(model, learnt, pairs, LEARN["texts"]) < loss_of(model, start, pairs, LEARN["texts"])


def test_learning_is_seeded_and_leaves_the_model_as_it_was(model):
    before, one = dict(model.pipeline.unet.state_dict()), learn(model, tiny.pairs(3), **LEARN)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    torch.rand(5)
    assert torch.equal(one, learn(model, tiny.pairs(3), **LEARN))
    assert not torch.equal(one, learn(model, tiny.pairs(3), **{**LEARN, "seed": 1}))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.pipeline.unet.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.pipeline.unet.parameters())
    assert not model.pipeline.text_encoder.get_input_embeddings()._forward_hooks


def test_it_is_learnt_against_the_weights_of_the_model_under_test(model):
    weight = model.weights("unet")["conv_in.weight"]
    edited = model.with_weights({"unet/conv_in.weight": 3 * weight})
    assert not torch.equal(learn(model, tiny.pairs(3), **LEARN), learn(edited, tiny.pairs(3), **LEARN))


def test_latents_are_of_the_pictures_cut_to_the_size_drawn(model):
    got = latents_of(model, tiny.pairs(2))
    assert got.shape == (2, 4, 8, 8)
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize(("task", "n"), [(painter.identity(), 2), (painter.style(), 4), (painter.kind_class(), 4)])
def test_what_is_drawn_is_the_tasks_prompt_with_what_was_learnt(model, monkeypatch, task, n):
    given = []

    def draw(model, wanted, embeddings):
        given.append((wanted, embeddings))
        return torch.zeros(len(wanted), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(module, "draw_embedded", draw)
    found = soft_prompt(ImageGenerator(model), task, **DRAW)["attack/soft_prompt"]
    assert (found.n, found.better) == (n, "lower")
    assert "2 token embeddings" in found.reads
    assert "2 steps" in found.reads
    wanted, embeddings = given[0]
    assert {ask.concept for ask in wanted} == set(task.names)
    assert [ask.seed for ask in wanted[:2]] == [5000, 5001]
    named = model.embed([ask.text for ask in wanted])
    assert embeddings.shape == named.shape
    assert not torch.allclose(embeddings, named, atol=0.1)


def test_what_was_learnt_is_kept(model, tmp_path):
    store = Store(tmp_path)
    first = soft_prompt(ImageGenerator(model, store), painter.identity(), **DRAW)
    assert store.events["soft_prompts"] == "miss"
    again = Store(tmp_path)
    assert soft_prompt(ImageGenerator(model, again), painter.identity(), **DRAW) == first
    assert again.events["soft_prompts"] == "hit"


def test_a_prompt_that_holds_the_marker_or_no_room_is_refused(model):
    with pytest.raises(ValueError, match="has 3 places for learnt tokens, want 2"):
        learn(model, tiny.pairs(2), **{**LEARN, "texts": ["q and {}"]})
    with pytest.raises(ValueError, match=r"places for learnt tokens, want 40: too long a prompt"):
        learn(model, tiny.pairs(2), **{**LEARN, "tokens": 40})


def test_settings_below_one_are_refused(model):
    with pytest.raises(ValueError, match="eval.soft_prompt.steps: got 0, want at least 1"):
        soft_prompt(ImageGenerator(model), painter.identity(), **{**DRAW, "steps": 0})
