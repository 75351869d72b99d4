"""Loading the miniature's classifiers."""

import pytest

from muwa import config
from muwa.miniature import diffusion_data


def test_it_knows_every_name_and_style() -> None:
    classifier = config.part("classifier=miniature")()
    assert classifier.labels == {"style": diffusion_data.STYLES, "class": diffusion_data.NAMES}


def test_a_folder_without_them_is_refused(tmp_path) -> None:
    with pytest.raises(
        FileNotFoundError, match="no config.json; want a folder of muwa.miniature.train.classifier"
    ):
        config.part("classifier=miniature", folder=str(tmp_path))()
