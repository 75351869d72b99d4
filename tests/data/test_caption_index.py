"""The index of captions: three ways to make it, and what a query finds."""

import json
import os
import tarfile

import pytest
import tiny

from muwa.data import caption_index, parquet, tars
from muwa.data.caption_index import index_captions
from muwa.data.shards import write_shard

CAPTIONS = (
    "Ada Fox",
    "a photo of Beyonc\u00e9",
    "ADA_FOX, Bo Hill's friend",
    "Ada Foxworth",
    "Bo Hill",
    "it's \u0130stanbul",
)


def write(folder, number=0, captions=CAPTIONS):
    samples = [
        (f"{number:05d}{i:04d}", tiny.png(100 * number + i), text, {}) for i, text in enumerate(captions)
    ]
    path = folder / f"{number:05d}.tar"
    write_shard(path, samples)
    return path


def write_parquet(tar, captions, statuses=None):
    """The parquet that img2dataset writes beside a tar, with the columns that muwa reads and one more."""
    rows = {
        "url": [f"http://host/{i}.jpg" for i in range(len(captions))],
        "key": [f"{tar.stem}{i:04d}" for i in range(len(captions))],
        "caption": list(captions),
        "status": statuses or ["success"] * len(captions),
    }
    parquet.write(tar.with_suffix(".parquet"), rows)


def index(folder, *urls):
    return index_captions([str(url) for url in urls], folder / "index", caption_key=None, progress=False)


def captions(found):
    return {name: [match.caption for match in some] for name, some in found.items()}


@pytest.fixture(params=["tar", "parquet", "pipe", "compressed"])
def shard(request, tmp_path):
    """One shard, whose captions are read in four ways."""
    path = write(tmp_path)
    if request.param == "parquet":
        write_parquet(path, CAPTIONS)
    if request.param == "pipe":
        return f"pipe:cat {path}"
    if request.param == "compressed":
        with tarfile.open(path) as plain, tarfile.open(tmp_path / "00000.tar.gz", "w:gz") as small:
            for member in plain:
                small.addfile(member, plain.extractfile(member))
        return tmp_path / "00000.tar.gz"
    return path


def test_names_are_found_as_whole_words_in_any_case_with_or_without_accents(shard, tmp_path):
    found = index(tmp_path, shard).matches({
        "Ada Fox": ["Ada Fox"], "Beyonce": ["Beyonce"], "Bo": ["Bo Hill", "B. Hill"], "Istanbul": ["istanbul"],
        "no": ["Zed", ""],
    })  # fmt: skip
    assert captions(found) == {
        "Ada Fox": [CAPTIONS[0], CAPTIONS[2]], "Beyonce": [CAPTIONS[1]], "Bo": [CAPTIONS[2], CAPTIONS[4]],
        "Istanbul": [CAPTIONS[5]], "no": [],
    }  # fmt: skip


def test_only_the_images_of_the_matches_are_read(shard, tmp_path):
    made = index(tmp_path, shard)
    matches = made.matches({"Bo": ["Bo Hill"]})["Bo"]
    assert [image for _, image in made.images(matches)] == [tiny.png(2), tiny.png(4)]


def test_every_way_gives_the_same_index(shard, tmp_path):
    """So a set that was made with the parquet there is the same without it."""
    made = index(tmp_path, shard).shards[0]
    (tmp_path / "other").mkdir()
    assert made.captions == index(tmp_path / "other", write(tmp_path / "other")).shards[0].captions


def test_samples_that_cannot_be_used_are_counted_and_not_found(tmp_path):
    path = write(tmp_path, captions=("Ada Fox", " ", "Ada Fox here"))
    with tarfile.open(path, "a") as tar:
        for name in ("lonely.txt", "double.jpg", "double.png", "double.txt"):
            member = tarfile.TarInfo(name)
            member.size = 7
            tar.addfile(member, __import__("io").BytesIO(b"Ada Fox"))
    made = index(tmp_path, path)
    searched, broken = made.count()
    assert searched == 2
    assert [(one.where, one.why) for one in broken] == [
        ("00000.tar:000000001", "empty caption"),
        ("00000.tar:double", "2 images under one key"),
        ("00000.tar:lonely", "no image"),  # it waited for its image until the end
    ]
    assert len(made.matches({"Ada": ["Ada Fox"]})["Ada"]) == 2


def test_of_a_parquet_only_downloaded_samples_count(tmp_path):
    path = write(tmp_path, captions=CAPTIONS[:2])
    write_parquet(path, ("Ada Fox", "Ada Fox", None), ["success", "failed_to_download", "success"])
    made = index(tmp_path, path)
    assert made.count()[0] == 1
    assert [one.why for one in made.count()[1]] == ["empty caption"]


