import os

import numpy as np
import pytest
import scipy.io
import tiny
from open_clip import IMAGENET_CLASSNAMES

from muwa.data.imagenet import class_names, read_folder
from muwa.data.imagenet_labels import imagenet_synsets


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


def test_imagenets_thousand_have_open_clips_names(tmp_path, caplog):
    folder(tmp_path, imagenet_synsets(), images=0)
    (tmp_path / "n01514668" / "x.jpg").write_bytes(tiny.png(1))
    found, _ = read(tmp_path)
    assert found.classes.names == tuple(dict.fromkeys(IMAGENET_CLASSNAMES))
    assert len(found.classes.names) == 998  # "missile" and "sunglasses" are there twice
    assert found.labels == (7,)
    assert "class names are open_clip's zero-shot names" in caplog.text


def test_some_of_imagenets_folders_have_their_names_and_others_have_wordnets(tmp_path, caplog):
    folder(tmp_path / "ten", ["n02086240", "n02087394", "n02088364", "n02089973"], images=1)
    found, _ = read(tmp_path / "ten")
    assert found.classes.names == ("Shih Tzu", "Rhodesian Ridgeback", "Beagle", "English foxhound")
    folder(tmp_path / "more", ["n00004475", "n01440764"], images=1)  # the first is of ImageNet-21k
    assert read(tmp_path / "more")[0].classes.names == ("organism", "tench")
    assert caplog.messages[-1].endswith("ImageNet's WordNet ids, and WordNet's own for 1 of 2")
    folder(tmp_path / "no", ["n01440764", "n99999999"], images=1)
    with pytest.raises(
        ValueError, match=r"n99999999 is no class of ImageNet-21k \(1 of 2 folders\); put a classnames.txt"
    ):
        read(tmp_path / "no")


def test_one_folder_of_an_own_class_does_not_take_the_names_of_the_others(tmp_path):
    folder(tmp_path, ["n01440764", "my_cat"], images=1)
    (tmp_path / "devkit").mkdir()
    assert read(tmp_path)[0].classes.names == ("my cat", "tench")


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
        FileNotFoundError,
        match=r"3 images and no class folder; want .*: LOC_val_solution.csv \(Kaggle\), ILSVRC",
    ):
        read(tmp_path)
    (tmp_path / "a" / "empty").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="3 images and no class folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="1 folders and no image"):
        read(tmp_path / "a")
    folder(tmp_path / "b" / "c", ["d"])
    with pytest.raises(FileNotFoundError, match="1 folders and no image; .* Is it dataset.images=.*/b/c?"):
        read(tmp_path / "b")
    for split in ("train", "val"):
        folder(tmp_path / "imagenet" / split, ["d"])
    with pytest.raises(
        FileNotFoundError, match="train, val are splits, not classes; .*images=.*/imagenet/val"
    ):
        read(tmp_path / "imagenet")


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


VALIDATION = {1: "n01751748", 2: "n09193705", 3: "n02105855", 4: "n04263257", 5: "n01751748", 6: "n02105855"}


def validation(root):
    """Six validation images, all in one folder, with the labels in VALIDATION."""
    root.mkdir(parents=True)
    for i in VALIDATION:
        (root / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(tiny.png(i))
    return root


def kaggle(root):
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 85 1 499 272 {wnid} 1 2 3 4 " for i, wnid in VALIDATION.items()]
    (root.parents[3] / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n" + "\n".join(rows[::-1]) + "\n"
    )


def devkit(root, *, synsets=None):
    data = root.parent / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    order = [*sorted(set(VALIDATION.values()), reverse=True), "n00001740"]  # not that of WordNet ids
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(np.uint16(i + 1), wnid, f"word {i}", np.uint8(0)) for i, wnid in enumerate(order)]
    scipy.io.savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    ids = [order.index(wnid) + 1 for wnid in VALIDATION.values()]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, ids)) + "\n")


def flat_list(root, *, label=lambda wnid: imagenet_synsets().index(wnid), name="val.txt", separator=" "):
    rows = [f"ILSVRC2012_val_{i:08d}.JPEG{separator}{label(wnid)}" for i, wnid in VALIDATION.items()]
    (root.parent / name).write_text("\r\n".join(rows))


def list_of_synsets(root):
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(VALIDATION.values()))


