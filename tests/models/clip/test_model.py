import pytest
import tiny
import torch

from muwa.types.edit import Edit


def test_embeddings_have_length_one():
    model = tiny.clip()
    pixels = torch.randn(3, 3, 32, 32)
    assert model.encode("vision", pixels).norm(dim=-1).tolist() == pytest.approx([1, 1, 1])


def test_an_edit_gives_a_new_model_and_does_not_change_the_old_one():
    model = tiny.clip()
    tokens = tiny.tokenize(["ada fox", "bo hill"])
    before = model.encode("text", tokens)
    delta = 0.1 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    edited = model.edited(Edit({"text_projection": delta}, ()))
    assert torch.equal(model.encode("text", tokens), before)
    assert not torch.allclose(edited.encode("text", tokens), before)
    torch.testing.assert_close(edited.weights["text_projection"], model.weights["text_projection"] + delta)
    assert edited.weights["visual.proj"] is model.weights["visual.proj"]


def test_an_edit_equals_the_network_with_that_weight_set():
    model = tiny.clip()
    pixels = torch.randn(2, 3, 32, 32)
    new = torch.randn(32, 16)
    got = model.with_weights({"visual.proj": new}).encode("vision", pixels)
    network = model._towers.model
    kept = network.visual.proj.data.clone()
    network.visual.proj.data.copy_(new)
    want = network.encode_image(pixels, normalize=True)
    network.visual.proj.data.copy_(kept)
    torch.testing.assert_close(got, want)


def test_fingerprints_follow_the_content():
    model = tiny.clip()
    assert model.fingerprint == tiny.clip().fingerprint
    assert model.fingerprint != tiny.clip(seed=1).fingerprint
    one = {"visual.proj": model.weights["visual.proj"] + 1e-6}
    edited = model.with_weights(one)
    assert edited.fingerprint != model.fingerprint
    assert edited.weights_fingerprint != model.weights_fingerprint
    assert edited.tower_fingerprint("vision") != model.tower_fingerprint("vision")
    assert edited.tower_fingerprint("text") == model.tower_fingerprint("text")


def test_a_change_of_preparation_or_tokenizer_changes_the_fingerprint():
    model, other = tiny.clip(), tiny.clip()
    other.tokenize = lambda texts: tiny.tokenize(["x" + text for text in texts])
    assert other.fingerprint != model.fingerprint
    assert other.weights_fingerprint == model.weights_fingerprint


def test_wrong_names_and_shapes_are_refused():
    model = tiny.clip()
    with pytest.raises(KeyError, match="nothing: not a parameter of tiny"):
        model.with_weights({"nothing": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"visual.proj: got shape \(1,\), want \(32, 16\)"):
        model.with_weights({"visual.proj": torch.zeros(1)})


def test_the_unedited_model_has_the_weights_it_was_loaded_with():
    model = tiny.clip()
    edited = model.with_weights({"visual.proj": torch.zeros(32, 16)}).with_weights(
        {"logit_scale": torch.tensor(1.0)}
    )
    assert model.unedited is model
    assert edited.unedited.fingerprint == model.fingerprint != edited.fingerprint
    assert torch.equal(edited.unedited.weights["visual.proj"], model.weights["visual.proj"])
