"""The retain set is read once in a process; a large one stays in its tars."""

import pickle

import pytest
import tiny
from data.datasets import rules

from muwa.data import retain
from muwa.data.retain import read_retain
from muwa.data.shards import read_pairs, write_shard
from muwa.fingerprint import FileSlice, image_digest, read_image


@pytest.fixture(autouse=True)
def fresh():
    retain._read_local.cache_clear()


@pytest.fixture
def shards(tmp_path):
    """Two shards of four pairs; two images are broken."""
    for i in range(2):
        samples = [(f"{i}{j}", tiny.png(10 * i + j), f"caption {i}{j}", {}) for j in range(4)]
        if i:
            samples[1] = ("11", b"no image", "caption 11", {})
            samples[2] = ("12", b"no image either", "caption 12", {})
        write_shard(tmp_path / f"{i}.tar", samples)
    return [str(tmp_path / f"{i}.tar") for i in range(2)]


def read(urls, limit=None, max_broken=0.5, **rest):
    return read_retain(urls, rules(max_broken, **rest), limit=limit, progress=False)


@pytest.mark.parametrize("limit", [None, 3, 5])
def test_a_set_in_its_tars_is_the_set_in_memory(shards, limit, monkeypatch):
    want, want_broken = read_pairs(shards, rules(0.5), limit=limit, progress=False)
    monkeypatch.setattr(retain, "IN_MEMORY", 0)
    found, broken = read(shards, limit)
    assert all(isinstance(image, FileSlice) for image in found.images)
    assert (found.keys, found.captions) == (want.keys, want.captions)
    assert tuple(map(read_image, found.images)) == want.images
    assert found.fingerprint == want.fingerprint
    assert found.select([0, 2]).fingerprint == want.select([0, 2]).fingerprint
    assert image_digest(found.images[0]) == image_digest(want.images[0])
    if limit is None:
        assert [one.where for one in broken] == [one.where for one in want_broken] == ["1.tar:11", "1.tar:12"]


def test_it_holds_no_image(shards, monkeypatch):
    monkeypatch.setattr(retain, "IN_MEMORY", 0)
    assert (
        len(pickle.dumps(read(shards)[0]))
        < 2_000
        < sum(map(len, read_pairs(shards, rules(0.5), limit=None, progress=False)[0].images))
    )


def test_too_many_broken_are_refused_in_both_ways(shards, monkeypatch):
    for limit in (retain.IN_MEMORY, 0):
        monkeypatch.setattr(retain, "IN_MEMORY", limit)
        with pytest.raises(ValueError, match=r"2 of 8 samples are broken \(25.0%\)"):
            read(shards, max_broken=0.2)


def test_a_second_run_reads_nothing_until_a_shard_changes(shards, monkeypatch):
    first = read(shards)
    with monkeypatch.context() as patch:
        patch.setattr(retain, "read_pairs", None)
        assert read(shards) is first
    write_shard(__import__("pathlib").Path(shards[1]), [("new", tiny.png(5), "new", {})])
    assert read(shards)[0].keys == ("00", "01", "02", "03", "new")


def test_a_remote_shard_is_read_again(shards):
    url = f"pipe:cat {shards[0]}"
    assert read(url)[0] is not read(url)[0]
