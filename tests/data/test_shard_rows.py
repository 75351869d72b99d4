"""Every reader of shards gives the same pairs: compared on random archives with Python's tarfile."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from data.datasets import rules

from muwa.data.caption_index import index_captions
from muwa.data.shard_rows import MAX_TEXT
from muwa.data.shards import iter_samples, read_pairs

LAYOUTS = ("together", "by kind", "by kind, captions first")
CAPTIONS = ("txt", "TXT", "caption", "text", "json")


def archive(seed: int) -> list[tuple[str, bytes]]:
    """The files of a random tar: its layout, kind of captions, keys and gaps are drawn."""
    draw = random.Random(seed)
    layout, ending = draw.choice(LAYOUTS), draw.choice(CAPTIONS)
    pattern = draw.choice(["{:05d}", "a.{}", "{}.0", "d.e/{}", "x{}.y.z", "./{:03d}"])
    kinds: dict[str, list[tuple[str, bytes]]] = {"image": [], "caption": [], "json": [], "more": []}
    samples = []
    for i in range(draw.randint(1, 25)):
        key, caption = pattern.format(i), draw.choice([f"caption {i}", f" é {i}\n", "", "  "])
        fields = {"caption": caption, "url": "u"} if ending == "json" else {"url": "u"}
        files = {
            "image": (f"{key}.{draw.choice(['jpg', 'JPG', 'png', 'webp', 'jpeg'])}", draw.randbytes(draw.randint(1, 2000))),
            "caption": (f"{key}.{ending}", caption.encode()),
            "json": (f"{key}.json", json.dumps(fields).encode()),
            "more": (f"{key}.cls", b"1"),
        }  # fmt: skip
        left_out = {"more"} if draw.random() < 0.5 else set()
        left_out |= {draw.choice(["image", "caption", "json"])} if draw.random() < 0.2 else set()
        left_out |= (
            {"json" if ending != "json" else "caption"} if ending == "json" or draw.random() < 0.3 else set()
        )
        kept = [(kind, file) for kind, file in files.items() if kind not in left_out]
        if layout == "together":
            draw.shuffle(kept)
        samples += [file for _, file in kept]
        for kind, file in kept:
            kinds[kind].append(file)
    order = (
        ("image", "caption", "json", "more") if layout == LAYOUTS[1] else ("more", "json", "caption", "image")
    )
    return samples if layout == "together" else [file for kind in order for file in kinds[kind]]


def expected(path: Path) -> dict[str, tuple[bytes, str]]:
    """Key -> (image, caption) by Python's tarfile and nothing of muwa: names are equal up to the last dot."""
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            stem, _, ending = member.name.rpartition(".")
            files.setdefault(stem, {})[ending.lower()] = tar.extractfile(member).read()
    pairs = {}
    for stem, some in files.items():
        image = next((some[one] for one in ("jpg", "jpeg", "png", "webp") if one in some), None)
        text = next((some[one].decode() for one in ("txt", "caption", "text") if one in some), None)
        if text is None:
            text = json.loads(some.get("json", b"{}")).get("caption")
        if image is not None and text is not None and text.strip():
            pairs[stem] = (image, text.strip())
    return pairs


def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return path


def by_iterator(url: str) -> list[tuple[str, bytes, str]]:
    return list(iter_samples(url, [], caption_key=None, verify=False))


def by_index(url: str, folder: Path) -> list[tuple[str, bytes, str]]:
    """All pairs through the index: every caption has one of these words, or another letter."""
    index = index_captions([url], folder, caption_key=None, progress=False)
    found = index.matches({"all": ["caption", "é"]})["all"]
    return [(match.key, image, match.caption) for match, image in index.images(found)]


