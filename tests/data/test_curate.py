import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from muwa.data import curate as module
from muwa.data.curate import curate, load_forget, mentions, read_manifest
from muwa.data.shards import read_pairs, write_shard

CAPTIONS = (
    "a photo of Ada Fox",
    "Bo Hill at home",
    "ADA_FOX, on stage",
    "Ada Foxworth",
    "no one",
    "A. Fox waving",
    "Ada alone",
)


def shards(folder, n=3):
    """`n` shards, each with one sample of every caption."""
    for i in range(n):
        samples = [(f"{i}{j}", tiny.png(100 * i + j), text, {}) for j, text in enumerate(CAPTIONS)]
        write_shard(folder / f"{i:05d}.tar", samples)
    return f"{folder}/{{00000..{n - 1:05d}}}.tar"


def make(urls, out, names=("Ada Fox",), *, aliases=None, limit=None, max_broken=0.0):
    return curate(urls, list(names), aliases=aliases or {}, out=out, limit=limit, max_broken=max_broken, progress=False)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".tar", ".json")
    }


def test_a_set_holds_the_pairs_whose_caption_has_the_name(tmp_path):
    found = make(shards(tmp_path), tmp_path / "out")
    assert found.counts == {"Ada Fox": 6}
    assert found.scanned == 21
    folder = tmp_path / "out" / "Ada_Fox"
    pairs = load_forget(folder)
    assert pairs.captions == ("a photo of Ada Fox", "ADA_FOX, on stage") * 3
    assert pairs.images[2] == tiny.png(100)
    manifest = read_manifest(folder)
    assert manifest["spellings"] == ["Ada Fox"]
    assert [(row["shard"], row["key"]) for row in manifest["matches"][:2]] == [("00000.tar", "00"), ("00000.tar", "02")]


def test_other_spellings_count_too(tmp_path):
    found = make(shards(tmp_path), tmp_path / "out", aliases={"ada_fox": ["A Fox"], "Bo Hill": ["no one"]})
    assert found.counts == {"Ada Fox": 9}


def test_several_names_in_one_scan_and_a_limit(tmp_path):
    found = make(shards(tmp_path), tmp_path / "out", ("Ada Fox", "Bo Hill"), limit=2)
    assert found.counts == {"Ada Fox": 2, "Bo Hill": 2}
    assert load_forget(tmp_path / "out" / "Bo_Hill").captions == ("Bo Hill at home",) * 2


def test_a_name_in_no_caption_says_how_many_were_searched_and_what_is_near(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"Ada Quill: no caption has it; 21 captions of 3 shards.*'ada' in 12.*task.aliases=\{Ada Quill",
    ):
        make(shards(tmp_path), tmp_path / "out", ("Ada Quill",))
    assert not (tmp_path / "out" / "Ada_Quill" / "manifest.json").exists()


def test_a_finished_set_is_not_scanned_again_until_a_shard_changes(tmp_path, monkeypatch):
    urls = shards(tmp_path)
    make(urls, tmp_path / "out")
    before = files(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_scan", None)
        assert make(urls, tmp_path / "out").counts == {"Ada Fox": 6}
    assert files(tmp_path / "out") == before
    write_shard(tmp_path / "00001.tar", [("a", tiny.png(5), "Ada Fox once more", {})])
    assert make(urls, tmp_path / "out").counts == {"Ada Fox": 5}


def test_a_killed_scan_goes_on_and_ends_with_the_same_bytes(tmp_path):
    urls = shards(tmp_path, n=40)
    make(urls, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from muwa.data.curate import curate\n"
        "curate(sys.argv[1], ['Ada Fox'], aliases={}, out=Path(sys.argv[2]), limit=None, max_broken=0.0, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, urls, str(tmp_path / "cut")])
    parts = tmp_path / "cut" / ".progress"
    while len(list(parts.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert 3 <= len(done) < 40
    assert not (tmp_path / "cut" / "Ada_Fox" / "manifest.json").exists()
    with pytest.raises(FileNotFoundError, match="not a finished forget set; write one: python launch.py"):
        load_forget(tmp_path / "cut" / "Ada_Fox")
    kept = {}
    finish = module._finish

    def noting(*arguments):
        kept.update({path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")})
        finish(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_finish", noting)
        make(urls, tmp_path / "cut")
    assert len(kept) == 40
    assert {name: kept[name] for name in done} == done
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_broken_samples_are_counted_and_limited(tmp_path):
    samples = [(str(i), tiny.png(i), "Ada Fox", {}) for i in range(9)] + [("9", b"no picture", "Ada Fox", {})]
    write_shard(tmp_path / "00000.tar", samples)
    found = make(f"{tmp_path}/00000.tar", tmp_path / "a", max_broken=0.1)
    assert found.counts == {"Ada Fox": 9}
    assert [one.where for one in found.broken] == ["00000.tar:9"]
    with pytest.raises(ValueError, match=r"1 of \d+ samples are broken"):
        make(f"{tmp_path}/00000.tar", tmp_path / "b", max_broken=0.05)


def test_a_set_that_was_tampered_with_is_refused(tmp_path):
    make(shards(tmp_path), tmp_path / "out")
    folder = tmp_path / "out" / "Ada_Fox"
    pairs, _ = read_pairs(str(folder / "forget.tar"), limit=5, max_broken=0, progress=False)
    write_shard(
        folder / "forget.tar", [(k, i, c, {}) for k, i, c in zip(pairs.keys, pairs.images, pairs.captions, strict=True)]
    )
    with pytest.raises(ValueError, match=r"forget.tar holds 5 pairs that are not the 6 of manifest.json"):
        load_forget(folder)


def test_the_manifest_says_where_each_pair_came_from(tmp_path):
    make(shards(tmp_path), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "Ada_Fox" / "manifest.json").read_text())
    assert {"schema", "name", "spellings", "limit", "shards", "scanned", "matches", "broken"} == set(manifest)
    assert all(len(row["sha256"]) == 64 for row in manifest["shards"] + manifest["matches"])


def test_mentions_are_the_pairs_that_name_the_forgotten(tmp_path):
    pairs, _ = read_pairs(shards(tmp_path, 1), limit=None, max_broken=0, progress=False)
    assert mentions(pairs, ["Ada Fox"], {}) == (0, 2)
    assert mentions(pairs, ["Ada Fox", "Bo Hill"], {"Ada Fox": ["A Fox"], "Cy Reed": ["no one"]}) == (0, 1, 2, 5)
