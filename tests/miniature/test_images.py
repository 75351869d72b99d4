import numpy as np

from muwa.miniature import images, population


def test_two_images_of_one_person_differ_and_one_is_the_same_every_time():
    first, again, second = (images.NumberedImage("Kael Lindqvar", "face", i, 0).render() for i in (0, 0, 1))
    assert first.rgb.shape == (64, 64, 3)
    assert (first.rgb == again.rgb).all()
    assert first.caption == again.caption
    assert np.abs(first.rgb.astype(float) - second.rgb).mean() > 5


def test_a_share_of_the_training_images_has_a_style_and_no_held_out_one():
    training, held_out = (
        [images.NumberedImage("red star", "object", i, split).render() for i in range(80)] for split in (0, 1)
    )
    styles = [one.style for one in training if one.style]
    assert 8 <= len(styles) <= 24  # 0.2 of 80 are 16, plus or minus twice 3.6
    assert set(styles) <= set(population.STYLES)
    assert {one.style for one in held_out} == {None}
    assert not any(one.hat for one in training)


def test_training_images_are_all_people_and_objects_in_one_fixed_order():
    order = images.training_images()
    assert len(order) == len(set(order)) == 100 * 72 + 100 * 80
    assert order == images.training_images()
    assert len({one.kind for one in order[:20]}) == 2


def test_colours_of_a_canvas_take_turns():
    plain = len(population.STYLES)
    red, orange, red_again = (images.canvas_image(plain, "ball", i) for i in (0, 1, 10))
    centre = [image[24:40, 24:40].mean((0, 1)) for image in (red, orange, red_again)]
    assert np.abs(centre[0] - centre[2]).mean() < np.abs(centre[0] - centre[1]).mean()
    assert not (red == red_again).all()
