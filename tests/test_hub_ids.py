"""Hub ids rot: they stand in muwa/conf/model/*.yaml alone, where one line mends them. All else refers to these files."""

import functools
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "muwa" / "conf" / "model").glob("*.yaml"))
ELSEWHERE = [
    ROOT / "README.md",
    ROOT / "launch.py",
    *sorted((ROOT / "docs").glob("*.md")),
    *(path for path in sorted((ROOT / "muwa" / "conf").rglob("*.yaml")) if path not in CONFIGS),
    *sorted((ROOT / "muwa").rglob("*.py")),
    *sorted((ROOT / "bench").rglob("*.py")),
]
# Who publishes models of these families, besides the owners that the configs name.
OWNERS = {
    "apple", "black-forest-labs", "CompVis", "facebook", "google", "HuggingFaceM4", "laion", "liuhaotian", "lmsys", "openai",
    "OpenGVLab", "Qwen", "runwayml", "stabilityai", "timm", "ytan-ucr",
}  # fmt: skip
IDS = re.compile(r"(?<![\w/.:-])([A-Za-z0-9][\w-]*)/([A-Za-z0-9][\w.-]*)")


@functools.cache
def configured():
    """Config -> the hub id that it loads."""
    found = {path.stem: OmegaConf.load(path).get("path") for path in CONFIGS}
    return {stem: value for stem, value in found.items() if value not in (None, "miniature")}


def hub_ids(text):
    """What looks like a hub id of a known owner: "openai/clip-vit-base-patch32", but no "laion/00000.tar"."""
    owners = OWNERS | {value.partition("/")[0] for value in configured().values()}
    return [
        "/".join(match.groups())
        for match in IDS.finditer(text)
        if match[1] in owners and not match[2].endswith((".tar", ".jpg", ".py"))
    ]


def test_ids_are_recognised():
    text = "path: openai/clip-vit-base-patch32, laion/00000.tar, a/b, github.com/openai/CLIP, `llava-hf/llava-1.5-7b-hf`"
    assert hub_ids(text) == ["openai/clip-vit-base-patch32", "llava-hf/llava-1.5-7b-hf"]


def test_each_config_of_a_published_folder_has_one_id():
    assert set(configured()) >= {"clip_hf", "sd15", "sd21", "sdxl", "llava15_7b", "llava15_13b"}
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", value) for value in configured().values())


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_hub_id_stands_elsewhere(path):
    assert hub_ids(path.read_text(encoding="utf-8")) == []


def test_an_id_that_left_the_hub_is_loaded_by_no_config():
    """Taken from the hub by their owners: runwayml's in August 2024, Stability AI's in November 2025."""
    gone = ("runwayml/", "stabilityai/stable-diffusion-2")
    assert not [value for value in configured().values() if value.startswith(gone)]
