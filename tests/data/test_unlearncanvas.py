"""UnlearnCanvas-like folders and the tasks made of them."""

import dataclasses
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import tiny

from muwa.data.prompts import image_requests
from muwa.data.tasks import Dataset
from muwa.data.unlearncanvas import canvas, read_canvas
from muwa.types.data import LabelledImages, Task

STYLES, CLASSES = ("Neon_Lines", "Sketch", "Seed_Images"), ("Cats", "Sea")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three styles of two classes, ten pictures each."""
    root = tmp_path_factory.mktemp("canvas")
    for i, style in enumerate(STYLES):
        for j, name in enumerate(CLASSES):
            (root / style / name).mkdir(parents=True)
            for k in range(10):
                (root / style / name / f"{k + 1}.jpg").write_bytes(tiny.png(1000 * i + 100 * j + k))
    return root


def make(miniature: Path, folder: Path, **settings) -> Task:
    """Of 40 pairs of the miniature's first shard."""
    settings.setdefault("limits", {"retain_pairs": 40, "probe_retain": 2, "eval_retain": 4})
    return canvas(_of(miniature, folder), **{"concept": "neon lines", **settings})


def test_the_layout_is_read_in_the_order_of_numbers(folder: Path) -> None:
    found = read_canvas(folder)
    assert found.styles == ("neon lines", "photo", "sketch")
    assert found.classes == ("cats", "sea")
    assert [path.name for path in found.files["photo", "sea"]][-2:] == ["9.jpg", "10.jpg"]


def test_a_style_with_its_pairs_and_pictures(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder)
    assert (task.kind, task.names) == ("style", ("neon lines",))
    pairs = task.forget["neon lines"]
    assert len(pairs) == 12  # 20 pictures, 0.4 of them judged: 4 for the search, 4 for the report
    assert set(pairs.captions) == {"A cats image in neon lines style.", "A sea image in neon lines style."}
    assert (len(task.probe.forget), len(task.eval.forget)) == (4, 4)
    assert task.probe.forget.classes.names == ("neon lines", "photo", "sketch")
    assert (len(task.probe.retain), len(task.eval.retain)) == (2 * 2, 2 * 4)
    assert {task.eval.utility.classes.names[label] for label in task.eval.utility.labels} == {"cats", "sea"}
    bare = make(miniature, folder, bare_captions=True)
    assert set(bare.forget["neon lines"].captions) == {"neon lines"}


def test_no_picture_is_in_two_places(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder)
    places = [
        set(getattr(split, part).images)
        for split in (task.probe, task.eval)
        for part in ("forget", "retain", "utility")
    ]
    assert all(not first & second for first, second in combinations(places, 2))
    judged = {path.read_bytes() for place in places for path in place}
    assert not judged & set(task.forget["neon lines"].images)


def shown(pictures: LabelledImages) -> Counter:
    """How many pictures lie in each class folder."""
    return Counter(path.parent.name for path in pictures.images)


def test_search_and_report_see_the_same_classes_equally_often(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder)
    assert shown(task.probe.forget) == shown(task.eval.forget) == {"Cats": 2, "Sea": 2}


def test_few_pictures_of_each_other_style_do_not_all_show_the_first_class(miniature: Path, folder: Path) -> None:
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


def test_broken_pictures_are_left_out_and_named(miniature: Path, folder: Path, tmp_path: Path) -> None:
    spoilt = shutil.copytree(folder, tmp_path / "canvas")
    whole = make(miniature, folder)
    pair, judged = whole.forget["neon lines"].keys[0], whole.eval.forget.keys[0]
    (spoilt / pair).write_bytes(b"")
    (spoilt / judged).write_bytes(b"no picture")
    data = dataclasses.replace(_of(miniature, spoilt), max_broken=0.25)
    task = canvas(data, concept="neon_lines", limits={"retain_pairs": 1})
    assert pair not in task.forget["neon lines"].keys
    assert (len(task.forget["neon lines"]), len(task.eval.forget)) == (11, 3)
    assert {one.where for one in task.broken} == {pair, judged}
    with pytest.raises(ValueError, match=r"1 of 12 samples are broken \(8.3%\)"):
        canvas(dataclasses.replace(data, max_broken=0.01), concept="neon_lines", limits={"retain_pairs": 1})


def test_a_class_is_found_by_its_name_and_asked_for_with_every_style(miniature: Path, folder: Path) -> None:
    task = make(miniature, folder, concept="Cats")
    assert (task.kind, task.names) == ("class", ("cats",))
    wanted = [ask for ask in image_requests(task, task.eval, seeds=[0]) if ask.role == "forget"]
    assert [ask.text for ask in wanted] == [
        f"A cats image in {style} style." for style in ("neon lines", "photo", "sketch")
    ]
    assert {ask.concept for ask in image_requests(task, task.eval, seeds=[0]) if ask.role == "retain"} == {"sea"}


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
        ({"concept": []}, "no name to forget"),
    ],
)
def test_names_that_are_not_there_are_refused(miniature: Path, folder: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(miniature, folder, **settings)


def test_folders_that_are_no_canvas_are_refused(miniature: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder.*want <style>/<class>"):
        read_canvas(tmp_path / "none")
    (tmp_path / "Neon" / "Cats").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="found \\['Neon'\\]"):
        read_canvas(tmp_path)
    for place in ("Neon/Cats", "Neon/Sea", "Sketch/Cats"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "1.jpg").write_bytes(tiny.png(1))
    with pytest.raises(ValueError, match="no pictures in sketch/sea"):
        read_canvas(tmp_path)
    with pytest.raises(ValueError, match="3 are needed"):
        canvas(_of(miniature, _small(tmp_path)), concept="neon")
    nothing = dataclasses.replace(_of(miniature, folder), canvas=None)
    with pytest.raises(ValueError, match="has no canvas: give dataset.canvas=FOLDER"):
        canvas(nothing, concept="neon")


def _of(miniature: Path, folder: Path) -> Dataset:
    shard = f"{miniature}/world/shards/00000.tar"
    return Dataset(shards=shard, retain=shard, curated="", celeba="", images="", name="here", canvas=str(folder))


def _small(root: Path) -> Path:
    """One picture of each: too few to judge on."""
    (root / "Sketch" / "Sea").mkdir(parents=True, exist_ok=True)
    (root / "Sketch" / "Sea" / "1.jpg").write_bytes(tiny.png(1))
    return root
