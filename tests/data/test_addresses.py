"""No login, signature or command of a shard is written or printed, and shards are still told apart."""

import json
from pathlib import Path

import pytest
import tiny
import yaml
from data.datasets import rules
from data.test_shards import served  # noqa: F401  (a fixture)

from muwa import config
from muwa.data import parquet
from muwa.data.addresses import hide, redacted, shard_name, shown
from muwa.data.caption_index import index_captions
from muwa.data.curate import curate, load_forget
from muwa.data.metadata import Columns, unreadable
from muwa.data.shards import expand, read_pairs, write_shard
from muwa.report import sweep

SECRET = "hunter2"


@pytest.mark.parametrize(("url", "name", "address"), [
    ("data/00000.tar", "00000.tar", "data/00000.tar"),
    ("file:///data/a?b.tar", "a?b.tar", "file:///data/a?***"),
    ("https://me:hunter2@host:80/a/1.tar?X-Amz-Signature=hunter2#x", "1.tar", "https://host:80/a/1.tar?***"),
    ("https://hunter2@host/get/?file=1.tar", "get", "https://host/get/?***"),
    ("https://host?token=hunter2", "host", "https://host?***"),
    ("//data/[x/1.tar", "1.tar", "//data/[x/1.tar"),
    ("https://me:hunter2@[bad/1.tar?hunter2", "1.tar", "https://[bad/1.tar?***"),
    ("s3://bucket/1.tar", "1.tar", "s3://bucket/1.tar"),
    ("pipe:curl -u me:hunter2 https://host/1.tar?sig=hunter2", "1.tar", "pipe:*** (1.tar)"),
    ("pipe:cat 'hunter2", "pipe-d35268f9", "pipe:*** (pipe-d35268f9)"),
])  # fmt: skip
def test_names_and_addresses_by_hand(url, name, address):
    assert shard_name(url) == name
    assert shown(url) == address


def test_commands_without_a_tar_are_told_apart():
    assert shard_name("pipe:a") != shard_name("pipe:b")


@pytest.mark.parametrize(("text", "safe"), [
    ("dataset.shards=pipe:cat hunter2 | gunzip", "dataset.shards=pipe:***"),
    ('dataset.shards="https://me:hunter2@h/{0..3}.tar?sig=hunter2"', 'dataset.shards="https://h/{0..3}.tar?***"'),
    ("dataset.retain=[https://a:hunter2@h/1.tar?hunter2,https://h/2.tar?s=hunter2]", "dataset.retain=[https://h/1.tar?***,https://h/2.tar?***]"),
    ("see https://github.com/a/b and 3 > 2? yes", "see https://github.com/a/b and 3 > 2? yes"),
    ("a photo of x@y", "a photo of x@y"),
])  # fmt: skip
def test_texts_by_hand(text, safe):
    assert hide(text) == safe
    assert redacted({"a": [text, 1, None], "b": {"c": (text,)}}) == {"a": [safe, 1, None], "b": {"c": [safe]}}


def secret_urls(folder: Path, address: str) -> list[str]:
    """Two shards by URLs with secrets, and two by a command with one."""
    for i in range(4):
        samples = [(f"{i}{j}", tiny.png(10 * i + j), "Ada Fox", {}) for j in range(3)]
        write_shard(folder / f"{i}.tar", [*samples, (f"{i}3", b"no image", "Ada Fox", {})])
    signed = address.replace("http://", f"http://me:{SECRET}@")
    return [
        f"{signed}/0.tar?Signature={SECRET}",
        f"{signed}/1.tar?Signature={SECRET}",
        f"pipe:cat {folder}/2.tar #{SECRET}",
        f"pipe:PASSWORD={SECRET} cat {folder}/3.tar",
    ]


def written(folder: Path) -> str:
    """Everything in a folder as text: names of files, their bytes, and the columns of parquets."""
    parts = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        rows = (
            str(parquet.rows(f"select * from {parquet.source([path])}")) if path.suffix == ".parquet" else ""
        )
        parts.append(f"{path} {path.read_bytes().decode('latin1')} {rows}")
    return "\n".join(parts)