def test_a_sample_that_the_parquet_promises_and_the_tar_lacks_gives_no_image(tmp_path):
    path = write(tmp_path, captions=CAPTIONS[:1])
    write_parquet(path, ("Ada Fox", "Ada Fox"))
    made = index(tmp_path, path)
    found = list(made.images(made.matches({"Ada": ["Ada Fox"]})["Ada"]))
    assert [image for _, image in found] == [tiny.png(0), None]


def test_a_parquet_of_other_captions_gives_no_image(tmp_path):
    """A tar that was made again: its captions are others now."""
    path = write(tmp_path, captions=("a dog", "Ada Fox"))
    write_parquet(path, ("Ada Fox", "Ada Fox"))
    made = index(tmp_path, path)
    found = list(made.images(made.matches({"Ada": ["Ada Fox"]})["Ada"]))
    assert [image for _, image in found] == [None, tiny.png(1)]


@pytest.mark.parametrize("damage", ["json", "parquet", "no parquet"])
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    path = write(tmp_path)
    before = index(tmp_path, path)
    about = before.shards[0].file.with_suffix(".json")
    if damage == "json":
        about.write_text("")
    if damage == "parquet":
        before.shards[0].file.write_bytes(before.shards[0].file.read_bytes()[:100])
    if damage == "no parquet":
        before.shards[0].file.unlink()
    made = index(tmp_path, path)
    assert made == before
    assert captions(made.matches({"Bo": ["Bo Hill"]}))["Bo"] == [CAPTIONS[2], CAPTIONS[4]]


def test_another_version_of_the_rows_is_another_index(tmp_path, monkeypatch):
    path = write(tmp_path)
    first = index(tmp_path, path).shards[0].file
    monkeypatch.setattr(caption_index, "VERSION", "0")
    assert index(tmp_path, path).shards[0].file != first


def test_a_parquet_of_something_else_is_not_taken(tmp_path):
    path = write(tmp_path)
    path.with_suffix(".parquet").write_bytes(b"no parquet")
    assert captions(index(tmp_path, path).matches({"Bo": ["Bo Hill"]}))["Bo"] == [CAPTIONS[2], CAPTIONS[4]]


def test_a_cut_tar_is_a_fault_of_the_shard(tmp_path):
    path = write(tmp_path)
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + b"\0" * (-len(content) % 512))  # whole files, but no closing blocks
    (fault,) = index(tmp_path, path).shards[0].faults
    assert fault.where == "00000.tar: after 000000005"
    assert "cut short" in fault.why


def test_a_shard_without_captions_is_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match="none of its 1 samples has a caption: found .jpg, want <key>.txt"):
        index(tmp_path, tmp_path / "0.tar")
    assert list((tmp_path / "index").glob("*.json")) == []


def test_matches_come_in_the_order_of_the_shards(tmp_path):
    second, first = write(tmp_path, 0, ("Ada Fox 1", "Ada Fox 2")), write(tmp_path, 1, ("Ada Fox 0",))
    made = index(tmp_path, first, second)
    found = made.matches({"Ada": ["Ada Fox"]})["Ada"]
    assert [(match.shard, match.caption) for match in found] == [
        (0, "Ada Fox 0"), (1, "Ada Fox 1"), (1, "Ada Fox 2"),
    ]  # fmt: skip
    assert [image for _, image in made.images(found)] == [tiny.png(100), tiny.png(0), tiny.png(1)]


def test_near_words_are_counted_by_caption(tmp_path):
    assert index(tmp_path, write(tmp_path)).near(["ada", "hill", "zed"]) == {"ada": 3, "hill": 2}


def test_a_shard_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path = write(tmp_path)
    before = index(tmp_path, path)
    with monkeypatch.context() as patch:
        patch.setattr(tars, "members", None)
        assert index(tmp_path, path) == before
    write(tmp_path, captions=("Cy Reed",))
    assert captions(index(tmp_path, path).matches({"Cy": ["Cy Reed"]})) == {"Cy": ["Cy Reed"]}


def test_the_places_of_a_parquets_images_are_looked_up_once(tmp_path, monkeypatch):
    path = write(tmp_path)
    write_parquet(path, CAPTIONS)
    made = index(tmp_path, path)
    matches = made.matches({"Bo": ["Bo Hill"]})["Bo"]
    first = list(made.images(matches))
    monkeypatch.setattr(tars, "members", None)
    assert list(made.images(matches)) == first


def test_a_folder_with_a_quote_in_its_name_is_no_trouble(tmp_path):
    folder = tmp_path / "o'clock"
    folder.mkdir()
    found = index(folder, write(folder)).matches({"o": ["it's", "Bo Hill's"]})
    assert captions(found) == {"o": [CAPTIONS[2], CAPTIONS[5]]}


def test_an_index_without_its_json_is_made_again(tmp_path):
    path = write(tmp_path)
    index(tmp_path, path)
    (about,) = (tmp_path / "index").glob("*.json")
    assert json.loads(about.read_text())["faults"] == []
    os.remove(about)
    index(tmp_path, path)
    assert about.is_file()
