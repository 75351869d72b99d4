import pytest

from muwa import config
from muwa.miniature.source import dataset


def test_the_library_and_the_config_name_the_same_files(composed, miniature):
    cfg = composed(f"dataset.root={miniature}", "runtime.progress=false")
    assert config.build(cfg)["dataset"]() == dataset(str(miniature))


def test_a_keyword_that_is_no_field_is_refused(tmp_path):
    with pytest.raises(TypeError, match="max_brokn"):
        dataset(str(tmp_path), max_brokn=0.1)
    assert not (tmp_path / "world").exists()
