import functools
import http.server
import io
import json
import shutil
import tarfile
import threading

import pytest
import tiny
from data.datasets import rules
from PIL import Image

from muwa.data.shards import expand, image_ending, iter_samples, read_pairs, write_shard


def tar(path, files):
    """A tar of name -> bytes, in order."""
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return path


def sample(key, *, image=None, caption=b"a caption", ending="png"):
    """The three files of one sample as img2dataset writes them; a None caption leaves the txt out."""
    files = {
        f"{key}.{ending}": tiny.png(int(key)) if image is None else image,
        f"{key}.json": json.dumps({"key": key}).encode(),
    }
    return files | ({f"{key}.txt": caption} if caption is not None else {})


def shard(path, n=4, start=0):
    return tar(path, {k: v for i in range(n) for k, v in sample(f"{start + i:09d}").items()})


def read(urls, *, limit=None, max_broken=1.0, **rest):
    return read_pairs(urls, rules(max_broken, **rest), limit=limit, progress=False)


@pytest.fixture
def served(tmp_path):
    """A folder served on loopback: (folder, its address); what lies in its `cut/` is announced longer than it is."""
    if not shutil.which("curl"):
        pytest.skip("webdataset reads http with curl, which is not installed")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def send_header(self, keyword, value):
            longer = keyword == "Content-Length" and self.path.startswith("/cut/")
            super().send_header(keyword, str(int(value) + 10240) if longer else value)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_many_shards_by_brace_glob_and_list_in_order(tmp_path):
    for i in range(3):
        shard(tmp_path / f"{i:05d}.tar", start=100 * i)
    keys = [f"{100 * i + j:09d}" for i in range(3) for j in range(4)]
    for urls in (
        f"{tmp_path}/{{00000..00002}}.tar",
        f"{tmp_path}/*.tar",
        [f"{tmp_path}/0000{i}.tar" for i in range(3)],
    ):
        pairs, broken = read(urls)
        assert list(pairs.keys) == keys
        assert not broken
    assert pairs.captions[0] == "a caption"
    assert pairs.images[0] == tiny.png(0)


@pytest.mark.parametrize(
    ("kind", "ending"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("JPEG", "jpeg")]
)
def test_every_kind_of_image(tmp_path, kind, ending):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    pairs, broken = read(str(tar(tmp_path / "a.tar", sample("1", image=buffer.getvalue(), ending=ending))))
    assert pairs.images == (buffer.getvalue(),)
    assert not broken


def test_local_paths_file_urls_pipes_and_http_hold_the_same(tmp_path, served):
    folder, address = served
    path = shard(folder / "00000.tar")
    want, _ = read(str(path))
    for url in (
        f"file://{path}",
        f"pipe:cat {path}",
        f"{address}/00000.tar",
        f"{address}/{{00000..00000}}.tar",
    ):
        got, broken = read(url)
        assert got == want, url
        assert not broken


def test_a_missing_shard_says_how_shards_are_made(tmp_path):
    shard(tmp_path / "00000.tar")
    with pytest.raises(
        FileNotFoundError,
        match=r"2 of 3 shards are missing, the first is .*00001.tar.*img2dataset --output_format webdataset",
    ):
        expand(f"{tmp_path}/{{00000..00002}}.tar")
    with pytest.raises(FileNotFoundError, match="1 of 1 shards are missing"):
        expand(f"{tmp_path}/x*.tar")


def test_a_remote_shard_that_is_not_there_is_an_error(served):
    with pytest.raises(OSError, match=r"00009.tar"):
        read(f"{served[1]}/00009.tar")


def test_a_remote_shard_that_cannot_be_read_says_why_and_what_may_be_given(served):
    for url, why in ((f"{served[1]}/00009.tar", "exit 22"), ("pipe:exit 3", "exit 3 ")):
        with pytest.raises(
            OSError, match=rf"{why}.*Shards are local paths, http\(s\) URLs or `pipe:COMMAND`"
        ):
            read(url)


