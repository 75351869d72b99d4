"""SECURITY.md: every test that it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.findall(r"`(tests/[^`]+)`", (ROOT / "SECURITY.md").read_text())


def test_each_row_names_a_test():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert all("`tests/" in row for row in rows)


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_exists(named):
    file, _, function = named.partition("::")
    text = (ROOT / file).read_text()
    assert f"def {function}(" in text if function else "def test_" in text