def test_no_secret_is_in_forget_sets_indices_broken_lists_or_messages(served, tmp_path, capsys):  # noqa: F811
    urls = secret_urls(*served)
    found = curate(
        urls, ["Ada Fox"], aliases={}, out=tmp_path / "out", limit=None, rules=rules(0.5), progress=False
    )
    assert found.counts == {"Ada Fox": 12}
    pairs = load_forget(found.folders["Ada Fox"])
    assert pairs.keys[:1] == ("0-00",)
    assert len(set(pairs.keys)) == 12
    _, broken = read_pairs(urls, rules(0.5), limit=None, progress=False)
    assert [one.where for one in broken] == [f"{i}.tar:{i}3" for i in range(4)]
    with pytest.raises(ValueError, match="4 of 16 samples are broken") as too_many:
        read_pairs(urls, rules(0.1), limit=None, progress=False)
    said = capsys.readouterr()
    everything = [written(tmp_path / "out"), str(found), str(broken), str(too_many.value), said.out, said.err]
    assert SECRET not in "".join(everything).replace(str(pairs.images), "")


def test_failing_urls_and_commands_are_named_without_secrets(served, tmp_path):  # noqa: F811
    signed = served[1].replace("http://", f"http://me:{SECRET}@")
    urls = [f"{signed}/9.tar?{SECRET}", f"pipe:exit 3 #{SECRET}", f"s4://{SECRET}@bucket/0.tar?{SECRET}"]
    for url in urls:
        for read in (
            lambda url: read_pairs(url, rules(0.0), limit=None, progress=False),
            lambda url: index_captions([url], tmp_path / "index", caption_key=None, progress=False).faults(),
        ):
            try:
                said = str(read(url))
            except OSError as error:
                said = str(error)
            assert SECRET not in said
            assert any(
                word in said for word in ("exit 22 of curl", "exit 3 of its command", "cannot be opened")
            )
    with pytest.raises(FileNotFoundError) as missing:
        expand(["nowhere.tar", f"pipe:{SECRET}"])
    assert SECRET not in str(missing.value)


def test_unreadable_metadata_are_named_without_secrets():
    file = f"https://me:{SECRET}@host/a.parquet?X={SECRET}"
    assert SECRET not in str(unreadable([file], Columns(), OSError(f"HTTP 403 for {file}")))


def test_shards_that_differ_in_their_secrets_alone_have_their_own_index(tmp_path):
    for name, text in (("a", "Ada Fox"), ("b", "Bo Hill")):
        write_shard(tmp_path / name / "0.tar", [("1", tiny.png(1), text, {})])
    urls = [f"pipe:cat {tmp_path}/{name}/0.tar" for name in "ab"]
    assert shard_name(urls[0]) == shard_name(urls[1])
    index = index_captions(urls, tmp_path / "index", caption_key=None, progress=False)
    assert len({shard.file for shard in index.shards}) == 2
    assert [one.caption for one in index.matches({"Bo": ["Bo Hill"]})["Bo"]] == ["Bo Hill"]
    assert json.loads(next((tmp_path / "index").glob("*.json")).read_text())["faults"] == []


def test_the_recorded_command_and_swept_settings_are_without_secrets(monkeypatch, tmp_path):
    given = [
        f"dataset.shards=pipe:cat {SECRET}",
        f"dataset.retain=https://me:{SECRET}@h/0.tar?{SECRET}",
        "seed=1",
    ]
    monkeypatch.setattr("sys.argv", ["launch.py", *given])
    assert config._command() == (
        "python launch.py 'dataset.shards=pipe:***' 'dataset.retain=https://h/0.tar?***' seed=1"
    )
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(given))
    assert sweep._overrides(tmp_path) == {
        "dataset.shards": "pipe:***", "dataset.retain": "https://h/0.tar?***", "seed": "1",
    }  # fmt: skip
