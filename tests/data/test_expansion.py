"""Compressed shards are read within bounds; a small file that expands to gigabytes is refused."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import tarfile

import pytest
import tiny

from muwa.data.expansion import HEADERS, Expanded
from muwa.data.shard_captions import captions_of
from muwa.data.shards import iter_samples, write_shard

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "00000.tar"
    write_shard(path, [(f"k{i}", tiny.png(i), f"caption {i}", {}) for i in range(5)])
    return path


def read(url):
    broken = []
    return list(iter_samples(str(url), broken, caption_key=None)), broken


@pytest.mark.parametrize("kind", PACKERS)
def test_a_compressed_shard_holds_the_same_pairs(shard, kind):
    want = read(shard)
    small = shard.with_suffix(f".tar.{kind}")
    small.write_bytes(PACKERS[kind](shard.read_bytes()))
    assert read(small) == read(f"pipe:cat {small}") == want
    assert len(want[0]) == 5


@pytest.mark.parametrize("kind", PACKERS)
def test_a_compressed_shard_that_was_cut_is_a_fault(shard, kind):
    small = shard.with_suffix(f".tar.{kind}")
    packed = PACKERS[kind](shard.read_bytes())
    small.write_bytes(packed[: len(packed) - 3])
    _, broken = read(small)
    assert [one.kind for one in broken] == ["damaged shard"]
    assert "ended before the end-of-stream marker" in broken[0].why


def test_a_shard_in_zstd_says_what_to_type(tmp_path):
    path = tmp_path / "00000.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    found, broken = read(path)
    assert found == []
    assert "zstd -d FILE.tar.zst" in broken[0].why
    assert "dataset.shards='pipe:zstd -dc FILE.tar.zst'" in broken[0].why


def bomb(kind: str, size: int) -> bytes:
    """A tar whose one image is `size` zeros, compressed."""
    member = tarfile.TarInfo("1.jpg")
    member.size = size
    packer = {
        "gz": lambda out: gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9),
        "bz2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
    }
    out = io.BytesIO()
    with packer[kind](out) if kind == "gz" else packer[kind](out, "wb") as file:
        file.write(member.tobuf())
        for _ in range(size >> 24):
            file.write(bytes(1 << 24))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["gz", pytest.param("bz2", marks=pytest.mark.slow)])
def test_an_expansion_bomb_is_refused_early(tmp_path, kind):
    path = tmp_path / f"0.tar.{kind}"
    path.write_bytes(bomb(kind, 5 << 24))
    assert path.stat().st_size < 1_000_000
    found, broken = read(path)
    assert found == []
    assert "expands to more than 100 times its size" in broken[0].why
    assert len(captions_of(str(path), None).faults) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACKERS)
def test_a_bomb_of_gigabytes_does_not_fill_memory(tmp_path, kind):
    path = tmp_path / f"0.tar.{kind}"
    path.write_bytes(bomb(kind, 1 << 30))
    code = (
        "import sys, resource; from muwa.data.shards import iter_samples\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(list(iter_samples(sys.argv[1], [], caption_key=None)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    pairs, kilobytes = done.stdout.splitlines()
    assert pairs == "[]"
    assert int(kilobytes) < 700_000  # torch, which webdataset imports, takes most of it


def test_headers_are_bounded(tmp_path):
    """A PAX header of gigabytes would be read into memory before its file is known."""
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, HEADERS + (1 << 21)
    path = tmp_path / "0.tar"
    path.write_bytes(member.tobuf() + bytes(member.size) + bytes(1024))
    _, (streamed,) = _faults(f"pipe:cat {path}")
    _, (local,) = _faults(path)
    assert "its headers are longer than 16,777,216 bytes" in streamed
    assert "a header of 18,874,368 bytes at byte 0" in local


def _faults(url):
    try:
        found, broken = read(url)
    except OSError as error:
        return [], [str(error)]
    return found, [one.why for one in broken]


def test_sparse_files_are_refused_in_a_stream_too(tmp_path):
    """A sparse file of a terabyte takes a block in the tar, and a terabyte when it is read."""
    header = bytearray(tarfile.TarInfo("1.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"17777777777\0"  # its size when it is expanded
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "0.tar").write_bytes(bytes(header) + bytes(1024))
    for url in (tmp_path / "0.tar", f"pipe:cat {tmp_path}/0.tar"):
        _, (why,) = _faults(url)
        assert "1.jpg is a sparse file" in why


def test_what_is_read_is_what_was_written():
    content = bytes(range(256)) * 9000
    for packed in (content, gzip.compress(content)):
        file, found = Expanded(io.BytesIO(packed)), b""
        while more := file.read(70_000):
            found += more
        assert found == content
        assert not file.is_closed
