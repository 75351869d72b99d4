"""Load open_clip models: a built-in name with a pretrained tag, a checkpoint file or none, or a local folder."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import open_clip
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torchvision.transforms import Compose, Normalize, ToTensor

from muwa.models.clip.model import Clip, Preparation, Towers, check_device

MINIATURE = Path(__file__).parents[2] / "miniature" / "clip"


def load(name: str, pretrained: str | None, *, device: str, seed: int) -> Clip:
    """Load an open_clip model in fp32, eval mode.

    Args:
        name: "miniature" (the shipped one), a name of `open_clip.list_models()`, or "local-dir:FOLDER" /
            "hf-hub:ORG/REPO" as open_clip takes them.
        pretrained: A tag of that name ("laion400m_e32"), the path of a checkpoint file, or None: random weights made
            from `seed` (for trying the line on a real architecture).
        device: "cpu", "cuda", "cuda:1", ...
        seed: Of random weights; without effect when there are weights to load.

    Raises:
        ValueError: The name is unknown (lists the nearest), or a file or folder has no weights that fit.
        FileNotFoundError: The tag is unknown (lists those there are), or the weights are not there: names them, where
            they were looked for, and how to bring them.
    """
    if name == "miniature":
        name = f"local-dir:{MINIATURE}"
    _check(name, pretrained)
    check_device(device)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            model, _, prepare = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, precision="fp32", device=device, pretrained_text=False
            )
        except (
            RuntimeError,
            OSError,
            HfHubHTTPError,
            SafetensorError,
            UnpicklingError,
            LookupError,
        ) as error:
            if name.startswith("local-dir:") or (pretrained and Path(pretrained).is_file()):
                where = name.removeprefix("local-dir:") if name.startswith("local-dir:") else pretrained
                raise ValueError(
                    f"{where}: no weights that fit {name} ({str(error).splitlines()[0][:200]})"
                ) from error
            raise FileNotFoundError(_missing(name, pretrained, error)) from error
        tokenize = open_clip.get_tokenizer(name)
    towers = Towers(model, model.encode_image, model.encode_text)
    label = (
        "the miniature" if str(MINIATURE) in name else " ".join(["open_clip", name, pretrained or "(random)"])
    )
    return Clip(
        towers,
        preparation(prepare),
        tokenize,
        source=label if ":" not in name else label.removesuffix(" (random)"),
    )


def preparation(transform: Compose) -> Preparation:
    """open_clip's evaluation transform as a `Preparation`: all before its last two steps cuts, those two scale.

    Raises:
        ValueError: It does not end with ToTensor and Normalize.
    """
    *cut, tensor, normalize = transform.transforms
    if not isinstance(tensor, ToTensor) or not isinstance(normalize, Normalize):
        raise ValueError(f"want a picture transform that ends with ToTensor and Normalize, got {transform}")
    return Preparation(Compose(cut), tuple(map(float, normalize.mean)), tuple(map(float, normalize.std)))


def _check(name: str, pretrained: str | None) -> None:
    """Refuse an unknown name or tag, and a local folder without weights, before anything is built."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        weights = [
            p
            for p in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
            if (folder / p).is_file()
        ]
        if not (folder / "open_clip_config.json").is_file() or not weights:
            there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
            raise FileNotFoundError(
                f"model.name={name}: looked for open_clip_config.json and open_clip_model.safetensors in {folder}, "
                f"found {there}. Any folder saved for open_clip's `local-dir:` will do."
            )
        return
    if ":" in name:
        return
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 5, 0.4)
        raise ValueError(
            f"model.name={name!r} is not an open_clip model. Nearest: {', '.join(near) or 'none'}."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise FileNotFoundError(
            f"model.pretrained={pretrained!r}: neither a checkpoint file nor a tag of {name}. "
            f"Tags: {', '.join(tags) or 'none'}. Random weights: model.pretrained=null."
        )


def _missing(name: str, pretrained: str | None, error: BaseException) -> str:
    """Where the weights of a tag were looked for, and the command that brings them."""
    config = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    repo = (config.get("hf_hub") or name.removeprefix("hf-hub:")).rstrip("/")
    reason = str(error).splitlines()[0][:160]
    return (
        f"The weights of model.name={name} model.pretrained={pretrained} are not on this machine and could not be "
        f"fetched ({reason}). Looked for {repo} in {constants.HF_HUB_CACHE}. On a machine with a network: "
        f"`hf download {repo}` (the folder can be copied), or give a checkpoint file: model.pretrained=FILE."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's progress talk off the console (it logs on the root logger); its errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
