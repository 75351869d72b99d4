"""Loading the miniature's recognisers."""

import pytest

from muwa.miniature import painted, recogniser


def test_it_knows_every_name_and_style() -> None:
    judge = recogniser.load()
    assert judge.labels == {"style": painted.STYLES, "class": painted.NAMES}


def test_a_folder_without_them_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no config.json; want a folder of muwa.miniature.train_recogniser"):
        recogniser.load(str(tmp_path))
