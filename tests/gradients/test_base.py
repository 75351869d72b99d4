import pytest

from muwa.gradients.base import BatchLoss, Recipe, TakesGradients
from muwa.gradients.mean import ClipGradients

RECIPE = Recipe("cosine", "contrastive", 4, 3, "bf16", 2)


def test_each_side_of_a_recipe_has_its_loss_and_the_same_batches():
    assert RECIPE.forget == BatchLoss("cosine", 4, 3, "bf16")
    assert RECIPE.retain == BatchLoss("contrastive", 4, 3, "bf16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("l2", "cosine", 4, 0, "fp32"), "loss: got 'l2', want one of cosine, contrastive"),
        (("cosine", "l1", 4, 0, "fp32"), "loss: got 'l1', want one of cosine, contrastive"),
        (("cosine", "cosine", 0, 0, "fp32"), "method.batch_size: got 0, want at least 1"),
        (("cosine", "cosine", 4, 0, "fp16"), "method.precision: got 'fp16', want one of fp32, bf16"),
        (
            ("cosine", "cosine", 4, 0, "fp32", 0),
            "method.micro_batch_size: got 0, want at least 1, or null for whole batches",
        ),
    ],
)
def test_settings_of_a_recipe_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(*settings)


def test_a_method_takes_gradients_if_it_has_a_recipe_and_a_source():
    class Without:
        recipe = RECIPE

    class With(Without):
        gradients = ClipGradients()

    assert isinstance(With(), TakesGradients)
    assert not isinstance(Without(), TakesGradients)
