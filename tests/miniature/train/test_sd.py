"""The miniature's Stable Diffusion: that it can be trained again, and what the shipped one draws."""

import pytest
import torch

from muwa import config
from muwa.data.celeba import read_celeba
from muwa.data.imagenet import read_folder
from muwa.data.samples import decode, fold
from muwa.miniature import diffusion_data
from muwa.miniature.text_tower import text_model
from muwa.miniature.train import sd as train_sd
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.run import Run
from muwa.types.image_requests import ImageRequest


def some(count: int = 24) -> diffusion_data.TrainingImages:
    """Random images of the first names."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    styles = torch.tensor([i % 2 * 8 for i in range(count)])
    hats = torch.zeros(count, dtype=torch.bool)
    return diffusion_data.TrainingImages(pixels, torch.arange(count) % 3, styles, [None] * count, hats)


@pytest.mark.whole
def test_it_learns_and_the_same_seed_gives_the_same_weights() -> None:
    images = some()
    first, again = (train_sd.train_autoencoder(images.pixels, steps=2, batch=2) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    latents = train_sd.latents_of(first, images.pixels)
    assert latents.shape == (24, 4, 16, 16)
    captions = train_sd.Captions(images, *text_model())
    unet = train_sd.UNet2DConditionModel(**train_sd.UNET)
    before = unet.conv_in.weight.detach().clone()
    train_sd.train_unet(unet, images, latents / latents.std(), captions, train_sd.Round(2, 1e-3, batch=4))
    assert all(torch.isfinite(p).all() for p in unet.parameters())
    assert not torch.equal(before, unet.conv_in.weight)


def test_a_round_sees_faces_and_the_pixel_style_more_often() -> None:
    """A plain face, a plain object, a styled face, an object in pixel style: 0.55 and 0.45 in halves, then times 2 and 3."""
    names, styles = (
        torch.tensor([0, 150, 0, 150]),
        torch.tensor([8, 8, 0, diffusion_data.STYLES.index("pixel")]),
    )
    images = diffusion_data.TrainingImages(
        torch.zeros(4, 3, 64, 64, dtype=torch.uint8),
        names,
        styles,
        [None] * 4,
        torch.zeros(4, dtype=torch.bool),
    )
    weights = train_sd.weights_of(images, train_sd.Round(1, 1e-3, faces=2, pixel=3))
    torch.testing.assert_close(weights, torch.tensor([0.55, 0.275, 0.225, 0.675]))


@pytest.fixture(scope="module")
def image_generator() -> ImageGenerator:
    return ImageGenerator(config.part("model=sd", steps=12, guidance=3.0)(), Run())


@pytest.mark.whole
def test_the_shipped_one_generates_what_it_is_asked_for(image_generator: ImageGenerator) -> None:
    """12 people, 12 objects, 8 styles of a star: at least 28 of 32 recognised by a network that shares nothing with it."""
    people, things = diffusion_data.NAMES[:100:9][:12], diffusion_data.NAMES[100::9][:12]
    wanted = [ImageRequest(f"a photo of {name}", i, "class", name, "retain") for i, name in enumerate(people)]
    wanted += [
        ImageRequest(f"a photo of a {name}", i, "class", name, "retain") for i, name in enumerate(things)
    ]
    wanted += [
        ImageRequest(f"A star image in {style} style.", 3, "style", style, "retain")
        for style in diffusion_data.STYLES[:8]
    ]
    assert sum(image_generator.hits(wanted, config.part("classifier=miniature")())) >= 28


def test_the_shipped_classifier_knows_held_out_images(miniature) -> None:
    """At least 95 of 100 held-out faces, and of 100 held-out objects."""
    classifier = config.part("classifier=miniature")()
    faces = read_celeba(miniature / "world" / "celeba", identities=None, frequent=None)
    rows = [(decode(faces.files[name][0]), name) for name in faces.names]
    shown, _ = read_folder(
        miniature / "world" / "objects", templates=("{}",), fraction=1, seed=0, max_broken=0
    )
    rows += [
        (decode(shown.images[i]), shown.classes.names[shown.labels[i]]) for i in range(0, len(shown), 16)
    ]
    pixels = torch.stack(
        [
            torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.uint8).view(64, 64, 3)
            for image, _ in rows
        ]
    )
    guesses = classifier.logits(pixels.permute(0, 3, 1, 2), "class").argmax(1).tolist()
    right = [
        fold(classifier.labels["class"][guess]) == fold(name)
        for guess, (_, name) in zip(guesses, rows, strict=True)
    ]
    assert sum(right[:100]) >= 95
    assert sum(right[100:]) >= 95


def test_an_autoencoder_that_is_read_back_gives_the_latents_of_its_training(tmp_path) -> None:
    """A training that was stopped after its autoencoder goes on with it."""
    pixels = torch.randint(256, (16, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    want = train_sd.latents_of(train_sd.train_autoencoder(pixels, steps=1), pixels)
    for _ in ("trained", "read back"):
        found = train_sd._trained_autoencoder(tmp_path / "vae", pixels, 1)
        assert torch.equal(train_sd.latents_of(found, pixels), want)
