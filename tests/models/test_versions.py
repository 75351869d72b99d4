"""The lowest and the newest versions of the libraries that `pyproject.toml` allows give the same models.

They write the names of a CLIP tower differently, and took other keywords: each is put in front of the installed
packages, and the tests of names, patches and loading run once more.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CLIP = ("tests/models/clip", "tests/patch/test_names.py", "tests/patch/test_apply.py")
DIFFUSION = (
    "tests/models/diffusion", "tests/patch/test_folders.py", "tests/methods/test_uce.py",
    "tests/methods/test_unet.py",
)  # fmt: skip
VLM = (
    "tests/models/vlm", "tests/gradients/test_towers.py", "tests/gradients/test_answers.py",
    "tests/miniature/test_llava.py", "tests/miniature/test_text_tower.py",
)  # fmt: skip
TESTS = {"transformers": (*CLIP, *DIFFUSION, *VLM), "diffusers": DIFFUSION, "open_clip_torch": CLIP}
# Beside the lowest transformers: what it allows of the packages whose newest versions it refuses, and what its SigLIP
# tokenizer needs.
BESIDE_LOWEST = {"transformers": ("huggingface_hub<2", "tokenizers<=0.23.0", "sentencepiece")}


def bounds(package: str) -> tuple[str, str]:
    """(lowest version, version that is too new) in `pyproject.toml`."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = (m for text in named if (m := re.fullmatch(rf"{package}>=([\d.]+),<(\d+)", text)))
    return found[1], found[2]


def install(packages: list[str], folder: Path) -> None:
    """Install without dependencies; the test is skipped if the registry cannot be reached."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        *packages,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1][:200]}")


@pytest.mark.parametrize("package", TESTS)
@pytest.mark.parametrize("end", ["lowest", "newest"])
def test_the_tests_pass_with_either_end_of_the_range(package, end, tmp_path) -> None:
    lowest, above = bounds(package)
    wanted = f"{package}=={lowest}.*" if end == "lowest" else f"{package}>={lowest},<{above}"
    folder = (
        tmp_path / "site-packages"
    )  # so named that muwa's cache takes it for installed code, not for the user's
    beside = BESIDE_LOWEST.get(package, ()) if end == "lowest" else ()
    install([wanted, *beside], folder)
    code = f"import {package.removesuffix('_torch')} as m; print(m.__version__, m.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    used = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert str(folder) in used.stdout, used.stderr
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *TESTS[package]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, f"{used.stdout}{done.stdout[-6000:]}"
    assert re.search(r"\d+ passed", done.stdout)