@pytest.mark.parametrize("seed", range(60))
def test_all_readers_agree_with_tarfile_on_random_archives(tmp_path, seed):
    path = write(tmp_path / "00000.tar", archive(seed))
    want = expected(path)
    (tmp_path / "00000.tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    if not want:
        return
    found = by_iterator(str(path))
    assert {key: (image, caption) for key, image, caption in found} == want
    assert len(found) == len(want)
    assert by_iterator(f"{path}.gz") == found
    assert by_index(str(path), tmp_path / "index") == found
    if seed % 6 == 0:  # a process each
        assert by_iterator(f"pipe:cat {path}") == found
        assert by_index(f"pipe:cat {path}", tmp_path / "index") == found
        assert by_index(f"{path}.gz", tmp_path / "index") == found


def test_the_random_archives_are_of_every_layout():
    """So the test above cannot pass by drawing one kind alone."""
    firsts = {tuple(Path(name).suffix.lower() for name, _ in archive(seed)[:2]) for seed in range(60)}
    assert len(firsts) > 12
    assert sum(len(expected_of(seed)) for seed in range(60)) > 200


def expected_of(seed: int) -> set[str]:
    return {name.rpartition(".")[0] for name, _ in archive(seed)}


@pytest.mark.parametrize(("setting", "captions"), [
    (None, ("t",)), ("txt", ("t",)), ("alt", ("a",)), ("json:caption", ("c",)), ("json:text", ("x",)),
])  # fmt: skip
def test_the_setting_chooses_the_caption_in_every_reader(tmp_path, setting, captions):
    fields = json.dumps({"caption": "c", "text": "x"}).encode()
    path = write(tmp_path / "0.tar", [("1.jpg", b"i"), ("1.txt", b"t"), ("1.alt", b"a"), ("1.json", fields)])
    for url in (str(path), f"pipe:cat {path}"):
        assert [*zip(*iter_samples(url, [], caption_key=setting, verify=False), strict=True)][2] == captions
        index = index_captions([url], tmp_path / "index", caption_key=setting, progress=False)
        assert [one.caption for one in index.matches({"": [captions[0]]})[""]] == list(captions)


@pytest.mark.parametrize(("content", "why", "kind"), [
    (b"{", ".json cannot be read", "caption that cannot be read"),
    (b"[" * 100_000, ".json cannot be read", "caption that cannot be read"),
    (b'["a"]', ".json is a list, want fields", "caption that cannot be read"),
    (b'{"caption": ["a"]}', '"caption" in .json is a list, want a text', "caption that cannot be read"),
    (b'{"caption": null}', "empty caption", "empty caption"),
    (b'{"alt": "a", "url": "u"}', 'no caption: "caption" is not among the fields of .json: alt, url', "no caption"),
    (b" " * (MAX_TEXT + 1), ".json has 16,777,217 bytes: more than 16,777,216 are not read", "file that is too large"),
])  # fmt: skip
def test_a_json_without_a_caption_says_why_in_every_reader(tmp_path, content, why, kind):
    good = [("0.jpg", b"i"), ("0.txt", b"text")]
    path = write(tmp_path / "0.tar", [*good, ("1.jpg", b"i"), ("1.json", content)])
    for url in (str(path), f"pipe:cat {path}"):
        broken = []
        assert len(list(iter_samples(url, broken, caption_key=None, verify=False))) == 1
        _, indexed = index_captions([url], tmp_path / "index", caption_key=None, progress=False).count()
        for one in (*broken, *indexed):
            assert one.why.startswith(why)
            assert one.kind == kind
        assert broken == indexed


def test_a_shard_with_captions_elsewhere_says_what_to_type(tmp_path):
    files = [("1.jpg", b"i"), ("1.json", b'{"alt": "a", "url": "u"}'), ("1.desc", b"d")]
    path = write(tmp_path / "0.tar", files)
    with pytest.raises(
        ValueError,
        match=r"found .desc, .jpg, .json: \"caption\" is not among the fields of .json: alt, url, want <key>.txt or "
        r".*\"caption\" in <key>.json.*dataset.caption_key=ENDING or dataset.caption_key=json:FIELD",
    ):
        read_pairs(str(path), rules(1), limit=None, progress=False)
    assert by_setting(path, "desc") == ["d"]
    assert by_setting(path, "json:alt") == ["a"]


def by_setting(path: Path, setting: str) -> list[str]:
    return [caption for *_, caption in iter_samples(str(path), [], caption_key=setting, verify=False)]


def test_a_sample_without_a_known_image_says_what_it_has(tmp_path):
    path = write(tmp_path / "0.tar", [("1.gif", b"i"), ("1.txt", b"t"), ("2.jpg", b"i"), ("2.txt", b"t")])
    broken = []
    list(iter_samples(str(path), broken, caption_key=None, verify=False))
    assert [(one.where, one.why, one.kind) for one in broken] == [
        ("0.tar:1", "no image among .gif", "no image")
    ]


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_two_tars_in_one_file_are_a_fault(tmp_path, way):
    one = write(tmp_path / "a", [("1.jpg", b"i"), ("1.txt", b"t")]).read_bytes()
    (tmp_path / "0.tar").write_bytes(one + one.replace(b"1.jpg", b"2.jpg"))
    broken = []
    url = str(tmp_path / "0.tar") if way == "file" else f"pipe:cat {tmp_path}/0.tar"
    assert len(list(iter_samples(url, broken, caption_key=None, verify=False))) == 1
    assert [(one.where, one.kind) for one in broken] == [("0.tar: after 1", "damaged shard")]
    assert "something follows the end of the tar" in broken[0].why