@pytest.mark.parametrize("write", [
    kaggle, devkit, flat_list, list_of_synsets,
    lambda root: flat_list(root, label=str), lambda root: flat_list(root, label=str, name="val_annotations.txt", separator="\t"),
])  # fmt: skip
def test_the_validation_images_as_they_arrive_are_the_same_as_in_class_folders(tmp_path, write):
    root = validation(tmp_path / "flat" / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    write(root)
    for i, wnid in VALIDATION.items():
        (tmp_path / "sorted" / wnid).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sorted" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(tiny.png(i))
    for fraction in (1.0, 0.5):
        flat, in_folders = (read(one, fraction=fraction)[0] for one in (root, tmp_path / "sorted"))
        assert flat.classes.names == ("sea snake", "Shetland Sheepdog", "soup bowl", "mountain")
        assert class_names(root) == flat.classes.names
        assert flat.fingerprint == in_folders.fingerprint


def test_images_without_a_label_are_counted(tmp_path):
    root = validation(tmp_path / "val")
    flat_list(root)
    for i in (7, 8):
        (root / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(tiny.png(i))
    found, broken = read(root, max_broken=0.25)
    assert len(found) == 6
    assert [(one.where, one.why) for one in broken] == [
        ("ILSVRC2012_val_00000007.JPEG", f"no label in {tmp_path}/val.txt"),
        ("ILSVRC2012_val_00000008.JPEG", f"no label in {tmp_path}/val.txt"),
    ]
    with pytest.raises(ValueError, match=r"dataset.images=.*val: 2 of 8 samples are broken \(25.0%\)"):
        read(root, max_broken=0.24)


def test_labels_that_are_no_class_are_named_with_their_line(tmp_path):
    root = validation(tmp_path / "val")
    flat_list(root, label=lambda wnid: imagenet_synsets().index(wnid) + 500)
    with pytest.raises(ValueError, match=r"val.txt:2: got the label '1470', want 0 to 999 or a WordNet id"):
        read(root)
    flat_list(root, label=lambda wnid: "cat")
    with pytest.raises(
        ValueError, match=r"val.txt:1: got the label 'cat', want a WordNet id such as n01440764"
    ):
        read(root)
    (tmp_path / "val.txt").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"val.txt: no rows of image and label in it"):
        read(root)


def test_the_devkits_numbers_need_its_meta_mat(tmp_path):
    root = validation(tmp_path / "val")
    devkit(root)
    meta = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    for content in (b"no mat file, but a text of more than a header's length" * 9, b"", b"MATLAB 5.0"):
        meta.write_bytes(content)
        with pytest.raises(ValueError, match=r"meta.mat: cannot be read as the devkit's meta.mat, which has"):
            read(root)
    scipy.io.savemat(meta, {"other": 1})
    with pytest.raises(ValueError, match=r"meta.mat: cannot be read as the devkit's meta.mat"):
        read(root)
    meta.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"meta.mat: not there; ILSVRC2012_validation_ground_truth.txt has"
    ):
        read(root)


def test_images_in_no_class_folder_or_deeper_are_said(tmp_path, caplog):
    folder(tmp_path, ["a", "b", "c/images"], images=2)
    for name in ("loose.jpg", "a/deep/x.jpg", "b/y.tiff", "b/._0.JPEG", "__MACOSX/a/._0.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tiny.png(1))
    found, broken = read(tmp_path)
    assert found.keys[-2:] == ("c/images/0.JPEG", "c/images/1.JPEG")
    assert (len(found), broken) == (6, [])
    (said,) = caplog.messages
    assert "images left out, in no class folder, deeper in one, or" in said
    assert "3 (loose.jpg, a/deep/x.jpg, b/y.tiff)" in said


def test_spellings_of_one_class_are_one_class(tmp_path, caplog):
    folder(tmp_path, ["caf\u00e9", "cafe\u0301", "Red_Star", "red star", "tea"], images=1)
    found, _ = read(tmp_path)
    assert set(found.classes.names) == {"caf\u00e9", "Red Star", "tea"}
    assert sorted(found.labels) == [0, 0, 1, 1, 2]
    (said,) = caplog.messages
    assert said.endswith("classes spelt in several ways, taken as one each: Red Star, caf\u00e9")


def test_special_files_are_broken_images(tmp_path):
    folder(tmp_path, ["a"], images=2)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "loop.jpg").symlink_to("loop.jpg")
    found, broken = read(tmp_path, max_broken=0.5)
    assert len(found) == 2
    assert [(one.where, one.why.partition(":")[0]) for one in broken] == [
        ("a/loop.jpg", "[Errno 40] Too many levels of symbolic links"),
        ("a/pipe.jpg", "not a regular file"),
    ]
