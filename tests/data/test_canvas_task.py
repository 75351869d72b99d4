"""The task that forgets a style or a class of UnlearnCanvas."""

import dataclasses
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import tiny
from data import datasets

from muwa.data.dataset import Dataset
from muwa.data.prompts import image_requests
from muwa.types.data import LabelledImages, Task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three styles of two classes, ten images each."""
    return datasets.write_canvas(tmp_path_factory.mktemp("canvas"))


def make(miniature: Path, folder: Path, **settings) -> Task:
    """With 40 pairs of the miniature's first shard as the retain set."""
    settings.setdefault("limits", {"retain_pairs": 40, "probe_retain": 2, "eval_retain": 4})
    return datasets.builder("canvas", **{"concept": "neon lines", **settings})(of(miniature, folder))


def of(miniature: Path, folder: Path) -> Dataset:
    shard = f"{miniature}/world/shards/00000.tar"
    return datasets.dataset(shards=shard, retain=shard, canvas=str(folder), max_broken=0.01, name="here")


def test_a_style_with_its_pairs_and_images(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder)
    assert (task.kind, task.names) == ("style", ("neon lines",))
    pairs = task.forget["neon lines"]
    assert len(pairs) == 12  # 20 images, 0.4 of them measured on: 4 for the search, 4 for the report
    assert set(pairs.captions) == {"A cats image in neon lines style.", "A sea image in neon lines style."}
    assert (len(task.probe.forget), len(task.eval.forget)) == (4, 4)
    assert task.probe.forget.classes.names == ("neon lines", "photo", "sketch")
    assert (len(task.probe.retain), len(task.eval.retain)) == (2 * 2, 2 * 4)
    assert {task.eval.utility.classes.names[label] for label in task.eval.utility.labels} == {"cats", "sea"}
    bare = make(miniature, folder, bare_captions=True)
    assert set(bare.forget["neon lines"].captions) == {"neon lines"}


def test_no_image_is_in_two_places(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder)
    places = [
        set(getattr(split, part).images)
        for split in (task.probe, task.eval)
        for part in ("forget", "retain", "utility")
    ]
    assert all(not first & second for first, second in combinations(places, 2))
    measured = {path.read_bytes() for place in places for path in place}
    assert not measured & set(task.forget["neon lines"].images)


def shown(images: LabelledImages) -> Counter:
    """How many images lie in each class folder."""
    return Counter(path.parent.name for path in images.images)


def test_search_and_report_see_the_same_classes_equally_often(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder)
    assert shown(task.probe.forget) == shown(task.eval.forget) == {"Cats": 2, "Sea": 2}


def test_few_images_of_each_other_style_do_not_all_show_the_first_class(
    miniature: Path, folder: Path
) -> None:
    few = {"retain_pairs": 1, "probe_retain": 1, "eval_retain": 1}
    tasks = [make(miniature, folder, limits=few, seed=seed) for seed in range(4)]
    assert {len(task.probe.retain) for task in tasks} == {2}
    assert set(sum((shown(task.probe.retain) for task in tasks), Counter())) == {"Cats", "Sea"}


def test_the_seed_decides_the_split(miniature: Path, folder: Path) -> None:
    one, same, other = (make(miniature, folder, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert set(one.probe.forget.images) != set(other.probe.forget.images)


def test_several_styles_at_once(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder, concept=["Neon_Lines", "sketch", "neon lines"], limits={"retain_pairs": 1})
    assert task.names == ("neon lines", "sketch")
    assert {task.eval.retain.classes.names[label] for label in task.eval.retain.labels} == {"photo"}
    assert [len(task.forget[name]) for name in task.names] == [12, 12]
    assert len(task.only("sketch").probe.forget) == 4


def test_photographs_are_a_style_in_captions_of_a_class(miniature: Path, folder: Path) -> None:
    captions = set(make(miniature, folder, concept="sea").forget["sea"].captions)
    assert captions == {f"A sea image in {style} style." for style in ("neon lines", "photo", "sketch")}


def test_broken_images_are_left_out_and_named(miniature: Path, folder: Path, tmp_path: Path) -> None:
    spoilt = shutil.copytree(folder, tmp_path / "canvas")
    whole = make(miniature, folder)
    pair, measured = whole.forget["neon lines"].keys[0], whole.eval.forget.keys[0]
    (spoilt / pair).write_bytes(b"")
    (spoilt / measured).write_bytes(b"no image")
    data = dataclasses.replace(of(miniature, spoilt), max_broken=0.25)
    builder = datasets.builder("canvas", concept="neon_lines", limits={"retain_pairs": 1})
    task = builder(data)
    assert pair not in task.forget["neon lines"].keys
    assert (len(task.forget["neon lines"]), len(task.eval.forget)) == (11, 3)
    assert {one.where for one in task.broken} == {pair, measured}
    with pytest.raises(ValueError, match=r"1 of 12 samples are broken \(8.3%\)"):
        builder(dataclasses.replace(data, max_broken=0.01))


def test_a_class_is_found_by_its_name_and_asked_for_with_every_style(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder, concept="Cats")
    assert (task.kind, task.names) == ("class", ("cats",))
    wanted = [ask for ask in image_requests(task, task.eval, seeds=[0]) if ask.role == "forget"]
    assert [ask.text for ask in wanted] == [
        f"A cats image in {style} style." for style in ("neon lines", "photo", "sketch")
    ]
    assert {ask.concept for ask in image_requests(task, task.eval, seeds=[0]) if ask.role == "retain"} == {
        "sea"
    }


def test_pairs_of_the_retain_set_that_name_the_style_are_left_out(miniature: Path, folder: Path) -> None:
    base = make(miniature, folder, concept="sketch", limits={"retain_pairs": 200})
    named = [i for i, caption in enumerate(base.retain.captions) if "sketch" in caption]
    assert named
    assert list(base.mentions) == named


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concept": "Neon"}, "Nearest: neon_lines"),
        ({"concept": "photo"}, "Unknown name 'photo'"),
        ({"concept": ["sketch", "sea"]}, "styles and classes together"),
        ({"concept": []}, r"task.concept: got \[\], want .* a list that is not empty"),
    ],
)
def test_names_that_are_not_there_are_refused(
    miniature: Path, folder: Path, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(miniature, folder, **settings)


def test_too_few_images_are_refused(miniature: Path, tmp_path: Path) -> None:
    for style in ("Neon", "Sketch"):
        for name in ("Cats", "Sea"):
            (tmp_path / style / name).mkdir(parents=True)
            (tmp_path / style / name / "1.jpg").write_bytes(tiny.png(1))
    with pytest.raises(ValueError, match=r"neon: got 2 images in .*, want at least 3: one each for gradient"):
        make(miniature, tmp_path, concept="neon")


def test_a_data_set_without_a_canvas_is_refused(miniature: Path, folder: Path) -> None:
    nothing = dataclasses.replace(of(miniature, folder), canvas=None)
    with pytest.raises(ValueError, match="dataset 'here' has no canvas: give dataset.canvas=FOLDER"):
        datasets.builder("canvas", concept="neon")(nothing)


def test_there_is_nothing_to_curate(miniature: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="forget set is a folder already, there is nothing to curate"):
        datasets.builder("style").curate(of(miniature, folder))
