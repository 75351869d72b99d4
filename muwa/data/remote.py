"""Open shards that are read through, and tell whether one on a web server changed."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from muwa.data.addresses import hide, shown
from muwa.data.expansion import Readable

KINDS = (
    "Shards are local paths, http(s) URLs or `pipe:COMMAND`, for instance pipe:aws s3 cp "
    "s3://BUCKET/00000.tar -"
)
# Parameters of signed URLs beside X-Amz-* and X-Goog-*: CloudFront, S3 and Google (version 2), Azure.
_SIGNATURE = {
    *("signature", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
    *("sig", "se", "st", "sp", "sr", "sv", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv"),
}
PATIENCE = 30  # seconds for a server to answer
_CURL = {
    6: "the host is unknown",
    7: "the host does not answer",
    18: "the download ended before its announced length",
    22: "the server answered with an error, such as 403 or 404",
    28: "the server is too slow",
    60: "the certificate of the server is not trusted",
}


@contextmanager
def opened(url: str, faults: list[str]) -> Iterator[Readable]:
    """The bytes of a shard. If its download or command fails, that is added to `faults`.

    Raises:
        OSError: It cannot be opened. The message says how to give remote shards.
    """
    import webdataset as wds  # imports torch

    try:
        stream = wds.gopen(url)
    except (OSError, ValueError) as error:
        raise OSError(f"{shown(url)}: cannot be opened ({hide(str(error))}). {KINDS}") from error
    guarded = _Guarded(stream, url)
    try:
        yield guarded
    finally:
        try:
            stream.close()
        except OSError as error:
            guarded.failed = guarded.failed or guarded.in_words(error)
        if guarded.failed and guarded.failed not in faults:
            faults.append(guarded.failed)


class _Guarded:
    """A stream whose failures say no more of a command or URL than its exit status."""

    def __init__(self, stream: Readable, url: str):
        self._stream, self._url, self.failed = stream, url, ""

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            self.failed = self.in_words(error)
            raise OSError(self.failed) from error

    def in_words(self, error: OSError) -> str:
        """What happened: webdataset puts the whole command into its errors."""
        status = getattr(self._stream, "status", None)
        if status is None:
            return hide(str(error))
        if self._url.startswith("pipe:"):
            return f"exit {status} of its command"
        return f"exit {status} of curl" + (f": {_CURL[status]}" if status in _CURL else "")


def identity(url: str) -> list[str]:
    """What tells whether a remote shard changed: its address; its length, ETag and time if http gives them.

    One byte is asked for (signed URLs often allow GET alone, not HEAD); no more is read. If the server does
    not answer, the address is all there is; the shard's reader will say what is wrong. With an ETag, login
    and signature do not count, as another signature makes no other shard.
    """
    if not url.startswith(("http://", "https://")):
        return [url]
    try:
        with urllib.request.urlopen(_request(url), timeout=PATIENCE) as answer:
            said = answer.headers
            length = (said["Content-Range"] or "").rpartition("/")[2] or said["Content-Length"] or ""
            tag = said["ETag"] or ""
            return [unsigned(url) if tag else url, length, tag, said["Last-Modified"] or ""]
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return [url]


def _request(url: str) -> urllib.request.Request:
    """A request for the first byte; a login in the address goes into a header, which no redirect gets."""
    address = urlsplit(url)
    host = address.netloc.rpartition("@")[2]
    request = urllib.request.Request(
        urlunsplit(address._replace(netloc=host, fragment="")), headers={"Range": "bytes=0-0"}
    )
    if address.username is not None:
        login = f"{unquote(address.username)}:{unquote(address.password or '')}"
        basic = base64.b64encode(login.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def unsigned(url: str) -> str:
    """The address without login and without the parameters of signatures.

    >>> unsigned("https://me:pw@host/get?file=0.tar&X-Amz-Signature=abc&Expires=9")
    'https://host/get?file=0.tar'
    """
    address = urlsplit(url)
    kept = [
        (name, value)
        for name, value in parse_qsl(address.query, keep_blank_values=True)
        if name.lower() not in _SIGNATURE and not name.lower().startswith(("x-amz-", "x-goog-"))
    ]
    host = address.netloc.rpartition("@")[2]
    return urlunsplit(address._replace(netloc=host, query=urlencode(kept), fragment=""))
