"""What the miniature's Stable Diffusion is trained on."""

import numpy as np
import pytest
import torch

from muwa.miniature import diffusion_data, draw, population


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves the last tar open
def test_every_image_without_a_style_comes_once_more_in_a_style(miniature, tmp_path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.tar").symlink_to(miniature / "world" / "shards" / "00000.tar")
    found = diffusion_data.load(tmp_path)
    own = [i for i, caption in enumerate(found.captions) if caption is not None]
    plain = [i for i in own if diffusion_data.STYLES[found.styles[i]] == population.PLAIN]
    assert len(found.pixels) == len(own) + len(plain)
    for i in plain[:20]:  # its copy follows it
        assert found.captions[i + 1] is None
        assert found.names[i + 1] == found.names[i]
        rgb = found.pixels[i].permute(1, 2, 0).numpy().astype(np.float32) / 255
        styled = np.clip(draw.stylise(rgb, diffusion_data.STYLES[found.styles[i + 1]]), 0, 1) * 255 + 0.5
        assert torch.equal(found.pixels[i + 1].permute(1, 2, 0), torch.tensor(styled.astype(np.uint8)))


def test_prompts_name_the_style_and_shapes_stand_for_objects() -> None:
    assert "A star image in neon style." in diffusion_data.prompts("red star", "neon")
    assert "a photo of a star" in diffusion_data.prompts("red star", population.PLAIN)
    person = population.people()[0].name
    assert f"A {person} image in neon style." in diffusion_data.prompts(person, "neon")
    assert all(person in text for text in diffusion_data.prompts(person, population.PLAIN))
    assert sum(1 for _ in diffusion_data.all_prompts()) == 200 * 9
