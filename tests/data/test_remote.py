"""A remote shard is known by more than its address."""

import functools
import http.server
import threading
from pathlib import Path

import pytest
import tiny

from muwa.data import shard_captions
from muwa.data.caption_index import index_captions
from muwa.data.remote import identity, unsigned
from muwa.data.shards import write_shard


@pytest.fixture
def server(tmp_path):
    """A folder on loopback whose files have ETags: (folder, address, the requests that came)."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests: list[tuple[str, str | None, str | None]] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["Range"], self.headers["Authorization"]))
            super().do_GET()

        def end_headers(self):
            path = Path(self.translate_path(self.path))
            if "tagged" in path.name and path.is_file():
                self.send_header("ETag", f'"{hash(path.read_bytes())}"')
            super().end_headers()

        def log_message(self, *arguments):
            pass

    made = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{made.server_port}", requests
    made.shutdown()
    made.server_close()


def write(path, caption):
    write_shard(path, [("1", tiny.png(1), caption, {})])


def found(url, folder):
    index = index_captions([url], folder, caption_key=None, progress=False)
    return [one.caption for one in index.matches({"": ["Ada", "Bob"]})[""]]


@pytest.mark.parametrize("name", ["tagged.tar", "plain.tar"])
def test_a_shard_that_changed_on_its_server_is_indexed_again(server, tmp_path, monkeypatch, name):
    folder, address, _ = server
    write(folder / name, "Ada")
    assert found(f"{address}/{name}", tmp_path / "index") == ["Ada"]
    with monkeypatch.context() as patch:
        patch.setattr(shard_captions, "stream_rows", None)  # nothing is read a second time
        assert found(f"{address}/{name}", tmp_path / "index") == ["Ada"]
    write(folder / name, "Ada and Bob, a caption that makes the tar no longer" + " than it was" * 1000)
    assert len(found(f"{address}/{name}", tmp_path / "index")[0]) > 100


def test_another_signature_is_no_other_shard_where_there_is_an_etag(server):
    folder, address, _ = server
    write(folder / "tagged.tar", "Ada")
    write(folder / "plain.tar", "Ada")
    one, two = (identity(f"{address}/tagged.tar?file=1&X-Amz-Signature={i}") for i in "ab")
    assert one == two
    assert identity(f"{address}/tagged.tar?file=2&X-Amz-Signature=a") != one
    one, two = (identity(f"{address}/plain.tar?X-Amz-Signature={i}") for i in "ab")
    assert one != two


def test_one_byte_is_asked_for_and_a_login_is_sent_as_such(server):
    folder, address, requests = server
    write(folder / "plain.tar", "Ada")
    _, length, tag, time = identity(address.replace("//", "//me:p%40w@") + "/plain.tar")
    assert (int(length), tag) == ((folder / "plain.tar").stat().st_size, "")
    assert "GMT" in time
    assert requests == [("/plain.tar", "bytes=0-0", "Basic bWU6cEB3")]  # me:p@w


@pytest.mark.parametrize(
    "url", ["pipe:cat a.tar", "s3://bucket/0.tar", "http://127.0.0.1:9/0.tar", "http://[bad/0.tar"]
)
def test_what_no_server_tells_is_known_by_its_address(url):
    assert identity(url) == [url]


@pytest.mark.parametrize(("url", "same"), [
    ("https://host/0.tar?Expires=1&Signature=b&Key-Pair-Id=c", "https://host/0.tar"),
    ("https://host/0.tar?sv=2022&sig=a%2Fb&version=7", "https://host/0.tar?version=7"),
    ("https://me:pw@host:8080/0.tar", "https://host:8080/0.tar"),
])  # fmt: skip
def test_addresses_without_signatures(url, same):
    assert unsigned(url) == same
