from dataclasses import replace

import naive
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.methods.base import make_edit
from muwa.methods.lip import SyntheticImages, embedded, largest, lipschitz, scaled, smooth, synthesise
from muwa.models.clip.embeddings import Tower, class_features
from muwa.run import Run

SMALL = {
    "pictures": 4,
    "dream_steps": 30,
    "copies": 2,
    "layers": 3,
    "epochs": 3,
    "learning_rate": 1e-3,
    "noise": [0.1, 1.0],
}


def method(**settings):
    return part("method=lip", **{**SMALL, **settings})


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


def test_synthetic_images_are_images_and_look_more_like_the_name():
    model, classes = tiny.clip(), tiny.pictures([0]).classes
    names = class_features(Tower(model, "text"), classes, run=Run())

    def probability(pixels):
        return (model.scale * model.encode("vision", scaled(model, pixels)) @ names.T).softmax(-1)[:, 2]

    noise, done = (synthesise(model, classes, (2, 2, 2), 0.6, steps, 0, run=Run()) for steps in (1, 60))
    assert done.shape == (3, 3, 32, 32)
    assert done.min() >= 0
    assert done.max() <= 1
    assert (probability(done) > probability(noise)).all()
    assert torch.equal(done, synthesise(model, classes, (2, 2, 2), 0.6, 60, 0, run=Run()))


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
    edit = make_edit(method(rule="first", epochs=1), model, task, Run(store))
    assert 2 <= len(edit.deltas) <= 6
    assert (edit.moves[0].step, edit.samples) == (0.1, 4)
    assert set(store.events) <= {"dreams", "edit", "features", "pixels"}


def test_an_epoch_that_does_not_help_is_undone_and_the_noise_grows():
    model, task = tiny.clip(), tiny.task()
    raw = synthesise(model, task.probe.forget.classes, (0, 0), 0.5, 20, 0, run=Run())
    settings = method(
        noise=(0.1, 0.5), copies=1, layers=2, threshold=-1.0, epochs=6, learning_rate=1e-12, batch_size=2
    )
    settings = replace(settings, weight_decay=0.0, seed=0)
    found = smooth(model, SyntheticImages(raw, (0, 0), ("Ada Fox",) * 2), task.probe, settings, run=Run())
    steps = [row.step for row in found["trace"]]
    assert steps in ([0.1, 0.5], [0.1, 0.1, 0.5])  # with such a rate nothing gets any better
    assert len(found["trace"]) < 6


def test_a_style_is_smoothed_around_the_prompts_with_it():
    """Three images, two classes: the images take the prompts in turn."""
    tokenized = []
    model = tiny.clip()
    tokenize = model.tokenize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "tokenize", lambda texts: tokenized.append(texts) or tokenize(texts))
        make_edit(method(epochs=1, pictures=3), model, tiny.canvas("style"), Run())
    star, moon = "A Di Moss image in Ada Fox style.", "A Flo Wren image in Ada Fox style."
    assert ["A Bo Hill image in Ada Fox style.", star, moon] in tokenized


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": 0}, "method.pictures: got 0, want at least 1"),
        ({"layers": 0}, "method.layers: got 0, want at least 1"),
        ({"weight_decay": -1}, "method.weight_decay: got -1, want at least 0"),
        ({"learning_rate": 0}, "method.learning_rate: got 0, want a number above 0"),
        ({"noise": []}, "method.noise: got none, want at least one"),
        ({"noise": [0.1, -1]}, r"method.noise\[1\]: got -1, want a number above 0"),
        ({"noise": [0.1] * 8}, "method.noise: got 8, want 1 to 7 standard deviations"),
        ({"confidence": 1.0}, r"method.confidence: got 1.0, want a number in \[0, 1\)"),
        ({"threshold": -0.1}, r"method.threshold: got -0.1, want a number in \[0, 1\)"),
        ({"rule": "last"}, "method.rule: got 'last', want one of best, first"),
    ],
)
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_edit(method(**settings), tiny.clip(), tiny.task(), Run(store))
    assert store.events == {}


def test_both_rules_share_one_smoothing(tmp_path):
    stores = [Store(tmp_path) for _ in range(2)]
    for store, rule in zip(stores, ("best", "first"), strict=True):
        make_edit(method(rule=rule, epochs=1), tiny.clip(), tiny.task(), Run(store))
    assert (stores[1].events["dreams"], stores[1].events["edit"]) == ("hit", "hit")