def test_a_download_that_ends_early_is_a_fault_of_its_shard(served):
    (served[0] / "cut").mkdir()
    path = shard(served[0] / "cut" / "00003.tar", n=40)
    whole, _ = read(str(path))
    path.write_bytes(path.read_bytes()[:200_000])
    pairs, broken = read(f"{served[1]}/cut/00003.tar")
    assert 0 < len(pairs) < 40
    assert pairs == whole.select(range(len(pairs)))
    assert all(one.where.startswith("00003.tar:") for one in broken)
    assert any("exit 18" in one.why for one in broken)  # curl's "partial file"


def test_a_command_that_ends_with_an_error_is_a_fault_of_its_shard(tmp_path):
    path = shard(tmp_path / "00000.tar", n=40)
    whole, _ = read(str(path))
    pairs, broken = read(f"pipe:cat {path} && (exit 7)", max_broken=1.0)
    assert len(pairs) > 0
    assert pairs == whole.select(range(len(pairs)))
    assert any("exit 7" in one.why for one in broken)


def test_an_unknown_scheme_says_what_may_be_given():
    with pytest.raises(OSError, match=r"s3://bucket/0.tar: cannot be opened.*pipe:aws s3 cp"):
        read("s3://bucket/0.tar")


def test_broken_samples_are_named_and_skipped(tmp_path):
    whole = Image.effect_noise((64, 64), 50).convert("RGB")
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG")
    files = {
        **sample("1"), **sample("2", image=buffer.getvalue()[:500], ending="jpg"), **sample("3", caption=None),
        **sample("4", caption=b"  "), **sample("5", image=b"text", ending="jpg"), **sample("6"), "6.jpg": tiny.png(1),
        "7.txt": b"no image", **sample("8"),
    }  # fmt: skip
    pairs, broken = read(str(tar(tmp_path / "00000.tar", files)))
    assert pairs.keys == ("1", "8")
    faults = {one.where: one.why for one in broken}
    assert set(faults) == {f"00000.tar:{key}" for key in "234567"}
    assert faults["00000.tar:2"].startswith("bad image: cannot be decoded")
    assert faults["00000.tar:3"] == 'no caption: "caption" is not among the fields of .json: key'
    assert faults["00000.tar:4"] == "empty caption"
    assert {one.where[-1]: one.kind for one in broken} == {
        "2": "image that cannot be decoded", "3": "no caption", "4": "empty caption",
        "5": "image that cannot be decoded", "6": "several images", "7": "no image",
    }  # fmt: skip
    assert faults["00000.tar:5"].startswith("bad image: cannot identify")
    assert faults["00000.tar:6"] == "2 images under one key"
    assert faults["00000.tar:7"] == "no image"


def test_too_many_broken_samples_stop_with_the_list(tmp_path):
    files = {k: v for i in range(1, 10) for k, v in sample(str(i)).items()} | sample("10", caption=None)
    path = str(tar(tmp_path / "00000.tar", files))
    assert len(read(path, max_broken=0.1)[0]) == 9
    with pytest.raises(
        ValueError, match=r"1 of 10 samples are broken \(10.0%\).*\n  00000.tar:10: no caption"
    ):
        read(path, max_broken=0.09)


@pytest.mark.parametrize("cut", [0.45, 0.6, 0.8])
def test_a_truncated_tar_gives_what_is_whole_and_says_where_it_broke(tmp_path, cut):
    path = shard(tmp_path / "00000.tar", n=10)
    whole, _ = read(str(path))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(cut * len(raw))])
    pairs, broken = read(str(path))
    assert 0 < len(pairs) < 10
    assert pairs.images == whole.images[: len(pairs)]
    assert broken
    assert all("00000.tar" in one.where for one in broken)


