import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
from data.datasets import rules

from muwa.data import caption_index
from muwa.data import curate as module
from muwa.data.curate import Preview, curate, load_forget, mentions, preview, read_manifest
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


def make(urls, out, names=("Ada Fox",), *, aliases=None, limit=None, max_broken=0.0, **rest):
    return curate(
        urls, list(names), aliases=aliases or {}, out=out, limit=limit, rules=rules(max_broken, **rest),
        progress=False,
    )  # fmt: skip


def files(folder):
    """The forget sets in a folder of them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("[!.]*/*")}


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
    assert [(row["shard"], row["key"]) for row in manifest["matches"][:2]] == [
        ("00000.tar", "00"),
        ("00000.tar", "02"),
    ]


def test_keys_and_origins_in_the_tar_and_the_manifest_agree(tmp_path):
    urls = shards(tmp_path, 2)
    make(urls, tmp_path / "out")
    folder = tmp_path / "out" / "Ada_Fox"
    manifest = read_manifest(folder)
    rows = [("00000.tar", "00"), ("00000.tar", "02"), ("00001.tar", "10"), ("00001.tar", "12")]
    assert load_forget(folder).keys == ("00000-00", "00000-02", "00001-10", "00001-12")
    assert [(row["shard"], row["key"]) for row in manifest["matches"]] == rows
    assert manifest["matches"][3]["caption"] == "ADA_FOX, on stage"
    assert manifest["matches"][3]["sha256"] == hashlib.sha256(tiny.png(102)).hexdigest()
    assert [row["shard"] for row in manifest["shards"]] == ["00000.tar", "00001.tar"]
    text = "".join(f"2 {len(text)} 0{j}{text}" for j, text in enumerate(CAPTIONS))
    assert manifest["shards"][0]["captions"] == hashlib.sha256(text.encode()).hexdigest()
    assert (manifest["name"], manifest["limit"], manifest["scanned"], manifest["broken"]) == (
        "Ada Fox",
        None,
        14,
        [],
    )


def test_a_limit_keeps_the_first_over_all_shards(tmp_path):
    make(shards(tmp_path), tmp_path / "out", limit=3)
    assert load_forget(tmp_path / "out" / "Ada_Fox").keys == ("00000-00", "00000-02", "00001-10")


def test_shards_of_a_pipe_are_curated_like_files(tmp_path):
    urls = shards(tmp_path, 1)
    make(urls, tmp_path / "file")
    make(f"pipe:cat {tmp_path}/00000.tar", tmp_path / "pipe")
    folders = [tmp_path / where / "Ada_Fox" for where in ("file", "pipe")]
    assert load_forget(folders[0]) == load_forget(folders[1])


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
        match=r"Ada Quill: no caption contains it. Searched 21 captions in 3 shards.*'ada' in 12.*'task.aliases.Ada Quill=\[SPELLING\]'",
    ):
        make(shards(tmp_path), tmp_path / "out", ("Ada Quill",))
    assert not (tmp_path / "out" / "Ada_Quill" / "manifest.json").exists()


def test_a_finished_set_is_not_scanned_again_until_a_shard_changes(tmp_path, monkeypatch):
    urls = shards(tmp_path)
    make(urls, tmp_path / "out")
    before = files(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_set", None)
        assert make(urls, tmp_path / "out").counts == {"Ada Fox": 6}
    assert files(tmp_path / "out") == before
    write_shard(tmp_path / "00001.tar", [("a", tiny.png(5), "Ada Fox once more", {})])
    assert make(urls, tmp_path / "out").counts == {"Ada Fox": 5}


def test_a_second_call_writes_nothing(tmp_path):
    urls = shards(tmp_path)
    make(urls, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "Ada_Fox").iterdir()}
    again = make(urls, tmp_path / "out")
    assert len(times) == 2
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (again.counts, again.scanned) == ({"Ada Fox": 6}, 21)


def test_a_shard_rewritten_with_the_same_size_is_scanned_anew(tmp_path):
    path = tmp_path / "00000.tar"
    write_shard(path, [("0", tiny.png(0), "Ada Fox", {}), ("1", tiny.png(1), "Ada Fox", {})])
    make(str(path), tmp_path / "out")
    size = path.stat().st_size
    write_shard(path, [("0", tiny.png(0), "Ada Fox", {}), ("1", tiny.png(1), "Bo Hill", {})])
    assert path.stat().st_size == size
    assert make(str(path), tmp_path / "out").counts == {"Ada Fox": 1}


@pytest.mark.parametrize("changed", [{"limit": 1}, {"aliases": {"Ada Fox": ["A Fox"]}}])
def test_another_request_is_curated_anew(tmp_path, changed):
    urls = shards(tmp_path)
    make(urls, tmp_path / "out")
    make(urls, tmp_path / "fresh", **changed)
    make(urls, tmp_path / "out", **changed)
    folders = [tmp_path / where / "Ada_Fox" for where in ("out", "fresh")]
    assert read_manifest(folders[0])["matches"] == read_manifest(folders[1])["matches"]
    assert load_forget(folders[0]) == load_forget(folders[1])


def test_a_full_disk_loses_only_the_shard_that_was_being_indexed(tmp_path, monkeypatch):
    urls = shards(tmp_path, n=5)
    make(urls, tmp_path / "whole")
    written = []
    write = caption_index.parquet.write

    def full_disk(path, columns, **types):
        written.append(path)
        if len(written) == 4:
            raise OSError("no space left on device")
        write(path, columns, **types)

    with monkeypatch.context() as patch:
        patch.setattr(caption_index.parquet, "write", full_disk)
        with pytest.raises(OSError, match="no space left"):
            make(urls, tmp_path / "cut")
    assert len(list((tmp_path / "cut" / ".index").glob("*.json"))) == 3
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            caption_index.parquet, "write",
            lambda path, columns, **types: written.append(path) or write(path, columns, **types),
        )  # fmt: skip
        make(urls, tmp_path / "cut")
    assert len(written) == 2  # three shards were indexed before
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    urls = shards(tmp_path, n=40)
    make(urls, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from muwa.data.curate import curate\n"
        "from muwa.data.samples import ShardRules\n"
        "curate(sys.argv[1], ['Ada Fox'], aliases={}, out=Path(sys.argv[2]), limit=None, rules=ShardRules(None, 0.0, 0.0), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, urls, str(tmp_path / "cut")])
    index = tmp_path / "cut" / ".index"
    while len(list(index.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in index.glob("*.json")}
    assert 3 <= len(done) < 40
    assert not (tmp_path / "cut" / "Ada_Fox" / "manifest.json").exists()
    with pytest.raises(FileNotFoundError, match="not a finished forget set; write one: python launch.py"):
        load_forget(tmp_path / "cut" / "Ada_Fox")
    make(urls, tmp_path / "cut")
    kept = {path.name: path.stat().st_mtime_ns for path in index.glob("*.json")}
    assert len(kept) == 40
    assert {name: kept[name] for name in done} == done
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


LARGE = tiny.png(1) + bytes(20_000)  # a PNG with more bytes after its end
FLAKY = """
import sys
from pathlib import Path
tar, count = Path(sys.argv[1]), Path(sys.argv[2])
calls = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(calls))
content = tar.read_bytes()
broken = calls == int(sys.argv[3])
sys.stdout.buffer.write(content[: len(content) // 4] if broken else content)
sys.exit(7 if broken else 0)
"""


@pytest.mark.parametrize("call", [1, 2])
def test_a_remote_shard_that_breaks_off_is_no_finished_scan(tmp_path, call):
    """It breaks off while it is indexed (1), or while its images are read (2); the next run is whole."""
    write_shard(tmp_path / "0.tar", [(f"{i:03d}", tiny.png(i), "Ada Fox", {}) for i in range(40)])
    (tmp_path / "flaky.py").write_text(FLAKY)
    url = f"pipe:{sys.executable} {tmp_path}/flaky.py {tmp_path}/0.tar {tmp_path}/calls {call}"
    with pytest.raises((ValueError, OSError), match="samples are broken|broke off|nothing could be read"):
        make(url, tmp_path / "out", max_broken=0.1)
    assert not (tmp_path / "out" / "Ada_Fox" / "manifest.json").exists()
    assert make(url, tmp_path / "out", max_broken=0.1).counts == {"Ada Fox": 40}


def test_a_damaged_shard_is_said_and_counts_as_a_shard(tmp_path, capsys):
    urls = shards(tmp_path, 4)
    (tmp_path / "00003.tar").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"shards searched for Ada Fox: 1 of 4 samples are broken \(25.0%\)"):
        make(urls, tmp_path / "out", max_broken=0.1)
    assert "00003.tar: after the start" in capsys.readouterr().err
    assert make(urls, tmp_path / "out", max_broken=0.3).counts == {"Ada Fox": 6}


def test_two_samples_under_one_key_keep_their_own_images(tmp_path):
    samples = [
        ("a", tiny.png(1), "Ada Fox", {}),
        ("b", tiny.png(2), "x", {}),
        ("a", tiny.png(3), "Ada Fox 2", {}),
    ]
    write_shard(tmp_path / "0.tar", samples)
    make(str(tmp_path / "0.tar"), tmp_path / "out")
    pairs = load_forget(tmp_path / "out" / "Ada_Fox")
    assert pairs.images == (tiny.png(1), tiny.png(3))
    assert len(set(pairs.keys)) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("v1.0-0.tar", "v1.0-1.tar"),
        ("0.tar", "0-1.tar"),
        ("a/0.tar", "a/0.tar"),
        ("size=7/0.tar", "key=1/1.tar"),
    ],
)
def test_sets_of_shards_with_awkward_names_can_be_loaded(tmp_path, names):
    for i, name in enumerate(names):
        write_shard(tmp_path / name, [("1-a" if i == 0 else "a", tiny.png(i), "Ada Fox", {})])
    found = make([str(tmp_path / name) for name in names], tmp_path / "out")
    assert len(load_forget(tmp_path / "out" / "Ada_Fox")) == found.counts["Ada Fox"] == len(set(names))


def test_a_failed_run_leaves_the_earlier_set(tmp_path):
    urls = shards(tmp_path, 1)
    make(urls, tmp_path / "out")
    before = files(tmp_path / "out")
    bad = [("0", tiny.png(1), "Ada Fox", {}), ("1", b"no image", "Ada Fox", {})]
    write_shard(tmp_path / "bad.tar", bad)
    with pytest.raises(ValueError, match="1 of 2 samples are broken"):
        make(str(tmp_path / "bad.tar"), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_a_tar_with_other_images_under_the_same_captions_is_curated_anew(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path, [("0", tiny.png(0), "Ada Fox", {})])
    make(str(path), tmp_path / "out")
    write_shard(path, [("0", LARGE, "Ada Fox", {})])
    make(str(path), tmp_path / "out")
    assert load_forget(tmp_path / "out" / "Ada_Fox").images == (LARGE,)


@pytest.mark.parametrize(("names", "limit", "said"), [
    ((), None, "no name to forget"),
    (("../Ada",), None, "cannot take '../Ada' as a name"),
    (("!!",), None, "cannot take '!!' as a name"),
    (("Ada Fox",), 0, "task.limits.forget_pairs: got 0, want at least 1"),
])  # fmt: skip
def test_requests_that_cannot_be_met_are_refused(tmp_path, names, limit, said):
    with pytest.raises(ValueError, match=said):
        make(shards(tmp_path, 1), tmp_path / "out", names, limit=limit)


def test_a_complete_set_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    urls = shards(tmp_path, 1)
    make(urls, tmp_path / "out")

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    assert make(urls, tmp_path / "out").counts == {"Ada Fox": 2}


def test_a_preview_counts_and_writes_no_set(tmp_path):
    found = preview(
        shards(tmp_path), ["Ada Fox", "Bo Hill", "Hill Ada"], aliases={"Ada Fox": ["A Fox"]},
        out=tmp_path / "out", caption_key=None, progress=False,
    )  # fmt: skip
    texts = ("a photo of Ada Fox", "ADA_FOX, on stage", "A. Fox waving")
    assert found["Ada Fox"] == Preview(9, 3, texts * 3, {})
    assert found["Bo Hill"] == Preview(3, 3, ("Bo Hill at home",) * 3, {})
    assert found["Hill Ada"] == Preview(0, 0, (), {"hill": 3, "ada": 12})
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []


def test_broken_samples_are_counted_and_limited(tmp_path):
    samples = [(str(i), tiny.png(i), "Ada Fox", {}) for i in range(9)] + [("9", b"no image", "Ada Fox", {})]
    write_shard(tmp_path / "00000.tar", samples)
    found = make(f"{tmp_path}/00000.tar", tmp_path / "a", max_broken=0.1)
    assert found.counts == {"Ada Fox": 9}
    assert [one.where for one in found.broken] == ["00000.tar:9"]
    with pytest.raises(ValueError, match=r"1 of \d+ samples are broken"):
        make(f"{tmp_path}/00000.tar", tmp_path / "b", max_broken=0.05)


def test_a_set_that_was_tampered_with_is_refused(tmp_path):
    make(shards(tmp_path), tmp_path / "out")
    folder = tmp_path / "out" / "Ada_Fox"
    pairs, _ = read_pairs(str(folder / "forget.tar"), rules(0), limit=5, progress=False)
    write_shard(
        folder / "forget.tar",
        [(k, i, c, {}) for k, i, c in zip(pairs.keys, pairs.images, pairs.captions, strict=True)],
    )
    with pytest.raises(ValueError, match=r"forget.tar holds 5 pairs that are not the 6 of manifest.json"):
        load_forget(folder)


def test_another_image_under_the_same_key_is_refused(tmp_path):
    make(shards(tmp_path, 1), tmp_path / "out")
    folder = tmp_path / "out" / "Ada_Fox"
    pairs = load_forget(folder)
    write_shard(
        folder / "forget.tar",
        [(k, tiny.png(9), c, {}) for k, c in zip(pairs.keys, pairs.captions, strict=True)],
    )
    with pytest.raises(
        ValueError, match=r"holds 2 pairs that are not the 2 of manifest.json; remove the folder"
    ):
        load_forget(folder)


def test_another_caption_is_refused(tmp_path):
    make(shards(tmp_path, 1), tmp_path / "out")
    folder = tmp_path / "out" / "Ada_Fox"
    pairs = load_forget(folder)
    write_shard(
        folder / "forget.tar", [(k, i, "Bo Hill", {}) for k, i in zip(pairs.keys, pairs.images, strict=True)]
    )
    with pytest.raises(ValueError, match=r"not the 2 of manifest.json"):
        load_forget(folder)


def test_a_bad_image_is_counted_once(tmp_path):
    samples = [(str(i), tiny.png(i), "Ada Fox", {}) for i in range(9)] + [("9", b"no image", "Ada Fox", {})]
    write_shard(tmp_path / "00000.tar", samples)
    with pytest.raises(ValueError, match=r"1 of 10 samples are broken \(10.0%\)"):
        make(f"{tmp_path}/00000.tar", tmp_path / "out", max_broken=0.095)


def test_a_manifest_does_not_depend_on_who_else_was_asked_for(tmp_path):
    samples = [
        ("0", tiny.png(0), "Ada Fox", {}),
        ("1", b"no image", "Ada Fox", {}),
        ("2", tiny.png(2), "Bo Hill", {}),
    ]
    write_shard(tmp_path / "00000.tar", samples)
    make(f"{tmp_path}/00000.tar", tmp_path / "both", ("Ada Fox", "Bo Hill"), max_broken=1.0)
    make(f"{tmp_path}/00000.tar", tmp_path / "alone", ("Bo Hill",), max_broken=1.0)
    assert read_manifest(tmp_path / "both" / "Bo_Hill") == read_manifest(tmp_path / "alone" / "Bo_Hill")


def test_a_name_given_twice_is_curated_once(tmp_path):
    assert make(shards(tmp_path), tmp_path / "out", ("Ada Fox", "Ada Fox")).counts == {"Ada Fox": 6}


def test_shards_of_one_name_in_two_folders_do_not_collide(tmp_path):
    for i, where in enumerate("ab"):
        write_shard(tmp_path / where / "00000.tar", [("0", tiny.png(i), "Ada Fox", {})])
    make([f"{tmp_path}/a/00000.tar", f"{tmp_path}/b/00000.tar"], tmp_path / "out")
    assert load_forget(tmp_path / "out" / "Ada_Fox").images == (tiny.png(0), tiny.png(1))


def test_samples_without_caption_or_image_are_named_in_the_manifest(tmp_path):
    samples = [
        ("0", tiny.png(0), "Ada Fox", {}),
        ("1", tiny.png(1), " ", {}),
        ("2", tiny.png(2), "no one", {}),
    ]
    write_shard(tmp_path / "00000.tar", samples)
    found = make(f"{tmp_path}/00000.tar", tmp_path / "out", max_broken=0.34)
    assert [(one.where, one.why) for one in found.broken] == [("00000.tar:1", "empty caption")]
    assert found.scanned == 2
    assert read_manifest(tmp_path / "out" / "Ada_Fox")["broken"] == [
        {"where": "00000.tar:1", "why": "empty caption", "kind": "empty caption"}
    ]


def test_a_missing_shard_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="1 of 1 shards are missing"):
        make(f"{tmp_path}/9.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_without_any_of_its_words_says_so(tmp_path):
    with pytest.raises(
        ValueError, match=r"for 'Zed Quill', 'Z\. Q' as whole words; single words found: none\."
    ):
        make(shards(tmp_path), tmp_path / "out", ("Zed Quill",), aliases={"zed_quill": ["Z. Q"]})


def test_the_manifest_says_where_each_pair_came_from(tmp_path):
    make(shards(tmp_path), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "Ada_Fox" / "manifest.json").read_text())
    assert {"schema", "name", "spellings", "limit", "shards", "scanned", "matches", "broken"} == set(manifest)
    assert all(len(row["captions"]) == 64 for row in manifest["shards"])
    assert all(len(row["sha256"]) == 64 for row in manifest["matches"])


def test_mentions_are_the_pairs_that_name_the_forgotten(tmp_path):
    pairs, _ = read_pairs(shards(tmp_path, 1), rules(0), limit=None, progress=False)
    assert mentions(pairs, ["Ada Fox"], {}) == (0, 2)
    assert mentions(pairs, ["Ada Fox", "Bo Hill"], {"Ada Fox": ["A Fox"], "Cy Reed": ["no one"]}) == (
        0,
        1,
        2,
        5,
    )
    assert mentions(pairs, ["ada_fox"], {"ADA FOX": ["Ada alone"]}) == (0, 2, 6)
    assert mentions(pairs, ["Cy Reed"], {}) == ()
