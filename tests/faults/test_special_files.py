"""Pipes, sockets, devices, links and folders in place of data: left out and named, or refused; nothing waits for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
from data.datasets import builder, dataset, write_canvas
from special_files import SPECIAL, folder, in_time

from muwa.data.shards import write_shard

KINDS = pytest.mark.parametrize("kind", SPECIAL, ids=lambda kind: kind.__name__)
LIMITS = {"probe_retain": None}


@pytest.fixture
def world(tmp_path) -> Path:
    """Two people x 6 images, two things x 8, one shard."""
    faces = tmp_path / "celeba" / "img_align_celeba"
    faces.mkdir(parents=True)
    rows = [
        f"{100 * p + i:06d}.jpg {name}" for p, name in enumerate(("Ada_Fox", "Bo_Dean")) for i in range(6)
    ]
    for row in rows:
        (faces / row.split()[0]).write_bytes(tiny.png(int(row[:6])))
    (tmp_path / "celeba" / "list_identity_celeba.txt").write_text("\n".join(rows))
    for t, thing in enumerate(("star", "moon")):
        (tmp_path / "objects" / thing).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "objects" / thing / f"{i}.png").write_bytes(tiny.png(1000 + 100 * t + i))
    write_shard(tmp_path / "0.tar", [(f"{i}", tiny.png(i), "Ada Fox here", {}) for i in range(4)])
    return tmp_path


def of(world: Path, **changed):
    return dataset(**{
        "shards": f"{world}/0.tar", "retain": f"{world}/0.tar", "curated": f"{world}/curated", "celeba": f"{world}/celeba",
        "images": f"{world}/objects", "utility": 0.5, "utility_probe": 0.5, "max_broken": 0.5, **changed,
    })  # fmt: skip


def made(world: Path, **changed):
    """The task of forgetting Ada Fox."""
    return builder("celeba", identity="Ada_Fox", limits=LIMITS)(of(world, **changed))


@KINDS
@pytest.mark.parametrize("place", ["celeba/img_align_celeba/000001.jpg", "objects/star/1.png"])
def test_in_place_of_an_image_it_is_left_out_and_named(kind, place, world):
    (world / place).unlink()
    kind(world / place)
    with in_time(20):
        task = made(world)
    named = [one for one in task.broken if Path(place).name in one.where]
    assert named or kind is folder, task.broken  # a folder in a folder of images is no image
    assert len(task.probe.forget) + len(task.eval.forget) >= 5


@KINDS
@pytest.mark.parametrize(("place", "changed"), [
    ("celeba/list_identity_celeba.txt", {}), ("0.tar", {}), ("names.txt", {"identities": "{world}/names.txt"}),
    ("some.txt", {"frequent": "{world}/some.txt"}), ("curated/forget.tar", {"forget": "{world}/curated"}),
])  # fmt: skip
def test_in_place_of_a_file_it_is_refused_by_name(kind, place, changed, world):
    path = world / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    kind(path)
    with in_time(20), pytest.raises((ValueError, OSError)) as caught:
        made(world, **{name: text.format(world=world) for name, text in changed.items()})
    assert re.search(rf"{re.escape(str(world))}|{re.escape(path.name)}", str(caught.value))
    assert "\n" not in str(caught.value).partition("Expected layout")[0]


@KINDS
@pytest.mark.parametrize("name", ["prompts.csv", "prompts.jsonl", "prompts.txt", "prompts.parquet"])
def test_in_place_of_a_prompt_file_it_is_refused_by_name(kind, name, world):
    kind(world / name)
    with in_time(20), pytest.raises((ValueError, OSError), match=name):
        builder("prompts", file=f"{world}/{name}", forget="x").check(of(world))


@KINDS
def test_in_a_folder_of_styles_it_is_left_out_and_named(kind, tmp_path, world):
    canvas = write_canvas(tmp_path / "canvas")
    (canvas / "Sketch" / "Cats" / "1.jpg").unlink()
    kind(canvas / "Sketch" / "Cats" / "1.jpg")
    with in_time(20):
        task = builder("canvas", concept="sketch")(of(world, canvas=str(canvas)))
    assert kind is folder or any("1.jpg" in one.where for one in task.broken)
