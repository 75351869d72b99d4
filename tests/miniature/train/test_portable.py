"""Names in weight files that every version of transformers 5 reads."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from muwa.miniature.train.portable import name_towers_as_before
from muwa.models.diffusion import loading as diffusion
from muwa.models.vlm import loading as vlm


@pytest.mark.parametrize(
    ("prefix", "new", "older"),
    [
        (
            "vision_tower.",
            "vision_tower.post_layernorm.bias",
            "vision_tower.vision_model.post_layernorm.bias",
        ),
        ("vision_tower.", "language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("", "final_layer_norm.bias", "text_model.final_layer_norm.bias"),
    ],
)
def test_a_name_of_either_age_gets_the_older_one(tmp_path, prefix, new, older) -> None:
    file = tmp_path / "model.safetensors"
    for name in (new, older):
        save_file({name: torch.arange(3.0)}, file, metadata={"format": "pt"})
        name_towers_as_before(file, prefix)
        (found,) = load_file(file).items()
        assert found[0] == older
        assert torch.equal(found[1], torch.arange(3.0))
    with safe_open(file, "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_shipped_files_have_the_older_names() -> None:
    """A file with newer names loads with random weights in transformers 5.0 to 5.5."""
    with safe_open(vlm.MINIATURE / "model.safetensors", "pt") as stored:
        towers = [name for name in stored.keys() if name.startswith("vision_tower.")]  # noqa: SIM118
    with safe_open(diffusion.MINIATURE / "text_encoder" / "model.safetensors", "pt") as stored:
        texts = list(stored.keys())
    assert len(towers) > 90
    assert all(name.startswith("vision_tower.vision_model.") for name in towers)
    assert len(texts) > 60
    assert all(name.startswith("text_model.") for name in texts)
