"""A `with` block that must tell the user something."""

import contextlib
import re

from muwa.runtime.notices import recorded_notices


@contextlib.contextmanager
def noticed(pattern):
    """Fail unless one of the notices of the block matches; gives their list."""
    with recorded_notices() as told:
        yield told
    assert any(re.search(pattern, one) for one in told), told
