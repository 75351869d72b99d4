import hashlib
import io
import json
import tarfile
import time

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from PIL import Image

from muwa.data.celeba import read_celeba
from muwa.data.imagenet import read_folder
from muwa.data.samples import ShardRules, fold
from muwa.data.shards import read_pairs
from muwa.data.unlearncanvas import read_canvas
from muwa.miniature import data, images, population


@pytest.fixture(scope="module")
def shard(miniature):
    with tarfile.open(miniature / "world" / "shards" / "00000.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def test_a_shard_is_laid_out_as_img2dataset_lays_it_out(shard, miniature):
    keys = {name.split(".")[0] for name in shard}
    assert set(shard) == {f"{key}.{ending}" for key in keys for ending in ("jpg", "txt", "json")}
    meta = json.loads(shard["000000000.json"])
    assert {
        "url",
        "key",
        "status",
        "error_message",
        "width",
        "height",
        "original_width",
        "exif",
        "sha256",
        "caption",
    } <= set(meta)
    assert hashlib.sha256(shard["000000000.jpg"]).hexdigest() == meta["sha256"]
    assert shard["000000000.txt"].decode() == meta["caption"]
    stats = json.loads((miniature / "world" / "shards" / "00000_stats.json").read_text())
    assert stats["successes"] == len(keys)


def test_images_are_a_function_of_their_number(shard):
    meta = json.loads(shard["000000007.json"])
    same = [one for one in images.training_images()[:: data.SHARDS] if one.name == meta["name"]]
    rendered = {hashlib.sha256(images.jpeg(one.render().rgb)).hexdigest() for one in same}
    assert meta["sha256"] in rendered


@pytest.mark.whole
def test_held_out_images_are_in_no_shard(miniature):
    root = miniature / "world"
    pairs, broken = read_pairs(
        f"{root}/shards/{{00000..00011}}.tar", ShardRules(None, 0, 0), limit=None, progress=False
    )
    assert not broken
    assert len(pairs) == 100 * images.PER_PERSON + 100 * images.PER_OBJECT == 15200
    people = read_celeba(root / "celeba", identities=None, frequent=None)
    held_out = [file.read_bytes() for files in people.files.values() for file in files]
    things, _ = read_folder(root / "objects", templates=["{}"], fraction=1, seed=0, max_broken=0)
    held_out += [image.read_bytes() for image in things.images]
    held_out += [path.read_bytes() for files in read_canvas(root / "canvas").files.values() for path in files]
    held_out += [path.read_bytes() for path in (root / "vqa" / "images").iterdir()]
    assert len(held_out) == 3200 + 1800 + 380
    assert len({*held_out}) == 5380
    assert not {*held_out} & {*pairs.images}


def test_the_folders_name_everybody(miniature):
    root = miniature / "world"
    people = read_celeba(root / "celeba", identities=None, frequent=None)
    assert people.names == people.frequent[:0] + tuple(sorted(p.name for p in population.people()))
    assert set(people.frequent) == set(people.names)
    assert {len(files) for files in people.files.values()} == {data.HELD_OUT_PERSON}
    things, _ = read_folder(root / "objects", templates=["{}"], fraction=1, seed=0, max_broken=0)
    assert {fold(name) for name in things.classes.names} == set(population.OBJECTS)
    assert Image.open(io.BytesIO(things.images[0].read_bytes())).size == (64, 64)


def test_the_canvas_has_every_class_in_every_style(miniature):
    root = miniature / "world" / "canvas"
    found = read_canvas(root)
    assert sorted(found.styles) == sorted([*population.STYLES, "photo"])
    assert found.classes == tuple(sorted(population.SHAPES))
    numbers = [f"{i}.jpg" for i in range(1, data.CANVAS_IMAGES + 1)]
    assert all([path.name for path in files] == numbers for files in found.files.values())
    assert sum(map(len, found.files.values())) == 9 * 10 * 20
    assert (root / "Neon" / "Star" / "1.jpg").is_file()
    assert (root / "Seed_Images" / "Bar" / "20.jpg").is_file()


def test_a_folder_of_a_style_has_images_in_that_style(miniature):
    root = miniature / "world" / "canvas"

    def spread(style):
        """Mean difference between the colour channels: none in a sketch."""
        files = sorted((root / style / "Ball").iterdir())
        return np.mean([np.ptp(np.array(Image.open(file)).astype(float), axis=2).mean() for file in files])

    assert spread("Sketch") < 10 < spread("Seed_Images")


def test_a_miniature_that_is_there_is_left_alone(miniature):
    stamp = (miniature / "world" / "version.txt").stat().st_mtime_ns
    started = time.perf_counter()
    assert list(data.write(miniature / "world")) == []
    assert time.perf_counter() - started < 5
    assert (miniature / "world" / "version.txt").stat().st_mtime_ns == stamp


def test_a_miniature_that_is_half_written_does_not_count(tmp_path):
    (tmp_path / "world").mkdir()
    assert not data.is_written(tmp_path / "world")
    (tmp_path / "world" / "version.txt").write_text("0")
    assert not data.is_written(tmp_path / "world")


@pytest.mark.whole
def test_workers_of_joblib_draw_the_miniature_once(tmp_path):
    def images_without_shards():
        data.SHARDS, data.CANVAS_STYLES = 0, ()  # in a worker, to be quick
        return list(data.write(tmp_path / "world"))

    with parallel_config("loky", n_jobs=2):
        found = Parallel()(delayed(images_without_shards)() for _ in range(2))
    get_reusable_executor().shutdown()
    assert sorted(found) == [[], [(1, 3), (2, 3), (3, 3)]]
    assert data.is_written(tmp_path / "world")


def test_the_outline_has_the_names_of_the_drawn_miniature(miniature, tmp_path):
    data.write_outline(tmp_path / "outline")
    drawn = {
        path.relative_to(miniature / "world").as_posix()
        for path in (miniature / "world").rglob("*")
        if path.is_file()
    }
    found = {
        path.relative_to(tmp_path / "outline").as_posix(): path
        for path in (tmp_path / "outline").rglob("*")
        if path.is_file()
    }
    others = {name for name in drawn if name.startswith("vqa/") or name.endswith("_stats.json")}
    assert drawn - {*found} == others | {"version.txt"}
    assert not {*found} - drawn
    for name in ("celeba/list_identity_celeba.txt", "celeba/frequent_celebs.txt"):
        assert found[name].read_text() == (miniature / "world" / name).read_text()
