"""Names of shards, and their addresses without secrets.

Signed URLs, `user:password@` and shell commands (`pipe:`) are secrets: whoever reads them can read the data,
or more. No file and no message may have them. Every writer takes names from `shard_name` and texts from
`redacted`.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

HIDDEN = "***"
_COMMAND = re.compile(r"pipe:[^\n]*")
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")
_QUERY = re.compile(r"(\w+://[^\s?#'\"]*)[?#][^\s'\",\]}]*")


def is_remote(url: str) -> bool:
    """Whether a shard is not a local file but `pipe:`, http(s), s3, ..."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def local_path(url: str) -> Path:
    """The path of a local shard."""
    return Path(url.removeprefix("file://").removeprefix("file:"))


def shard_name(url: str) -> str:
    """The file name of a shard, without secrets.

    A command has the name of the tar that it reads, or else a digest of the command.

    >>> shard_name("data/00000.tar"), shard_name("https://me:pw@host/00001.tar?Signature=abc")
    ('00000.tar', '00001.tar')
    >>> shard_name("pipe:aws s3 cp s3://bucket/00002.tar - --profile me"), shard_name("pipe:cat secret")
    ('00002.tar', 'pipe-7e4b97de')
    """
    if not is_remote(url):
        return url.rsplit("/", 1)[-1]
    if not url.startswith("pipe:"):
        return _last_part(url)
    try:
        words = shlex.split(url.removeprefix("pipe:"))
    except ValueError:  # an open quote
        words = []
    tars = [name for name in map(_last_part, words) if name.endswith(".tar")]
    return tars[-1] if tars else f"pipe-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _last_part(url: str) -> str:
    """The last part of a path or of a URL's path; the host if there is none."""
    path = hide(url).partition("://")[2].partition("?")[0] if "://" in url else url
    return PurePosixPath(path).name


def shown(url: str) -> str:
    """The address of one shard for messages: without login, query and command.

    >>> shown("https://me:pw@host/a/00001.tar?Signature=abc"), shown("pipe:cat a/00000.tar")
    ('https://host/a/00001.tar?***', 'pipe:*** (00000.tar)')
    """
    return f"pipe:{HIDDEN} ({shard_name(url)})" if url.startswith("pipe:") else hide(url)


def hide(text: str) -> str:
    """A text without the logins and queries of URLs; what follows `pipe:` in a line is left out too."""
    found = _QUERY.sub(rf"\1?{HIDDEN}", _LOGIN.sub("", text))
    return _COMMAND.sub(f"pipe:{HIDDEN}", found)


def redacted(value: Any) -> Any:
    """Plain values (mappings, lists, texts, numbers) with texts as `hide` leaves them: without secrets."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: redacted(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [redacted(one) for one in value]
    return value