def test_a_tar_cut_inside_an_image_names_the_shard_and_the_last_sample(tmp_path):
    path = shard(tmp_path / "00000.tar", n=4)
    with tarfile.open(path) as whole:
        third = whole.getmember("000000002.png")
    path.write_bytes(path.read_bytes()[: third.offset_data + third.size // 2])
    pairs, broken = read(str(path))
    assert pairs.keys == ("000000000", "000000001")
    assert {one.where for one in broken} == {"00000.tar: after 000000001"}
    assert "unexpected end of data" in broken[0].why


@pytest.mark.parametrize("inside", [0, 300])
def test_a_tar_cut_before_or_inside_a_header_is_a_fault_too(tmp_path, inside):
    path = shard(tmp_path / "00000.tar", n=4)
    with tarfile.open(path) as whole:
        third = whole.getmember("000000002.png")
    path.write_bytes(path.read_bytes()[: third.offset + inside])
    pairs, broken = read(str(path))
    assert pairs.keys == ("000000000", "000000001")
    assert [one.where for one in broken] == ["00000.tar: after 000000001"]


def test_a_file_that_is_no_tar_is_broken_and_the_other_shards_are_read(tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"no tar at all" * 100)
    shard(tmp_path / "00001.tar")
    pairs, broken = read(f"{tmp_path}/*.tar")
    assert len(pairs) == 4
    assert [one.where for one in broken] == ["00000.tar: after the start"]
    with pytest.raises(
        ValueError, match=r"1 of 5 samples are broken \(20.0%\).*\n  00000.tar: after the start"
    ):
        read(f"{tmp_path}/*.tar", max_broken=0.1)


def test_a_file_that_stands_twice_in_a_tar_is_a_fault(tmp_path):
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as out:
        for _ in range(2):
            for name, content in sample("1").items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                out.addfile(member, io.BytesIO(content))
    pairs, broken = read(str(path))
    assert len(pairs) == 0
    assert [(one.where, one.why, one.kind) for one in broken] == [
        ("00000.tar:1", "two files .png under one key", "repeated file")
    ]


def test_names_in_folders_capitals_and_odd_captions(tmp_path):
    files = {"a/1.PNG": tiny.png(1), "a/1.txt": b" caf\xe9 \n", "b/1.png": tiny.png(2), "b/1.TXT": b"two"}
    pairs, broken = read(str(tar(tmp_path / "00000.tar", files)))
    assert pairs.keys == ("a/1", "b/1")
    assert pairs.captions == ("caf\ufffd", "two")
    assert not broken


def test_nothing_asked_for_is_an_error():
    with pytest.raises(FileNotFoundError, match="the pattern gives no shard"):
        expand([])


def test_a_path_with_brackets_is_a_path_when_no_glob_fits(tmp_path):
    (tmp_path / "set[1]").mkdir()
    path = str(shard(tmp_path / "set[1]" / "00000.tar"))
    assert expand(path) == [path]


def test_commands_are_not_expanded():
    assert expand("pipe:echo {1..3} *.tar") == ["pipe:echo {1..3} *.tar"]


def test_a_tar_without_captions_says_what_it_holds(tmp_path):
    files = {
        f"{i}.{ending}": tiny.png(i) if ending == "png" else b"1"
        for i in range(3)
        for ending in ("png", "cls")
    }
    with pytest.raises(
        ValueError,
        match=r"none of its 3 samples has a caption: found .cls, .png, want <key>.txt.*--caption_col",
    ):
        read(str(tar(tmp_path / "a.tar", files)))


def test_a_limit_stops_early_and_never_opens_the_next_shard(tmp_path):
    shard(tmp_path / "00000.tar", n=4)
    (tmp_path / "00001.tar").write_bytes(b"no tar at all")
    pairs, broken = read(f"{tmp_path}/{{00000..00001}}.tar", limit=3)
    assert len(pairs) == 3
    assert not broken


def test_a_limit_counts_sound_pairs_over_all_shards_and_a_pipe_may_be_left_early(tmp_path):
    shard(tmp_path / "00000.tar", n=4)
    path = shard(tmp_path / "00001.tar", n=60, start=100)
    pairs, broken = read([f"{tmp_path}/00000.tar", f"pipe:cat {path}"], limit=6)
    assert pairs.keys == tuple(f"{i:09d}" for i in (0, 1, 2, 3, 100, 101))
    assert not broken


def test_writing_is_whole_repeatable_and_read_back(tmp_path):
    samples = [(f"k{i}", tiny.png(i), f"caption {i}", {"n": i}) for i in range(3)]
    for name in ("a.tar", "b.tar"):
        assert write_shard(tmp_path / name, samples) == 3
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]
    with tarfile.open(tmp_path / "a.tar") as written:
        assert written.getnames()[:3] == ["k0.json", "k0.png", "k0.txt"]
        assert json.load(written.extractfile("k2.json")) == {"n": 2}
        assert {(member.mtime, member.uname, member.gname) for member in written} == {(0, "", "")}
    assert [*iter_samples(str(tmp_path / "a.tar"), [], caption_key=None)] == [
        (key, image, caption) for key, image, caption, _ in samples
    ]

    def failing():
        yield samples[0]
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "c.tar", failing())
    assert not (tmp_path / "c.tar").exists()


