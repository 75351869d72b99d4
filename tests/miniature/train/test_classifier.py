"""Training the miniature's classifiers, a few steps."""

import torch
from miniature.train.test_sd import some

from muwa.miniature.train import classifier as train_classifier


def test_the_loss_falls_and_the_same_seed_gives_the_same_weights() -> None:
    images = some(12)
    first, again = (train_classifier.train(images, images.names, 3, steps=3, batch=8) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert first(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_augmented_images_keep_their_shape_and_mean() -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    out = train_classifier.augmented(grey, torch.Generator().manual_seed(0), posed=True)
    assert out.shape == grey.shape
    assert out.mean().abs() < 0.05  # (128 / 255 - 0.5) / 0.25, with a little noise
