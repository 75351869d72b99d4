import pytest
import tiny
import tiny_sd
import torch
from records import part

from muwa.cache.store import Store
from muwa.data.prompts import retain_prompts
from muwa.library import load_clip
from muwa.methods.base import make_edit
from muwa.methods.uce import aligned_tokens
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.image_requests import Prompts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the tiny pipeline's scheduler
ENDS = (".attn2.to_k.weight", ".attn2.to_v.weight")
TARGETS = (("Ada Fox", ""), ("a photo of Ada Fox", "a photo of"))


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def uce(model, run=None, **settings):
    return make_edit(part("method=uce", **settings), model, tiny.task(), run or Run())


def tokens(model, target, anchor):
    """The aligned token embeddings, found by the lengths of the texts' tokens instead of by masks."""
    ends = [len(model.pipeline.tokenizer(text)["input_ids"]) - 2 for text in (target, anchor)]
    count = 32 - max(ends)
    c, a = model.embed([target, anchor]).double()
    return c[ends[0] : ends[0] + count], a[ends[1] : ends[1] + count]


def naive(model, weight, erase, preserve, lamb):
    """Equation 7 for one matrix, vector by vector."""
    w = weight.double()
    left, right = lamb * w, lamb * torch.eye(128, dtype=torch.float64)
    for target, anchor in TARGETS:
        for c, a in zip(*tokens(model, target, anchor), strict=True):
            left, right = left + erase * torch.outer(w @ a, c), right + erase * torch.outer(c, c)
    for text in retain_prompts(tiny.task()):
        for k in model.embed([text])[0].double():
            left, right = left + preserve * torch.outer(w @ k, k), right + preserve * torch.outer(k, k)
    return torch.linalg.solve(right, left, left=False).float()