def test_the_ending_follows_the_bytes():
    endings = {}
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, kind)
        endings[kind] = image_ending(buffer.getvalue())
    assert endings == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def with_empty(path, empty, total=100):
    """A shard of `total` pairs, the first `empty` of them with an empty caption."""
    write_shard(path, [(str(i), tiny.png(i % 7), " " * (i < empty) or "text", {}) for i in range(total)])
    return str(path)


def test_two_empty_captions_in_a_hundred_do_not_stop_a_run(tmp_path):
    pairs, broken = read(with_empty(tmp_path / "0.tar", 2), max_broken=0.01, max_empty=0.25)
    assert len(pairs) == 98
    assert [one.kind for one in broken] == ["empty caption"] * 2


def test_empty_captions_have_a_limit_of_their_own_and_counts_are_by_kind(tmp_path):
    path = with_empty(tmp_path / "0.tar", 26)
    assert len(read(path, max_broken=0.0, max_empty=0.26)[0]) == 74
    with pytest.raises(
        ValueError,
        match=r"26 of 100 captions are empty \(26.0%\), more than dataset.max_empty=0.25 allows "
        r"\(by kind: 26 empty caption\).*dataset.caption_key \(txt, json:caption\)",
    ):
        read(path, max_broken=0.0, max_empty=0.25)


def test_broken_samples_are_counted_by_kind_in_the_error(tmp_path):
    files = {
        **sample("1"),
        **sample("2", image=b"no"),
        **sample("3", image=b"no"),
        **sample("4", caption=None),
    }
    path = str(tar(tmp_path / "0.tar", files | sample("5", caption=b"")))
    with pytest.raises(
        ValueError,
        match=r"3 of 5 samples are broken \(60.0%\).*\(by kind: 2 image that cannot be decoded, 1 no caption\)",
    ):
        read(path, max_broken=0.5)


def test_gaps_in_shard_numbers_say_which_glob_takes_the_rest(tmp_path):
    for i in (0, 3):
        shard(tmp_path / f"{i:05d}.tar", start=10 * i)
    with pytest.raises(
        FileNotFoundError, match=r"2 of 4 shards are missing.*give a glob: '.*/\*\.tar'"
    ) as told:
        expand(f"{tmp_path}/{{00000..00003}}.tar")
    assert str(told.value).startswith("dataset.shards=")
    setting, _, glob = str(told.value).partition("give a glob: '")[2].partition("'")[0].partition("=")
    assert setting == "dataset.shards"
    with pytest.raises(
        FileNotFoundError, match=r"^dataset.retain=.*give a glob: 'dataset.retain=.*/\*\.tar'"
    ):
        expand(f"{tmp_path}/{{00000..00003}}.tar", "dataset.retain")
    assert [path.rsplit("/", 1)[1] for path in expand(glob)] == ["00000.tar", "00003.tar"]
