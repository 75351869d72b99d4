"""The Python block of the README does what the command line does."""

import re
from pathlib import Path

import forked
import pytest

from muwa.patch.apply import read_patch

ROOT = Path(__file__).parent.parent


@pytest.mark.whole
def test_the_example_of_the_readme_runs_as_it_stands(miniature, default_run, tmp_path):
    """It computes what the default run of the command line computes, so it reads that run's cache."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "miniature").symlink_to(miniature)
    (tmp_path / "outputs" / "cache").symlink_to(default_run[0].parents[2] / "cache")
    cached = tmp_path / "outputs" / "cache" / "search"
    searches = sorted(cached.iterdir())
    (tmp_path / "example.py").write_text(code)
    done = forked.run(str(tmp_path / "example.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(cached.iterdir()) == searches  # the same search, read back
    rows = dict(re.findall(r"(\S+/\S+) +\S+ -> (\S+)", done.stdout))
    assert float(rows["forget/top5"]) == 0
    assert float(rows["retain/top1"]) > 0.9
    assert read_patch(tmp_path / "forget.safetensors").moves[0].concept == "Kael Lindqvar"
