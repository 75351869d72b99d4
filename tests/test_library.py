"""The Python block of the README does what the command line does."""

import re
import subprocess
import sys
from pathlib import Path

from muwa.patch.apply import read_patch

ROOT = Path(__file__).parent.parent


def test_the_example_of_the_readme_runs_as_it_stands(miniature, default_run, tmp_path):
    """Beside a run of the command line with every default, whose cache it shares: it asks for the same things."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "miniature").symlink_to(miniature)
    (tmp_path / "outputs" / "cache").symlink_to(default_run[0].parents[2] / "cache")
    searches = sorted((tmp_path / "outputs" / "cache" / "search").iterdir())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        sorted((tmp_path / "outputs" / "cache" / "search").iterdir()) == searches
    )  # the same search, read back
    rows = dict(re.findall(r"(\S+/\S+) +\S+ -> (\S+)", done.stdout))
    assert float(rows["forget/top5"]) == 0
    assert float(rows["retain/top1"]) > 0.9
    assert read_patch(tmp_path / "forget.safetensors").moves[0].concept == "Kael Lindqvar"
