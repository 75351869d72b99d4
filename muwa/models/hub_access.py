"""Whether the Hugging Face Hub can be reached. Where it cannot, its cache alone is read, without retries.

Its client asks the hub even for files that are cached, and retries for half a minute before it gives up.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

from huggingface_hub import constants

PATIENCE = 3.0  # seconds to wait for an answer


@functools.cache
def out_of_reach() -> str:
    """Why the hub cannot be asked, for messages; "" if it can. A connection is tried once a process.

    Behind a proxy nothing is tried: names need not resolve there.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if address.scheme in urllib.request.getproxies() or address.hostname is None:
        return ""
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), PATIENCE).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached from here: {error.strerror or error}"
    return ""


@contextlib.contextmanager
def cache_if_out_of_reach(wanted: bool) -> Iterator[None]:
    """Read the hub's cache alone in the `with` block if the hub cannot be reached.

    Args:
        wanted: Whether something of the hub is loaded at all; False tries no connection.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or (wanted and bool(out_of_reach()))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
