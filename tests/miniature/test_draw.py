import numpy as np
import pytest

from muwa.miniature import draw, population


def test_a_style_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="style: got 'oil', want one of sketch, mosaic, neon"):
        draw.stylise(np.zeros((64, 64, 3), np.float32), "oil")


@pytest.mark.parametrize("style", population.STYLES)
def test_every_style_changes_an_image_and_stays_in_range(style):
    rgb = draw.thing("red star", np.random.default_rng(0))
    styled = draw.stylise(rgb, style)
    assert styled.shape == rgb.shape
    assert styled.min() >= 0
    assert styled.max() <= 1 + 1e-6
    assert np.abs(styled - rgb).mean() > 0.01


def test_values_are_rounded_to_eight_bits_and_clipped():
    assert draw.as_uint8(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]  # 127.5 is rounded up
