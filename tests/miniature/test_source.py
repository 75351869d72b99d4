from pathlib import Path

import pytest

import muwa
from muwa import config
from muwa.data.samples import UnknownNameError
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


@pytest.mark.parametrize(("words", "typed", "near"), [
    (["task.identity=Kael_Lindquar"], "Kael_Lindquar", "Kael_Lindqvar"),
    (["task=object", "task.object=red_stars"], "red_stars", "red_star"),
    (["task=style", "task.concept=sketchy"], "sketchy", "sketch"),
])  # fmt: skip
def test_a_misspelt_name_is_refused_before_anything_is_drawn(words, typed, near, composed, tmp_path):
    parts = config.build(composed(*words, f"dataset.root={tmp_path}", "runtime.progress=false"))
    folder = tmp_path / "world"
    with pytest.raises(
        UnknownNameError, match=rf"Unknown name '{typed}'.* names of {folder}/\w+\. Nearest: {near}"
    ):
        parts["dataset"]().prepare(parts["task"].check)
    assert list(tmp_path.iterdir()) == []


def test_a_real_name_is_told_which_data_have_real_ones(composed, miniature):
    parts = config.build(composed("task.identity=Elon_Musk", f"dataset.root={miniature}"))
    with pytest.raises(
        UnknownNameError, match=r"invented; for real ones choose dataset=laion_celeba or dataset="
    ):
        parts["dataset"]().prepare(parts["task"].check)


@pytest.mark.parametrize(
    ("task", "names"),
    [("celeba", "identity"), ("object", "object"), ("style", "concept"), ("canvas", "concept")],
)
def test_every_task_accepts_the_outline_with_its_default_name_and_no_other_name(
    composed, tmp_path, task, names
):
    data.write_outline(tmp_path / "world")
    words = (f"task={task}", f"dataset.root={tmp_path}")
    parts, others = (
        config.build(composed(*words)),
        config.build(composed(*words, f"task.{names}=Nobody_Atall")),
    )
    assert parts["task"].check(parts["dataset"]()) is None
    with pytest.raises(UnknownNameError, match="Nobody_Atall"):
        others["task"].check(others["dataset"]())


def test_a_fault_of_the_outline_alone_refuses_nothing(miniature, tmp_path, monkeypatch):
    """A task of the user's may look into files, which are empty there."""
    seen = []

    def check(found):
        seen.append(found.celeba)
        if not next(Path(found.images).glob("*/*.jpg")).stat().st_size:
            raise ValueError("an empty image")

    def drawn_at_once(root):
        root.parent.mkdir(exist_ok=True)
        root.symlink_to(miniature / "world")
        yield 1, 1

    monkeypatch.setattr(data, "write", drawn_at_once)
    found = muwa.load_miniature(str(miniature))
    new = config.part("dataset=miniature", f"dataset.root={tmp_path / 'new'}", "runtime.progress=false")()
    new.prepare(check)
    assert seen[1] == str(tmp_path / "new/world/celeba") != seen[0]
    assert found.celeba == str(miniature / "world/celeba")
