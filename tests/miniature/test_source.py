import pytest

import muwa
from muwa import config
from muwa.data.shards import expand
from muwa.miniature import data


def test_the_library_and_the_config_name_the_same_files(composed, miniature):
    cfg = composed(f"dataset.root={miniature}", "runtime.progress=false")
    found = muwa.load_miniature(str(miniature))
    assert config.build(cfg)["dataset"]() == found
    assert len(expand(found.shards)) == data.SHARDS


def test_a_setting_of_the_data_set_may_differ(miniature):
    assert muwa.load_miniature(str(miniature), utility_probe=0.125).utility_probe == 0.125


def test_a_keyword_that_is_no_field_is_refused(tmp_path):
    with pytest.raises(TypeError, match="max_brokn"):
        muwa.load_miniature(str(tmp_path), max_brokn=0.1)
    assert not (tmp_path / "world").exists()


def test_the_drawn_miniature_in_place_of_the_folder_that_holds_it_is_refused(tmp_path):
    """It would be drawn a second time, inside the first."""
    for root, advice in (
        (tmp_path / "world", f"dataset.root={tmp_path}"),
        (tmp_path / "x", "a folder with it as"),
    ):
        root.mkdir()
        (root / "version.txt").write_text(data.VERSION)
        with pytest.raises(ValueError, match=f"dataset.root: got {root}, the miniature itself.*{advice}"):
            config.part("dataset=miniature", f"dataset.root={root}")()
        assert [path.name for path in root.iterdir()] == ["version.txt"]
