import naive
import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.methods.lip import dream, embedded, largest, lipschitz, scaled, smooth, unlearn
from muwa.models.clip.embeddings import Tower, class_features

SMALL = {
    "pictures": 4,
    "dream_steps": 30,
    "copies": 2,
    "layers": 3,
    "epochs": 3,
    "learning_rate": 1e-3,
    "noise": [0.1, 1.0],
}


def test_the_loss_is_that_of_plain_loops():
    generator = torch.Generator().manual_seed(0)
    text, image, moved = (torch.randn(shape, generator=generator) for shape in ((3, 5), (3, 5), (4, 3, 5)))
    far = torch.rand((4, 3), generator=generator) + 0.5
    want = 0.0
    for c in range(4):
        for i in range(3):
            out = sum((text[i] - moved[c, i]) ** 2) ** 0.5 + sum((image[i] - moved[c, i]) ** 2) ** 0.5
            want += (out / (2 * far[c, i])).item() / 4
    assert lipschitz(text, image, moved, far).item() == pytest.approx(want, rel=1e-5)


def test_embeddings_are_open_clips_before_they_are_normalised():
    model, pictures = tiny.clip(), tiny.pictures([0, 1])
    net = naive.network(model)
    torch.testing.assert_close(embedded(model, "vision", tiny.pixels(pictures.images), model.weights), net.encode_image(tiny.pixels(pictures.images)), atol=1e-5, rtol=1e-4)  # fmt: skip
    tokens = tiny.tokenize(["Ada Fox", "Bo"])
    torch.testing.assert_close(
        embedded(model, "text", tokens, model.weights), net.encode_text(tokens), atol=1e-5, rtol=1e-4
    )


def test_dreamt_pictures_are_pictures_and_look_more_like_the_name():
    model, classes = tiny.clip(), tiny.pictures([0]).classes
    names = class_features(Tower(model, "text"), classes)

    def probability(pixels):
        return (model.scale * model.encode("vision", scaled(model, pixels)) @ names.T).softmax(-1)[:, 2]

    noise, done = (dream(model, classes, (2, 2, 2), 0.6, steps, 0) for steps in (1, 60))
    assert done.shape == (3, 3, 32, 32)
    assert done.min() >= 0
    assert done.max() <= 1
    assert (probability(done) > probability(noise)).all()
    assert torch.equal(done, dream(model, classes, (2, 2, 2), 0.6, 60, 0))


def test_scaled_is_what_the_preparation_does():
    model = tiny.clip()
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(scaled(model, pixels.float() / 255), model.prepare.scale(pixels))


def test_the_largest_by_mean_gradient_in_each_tower_are_taken():
    gradients = {"visual.a": torch.tensor([3.0, 1.0]), "visual.b": torch.tensor([-2.5]), "text.a": torch.tensor([0.1]),
                 "text.b": torch.tensor([0.1]), "logit_scale": torch.tensor(9.0)}  # fmt: skip
    assert largest(gradients, 1) == {"visual.b", "text.a"}
    assert largest(gradients, 2) == {"visual.a", "visual.b", "text.a", "text.b"}


def test_a_step_moves_only_a_few_tensors_and_no_pair_is_used(tmp_path):
    model, task = tiny.clip(), tiny.task()
    store = Store(tmp_path)
    edit = unlearn(model, task, store=store, rule="first", **{**SMALL, "epochs": 1})
    assert 2 <= len(edit.deltas) <= 6
    assert (edit.moves[0].step, edit.samples) == (0.1, 4)
    assert set(store.events) <= {"dreams", "edit", "features", "pixels"}


def test_an_epoch_that_does_not_help_is_undone_and_the_noise_grows():
    model, task = tiny.clip(), tiny.task()
    dreamt = dream(model, task.probe.forget.classes, (0, 0), 0.5, 20, 0)
    found = smooth(
        model, dreamt, (0, 0), ("Ada Fox",) * 2, task.probe, (0.1, 0.5), 1, 2, -1.0, 6, 1e-12, 0.0, 2, 0.0, "top5", 0
    )
    steps = [row.step for row in found["trace"]]
    assert steps in ([0.1, 0.5], [0.1, 0.1, 0.5])  # with such a rate nothing gets any better
    assert len(found["trace"]) < 6


def test_a_style_is_smoothed_around_the_texts_that_ask_for_it(tmp_path):
    """Three pictures, two classes: the texts go round them."""
    told = []
    model = tiny.clip()
    tokenize = model.tokenize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "tokenize", lambda texts: told.append(texts) or tokenize(texts))
        unlearn(model, tiny.canvas("style"), store=Store(tmp_path), **{**SMALL, "epochs": 1, "pictures": 3})
    star, moon = "A Di Moss image in Ada Fox style.", "A Flo Wren image in Ada Fox style."
    assert ["A Bo Hill image in Ada Fox style.", star, moon] in told
