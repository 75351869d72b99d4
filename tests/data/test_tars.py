"""The files of a tar, compared with tarfile's own reading."""

import io
import tarfile

import pytest
import tiny

from muwa.data import tars
from muwa.data.expansion import Expanded
from muwa.data.shards import write_shard


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "00000.tar"
    write_shard(path, [(f"k{i}", tiny.png(i), f"caption {i}", {}) for i in range(3)])
    return path


def test_the_files_are_those_of_the_tar_and_their_places_hold_their_bytes(shard):
    found = list(tars.members(shard))
    assert [member.name for member in found] == [
        f"k{i}.{ending}" for i in range(3) for ending in ("json", "png", "txt")
    ]
    with tarfile.open(shard) as tar:
        for member in found:
            want = tar.extractfile(member.name).read()
            assert list(tars.read(shard, [member.content])) == [want]
            assert member.size == len(want)


def test_files_are_read_in_the_order_given(shard):
    places = {member.name: member.content for member in tars.members(shard)}
    assert list(tars.read(shard, [places["k2.txt"], places["k0.txt"]])) == [b"caption 2", b"caption 0"]


def test_a_name_that_is_no_text_is_a_name_all_the_same(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", encoding="latin1", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("caf\u00e9.jpg"))
    assert [member.name for member in tars.members(tmp_path / "x.tar")] == ["caf\ufffd.jpg"]


def test_a_sparse_file_is_refused(tmp_path):
    member = tarfile.TarInfo("a.jpg")
    member.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(member)
    with pytest.raises(tarfile.TarError, match="a.jpg is a sparse file"):
        list(tars.members(tmp_path / "x.tar"))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_what_is_no_tar_is_not_closed(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    assert not tars.is_closed(tmp_path / "x.tar")


def test_a_compressed_tar_has_no_places(tmp_path):
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")):
        tarfile.open(tmp_path / f"x.{ending}", mode).close()
        assert tars.is_plain(tmp_path / f"x.{ending}") == (ending == "tar")


def test_a_tar_that_was_cut_is_not_closed(shard):
    assert tars.is_closed(shard)
    shard.write_bytes(shard.read_bytes()[:5000])
    assert not tars.is_closed(shard)


def test_a_damaged_header_ends_the_reading_with_what_stood_before(shard):
    whole = shard.read_bytes()
    place = next(member.content[0] for member in tars.members(shard) if member.name == "k1.png") - 512
    shard.write_bytes(whole[:place] + b"\1" * 512 + whole[place + 512 :])
    found = []
    with pytest.raises(tarfile.TarError):
        for member in tars.members(shard):
            found.append(member.name)
    assert found == ["k0.json", "k0.png", "k0.txt", "k1.json"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_kind_are_read_as_tarfile_reads_them(tmp_path, kind):
    """img2dataset's tars have times with fractions, which PAX writes in headers of their own; and long names."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for name in (
            "a.jpg",
            "a.txt",
            "f" * 90 + "/b.jpg",
            "c.jpg",
            *(["\u00fc" * 120 + ".jpg"] * (kind != 0)),
            "d.txt",
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700, 1700000000.25
            tar.addfile(member, io.BytesIO(name.encode().ljust(700)))
    with tarfile.open(path) as tar:
        want = [((member.offset_data, member.size), member.name) for member in tar]
    assert [(member.content, member.name) for member in tars.members(path)] == want
    with path.open("rb") as file:
        streamed = list(tars.streamed(Expanded(file), lambda name, size: True))
    assert [(member.size, member.name) for member in streamed] == [(size, name) for (_, size), name in want]