def test_every_key_and_value_matrix_is_the_papers_and_nothing_else_moves(model):
    edit = uce(model, erase_scale=0.7, preserve_scale=0.3, lamb=0.2)
    weights = model.weights("unet")
    assert set(edit.deltas) == {f"unet/{name}" for name in weights if name.endswith(ENDS)}
    assert len(edit.deltas) == 14
    for name in list(weights)[:: len(weights) // 40]:
        if name.endswith(ENDS):
            want = naive(model, weights[name], 0.7, 0.3, 0.2)
            torch.testing.assert_close(
                weights[name] + edit.deltas[f"unet/{name}"], want, rtol=1e-4, atol=1e-5
            )
    (move,) = edit.moves
    size = sum(d.square().sum() for d in edit.deltas.values()) / sum(
        weights[name[5:]].square().sum() for name in edit.deltas
    )
    assert (move.concept, move.tower, move.step) == ("Ada Fox", "unet", 0.7)
    assert move.relative_norm == pytest.approx(size.sqrt().item(), rel=1e-4)
    assert edit.searches == ()


def test_without_anything_to_keep_the_name_has_the_anchors_keys_and_values(model):
    edit = uce(model, anchor="a man", preserve_scale=0, lamb=1e-6, erase_scale=10)
    after = model.edited(edit).weights("unet")
    c, a = (side.float() for side in tokens(model, "a photo of Ada Fox", "a photo of a man"))
    for name, before in model.weights("unet").items():
        if name.endswith(ENDS):
            gap = (c - a) @ before.T
            assert (c @ after[name].T - a @ before.T).norm() < 0.02 * gap.norm()


def test_what_is_kept_hardly_changes_where_the_name_does(model):
    edit = uce(model, preserve_scale=100)
    before = model.weights("unet")

    def shift(c):
        return max(((c @ d.T).norm() / (c @ before[n[5:]].T).norm()).item() for n, d in edit.deltas.items())

    own, _ = tokens(model, *TARGETS[1])
    assert shift(model.embed(["a photo of Bo Hill"])[0]) < 0.02
    assert shift(model.embed([""])[0]) < 0.02
    assert shift(own.float()) > 0.1


SEEDS = (0, 1)
NAME, ANCHOR = "a photo of Ada Fox", "a photo of"
OTHERS = tuple(f"a photo of {name}" for name in tiny.NAMES[1:4])
SHAPES = {"1": tiny_sd.pipeline, "2.1": tiny_sd.pipeline_21, "XL": tiny_sd.xl_pipeline}


def drawn(model, texts):
    """(prompts, seeds, 3, h, w), from 0 to 255."""
    prompts = Prompts(tuple(text for text in texts for _ in SEEDS), SEEDS * len(texts))
    return model.generate(prompts).float().unflatten(0, (len(texts), len(SEEDS)))


def difference(a, b):
    """Mean absolute difference of the images of each prompt."""
    return (a - b).abs().flatten(1).mean(1).tolist()


def drawn_with_the_anchors_tail(model):
    """Images of the name's prompt whose embeddings, from the name's last token on, are the anchor's: (1, seeds, 3, h, w).

    By diffusers alone, from given embeddings.
    """
    pipeline = model.pipeline
    encoded = [pipeline.encode_prompt(prompt=text, do_classifier_free_guidance=False, num_images_per_prompt=1, device="cpu")
               for text in (NAME, ANCHOR)]  # fmt: skip
    (name, anchor) = (one[0][0].clone() for one in encoded)
    last, end = (len(pipeline.tokenizer(text)["input_ids"]) - 2 for text in (NAME, ANCHOR))
    name[last:] = anchor[end : end + len(name) - last]
    given = {"prompt_embeds": name[None], "negative_prompt_embeds": model.embed([""])}
    if len(encoded[0]) == 4:  # XL: its second encoder's pooled embedding stays that of the name
        pooled, zeros = encoded[0][2], torch.zeros_like
        given = {"prompt_embeds": name[None], "negative_prompt_embeds": zeros(name[None])}
        given |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": zeros(pooled)}
    images = [
        pipeline(**given, num_inference_steps=3, guidance_scale=2.0, output_type="pt",
                 generator=torch.Generator().manual_seed(seed)).images[0]
        for seed in SEEDS
    ]  # fmt: skip
    return torch.stack(images)[None] * 255


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_the_name_are_drawn_from_the_anchors_tokens_and_others_stay(shape):
    clips = {"text_encoder": load_clip("miniature")}
    if shape == "XL":
        clips["text_encoder_2"] = tiny_sd.second_clip()
    model = tiny_sd.prompted(SHAPES[shape](), clips)
    edited = model.edited(uce(model, preserve_scale=1))
    before, after = (drawn(one, (NAME, "", *OTHERS)) for one in (model, edited))
    own, empty, *others = difference(before, after)
    wanted = drawn_with_the_anchors_tail(model)
    way = difference(before[:1], wanted)[0]
    assert way > 8  # of 255
    assert 0.75 * way < own < 1.25 * way
    assert (
        difference(after[:1], wanted)[0] < 0.25 * way
    )  # 13 to 19 %: the images are where the method puts them
    assert max(empty, *others) < 0.15 * own  # 6 to 13 %: the names and the empty prompt that it retains
    assert max(others) > 0


def test_prompts_are_aligned_from_their_last_word_on(model):
    ids = model.pipeline.tokenizer("a photo of Ada Fox")["input_ids"]
    c, a = aligned_tokens(model, "a photo of Ada Fox", "a photo of")
    assert len(c) == len(a) == 32 - (len(ids) - 2)
    torch.testing.assert_close(c[0], model.embed(["a photo of Ada Fox"])[0, len(ids) - 2].double())
    short = len(model.pipeline.tokenizer("a photo of")["input_ids"])
    torch.testing.assert_close(a[0], model.embed(["a photo of"])[0, short - 2].double())
    c, a = aligned_tokens(model, "", "")
    assert len(c) == 32
    assert torch.equal(c, a)


def test_it_is_read_back_and_the_model_stays_as_it_was(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.weights("unet").items()}
    first, second = Store(tmp_path), Store(tmp_path)
    edits = [uce(model, Run(store)) for store in (first, second)]
    assert second.events == {"edit": "hit"}
    assert all(torch.equal(delta, edits[1].deltas[name]) for name, delta in edits[0].deltas.items())
    assert all(torch.equal(weight, before[name]) for name, weight in model.weights("unet").items())


def test_an_anchor_that_means_the_same_is_no_edit(model):
    same = uce(model, anchor=" Ada  Fox")
    assert (same.deltas, same.moves[0].relative_norm) == ({}, 0.0)


def test_wrong_settings_stop_before_any_compute(model, tmp_path):
    store = Store(tmp_path)
    for settings, message in (
        ({"lamb": 0}, "method.lamb: got 0, want a number above 0"),
        ({"erase_scale": -1}, "method.erase_scale: got -1, want a number above 0"),
        ({"preserve_scale": -1}, "method.preserve_scale: got -1, want at least 0"),
        ({"anchor": "Ada Fox"}, "method.anchor: got 'Ada Fox', which is to be forgotten"),
    ):
        with pytest.raises(ValueError, match=message):
            uce(model, Run(store), **settings)
    with pytest.raises(
        ValueError, match="gradients: method=uce takes no mean gradients; leave gradients=.*g out"
    ):
        uce(model, Run(store, gradient_file=tmp_path / "g"))
    with pytest.raises(ValueError, match=r"method=uce: got a CLIP .* \(tiny\), want a text-to-image model"):
        uce(tiny.clip(), Run(store))
    assert uce(model, Run(store, distributed=Distributed(1, 2))).moves == ()
    assert store.events == {}
