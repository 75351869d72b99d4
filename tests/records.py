"""Records of settings for tests of the refusals that records make themselves (`check`), as Python code may call them."""

from typing import Any
from unittest import mock

from muwa import config


def part(choice: str, *more: str, **changed: Any) -> Any:
    """`muwa.config.part` without its check of types and ranges, which would refuse the setting first."""
    with mock.patch.object(config, "check"):
        return config.part(choice, *more, **changed)
