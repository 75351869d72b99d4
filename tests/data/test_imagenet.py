import pytest
import tiny
from open_clip import IMAGENET_CLASSNAMES

from muwa.data.imagenet import read_folder


def folder(root, classes, images=4):
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j in range(images):
            (root / name / f"{j}.JPEG").write_bytes(tiny.png(100 * i + j))
    return root


def read(root, *, fraction=1.0, seed=0, max_broken=0.0):
    return read_folder(root, templates=["a {}"], fraction=fraction, seed=seed, max_broken=max_broken)


def test_a_folder_is_a_class_and_its_name_the_folders(tmp_path):
    found, broken = read(folder(tmp_path, ["red_star", "blue_ring"]))
    assert found.classes.names == ("blue ring", "red star")
    assert found.classes.prompts() == ["a blue ring", "a red star"]
    assert found.keys[:2] == ("blue_ring/0.JPEG", "blue_ring/1.JPEG")
    assert found.labels == (0,) * 4 + (1,) * 4
    assert not broken


def test_a_share_of_the_images_by_seed(tmp_path):
    folder(tmp_path, ["a", "b", "c", "d", "e"])
    one, same, other = (read(tmp_path, fraction=0.5, seed=seed)[0] for seed in (0, 0, 1))
    assert len(one) == 10
    assert one.keys == same.keys
    assert one.keys != other.keys
    assert list(one.keys) == sorted(one.keys)


def test_wordnet_folders_take_names_from_a_list_beside_them(tmp_path):
    folder(tmp_path / "val", ["n01440764", "n01443537"])
    (tmp_path / "classnames.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read(tmp_path / "val")[0].classes.names == ("tench", "goldfish")
    (tmp_path / "classnames.txt").write_text("n01440764 tench\n")
    with pytest.raises(ValueError, match=r"no name for n01443537 \(1 of 2 folders\)"):
        read(tmp_path / "val")


def test_wordnet_folders_without_names_are_an_error_unless_they_are_imagenets_thousand(tmp_path):
    folder(tmp_path / "few", ["n01440764", "n01443537"])
    with pytest.raises(
        ValueError,
        match="2 WordNet folders, not ImageNet's 1000, and no names for them; put a classnames.txt",
    ):
        read(tmp_path / "few")
    folder(tmp_path / "all", [f"n{i:08d}" for i in range(1000)], images=0)
    (tmp_path / "all" / "n00000007" / "x.jpg").write_bytes(tiny.png(1))
    found, _ = read(tmp_path / "all")
    assert found.classes.names == tuple(dict.fromkeys(IMAGENET_CLASSNAMES))
    assert len(found.classes.names) == 998  # "missile" and "sunglasses" are there twice
    assert found.labels == (7,)


def test_folders_of_one_name_are_one_class(tmp_path):
    folder(tmp_path / "val", ["n04355933", "n04356056", "n01440764"], images=2)
    (tmp_path / "classnames.txt").write_text("n04355933 sunglasses\nn04356056 sunglasses\nn01440764 tench\n")
    found, _ = read(tmp_path / "val")
    assert found.classes.names == ("tench", "sunglasses")
    assert found.labels == (0, 0, 1, 1, 1, 1)


def test_what_is_missing_is_named_with_the_layout(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"dataset.images=.*/none: no such folder; want one folder per class: .*none/<class>/",
    ):
        read(tmp_path / "none")
    for i in range(3):
        (tmp_path / f"{i}.JPEG").write_bytes(tiny.png(i))
    with pytest.raises(
        FileNotFoundError, match="3 images and no class folder; want .* Sort them by class first"
    ):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="1 folders and no image"):
        read(tmp_path)


def test_broken_images_are_counted_named_and_limited(tmp_path):
    folder(tmp_path, ["a", "b"], images=10)
    (tmp_path / "b" / "3.JPEG").write_bytes(b"")
    found, broken = read(tmp_path, max_broken=0.05)
    assert len(found) == 19
    assert [(one.where, one.why) for one in broken] == [("b/3.JPEG", "empty file")]
    with pytest.raises(ValueError, match=r"1 of 20 samples are broken \(5.0%\).*\n  b/3.JPEG: empty file"):
        read(tmp_path, max_broken=0.04)


def test_a_share_keeps_each_image_with_its_class(tmp_path):
    found, _ = read(folder(tmp_path, ["a", "b", "c", "d", "e"]), fraction=0.3, seed=3)
    assert len(found) == 6
    assert [found.classes.names[label] for label in found.labels] == [key.split("/")[0] for key in found.keys]
    assert [str(path.relative_to(tmp_path)) for path in found.images] == list(found.keys)


def test_only_images_are_taken(tmp_path):
    folder(tmp_path, ["a"], images=2)
    for name in ("notes.txt", "c.PNG", "d.webp", "e.jpg"):
        (tmp_path / "a" / name).write_bytes(tiny.png(1))
    assert [path.name for path in read(tmp_path)[0].images] == [
        "0.JPEG",
        "1.JPEG",
        "c.PNG",
        "d.webp",
        "e.jpg",
    ]


@pytest.mark.parametrize("name", ["LOC_synset_mapping.txt", "classnames.txt"])
def test_names_inside_the_folder_win_over_names_beside_it(tmp_path, name):
    folder(tmp_path / "val", ["n01440764"])
    (tmp_path / "classnames.txt").write_text("n01440764 wrong\n")
    (tmp_path / "val" / name).write_text("n01440764 tench, Tinca tinca\n")
    assert read(tmp_path / "val")[0].classes.names == ("tench",)


def test_a_hidden_folder_is_no_class(tmp_path):
    folder(tmp_path, ["n01440764", "n01443537"])
    (tmp_path / "classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert read(tmp_path)[0].classes.names == ("tench", "goldfish")
