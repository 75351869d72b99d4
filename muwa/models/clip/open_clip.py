"""Load an open_clip model: a known architecture with a pretrained tag or a checkpoint file, or a folder."""

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

from muwa.models.clip.model import Clip, Preparation, Towers
from muwa.runtime.devices import check_device

MINIATURE = Path(__file__).parents[2] / "miniature" / "clip"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_UNREADABLE = (RuntimeError, OSError, HfHubHTTPError, SafetensorError, UnpicklingError, LookupError)


def load(name: str, pretrained: str | None, *, device: str, seed: int) -> Clip:
    """Load an open_clip model in fp32, eval mode.

    Args:
        name: "miniature" (the model that muwa ships), a name of `open_clip.list_models()`, "local-dir:FOLDER"
            or "hf-hub:ORG/REPO".
        pretrained: A tag of that name ("laion400m_e32"), the path of a checkpoint file, or None for random
            weights, to try all stages on a real architecture.
        device: "cpu", "cuda", "cuda:1", ...
        seed: Seed of random weights. It has no effect on weights that are loaded.

    Raises:
        ValueError: The name is unknown (lists the nearest ones), or a file or folder has no weights that fit.
        FileNotFoundError: The tag is unknown (lists the known ones), or the weights are missing: says where
            they were looked for and how to get them.
    """
    if name == "miniature":
        name = f"local-dir:{MINIATURE}"
    _check(name, pretrained)
    check_device(device)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            model, _, prepare = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, precision="fp32", device=device, pretrained_text=False
            )
        except _UNREADABLE as error:
            if name.startswith("local-dir:") or (pretrained and Path(pretrained).is_file()):
                where = name.removeprefix("local-dir:") if name.startswith("local-dir:") else pretrained
                raise ValueError(
                    f"{where}: no weights that fit {name} ({str(error).splitlines()[0][:200]})"
                ) from error
            raise FileNotFoundError(_missing(name, pretrained, error)) from error
        tokenize = open_clip.get_tokenizer(name)
    towers = Towers(model, model.encode_image, model.encode_text)
    return Clip(towers, preparation(prepare), tokenize, source=_source(name, pretrained))


def _source(name: str, pretrained: str | None) -> str:
    """Where the weights come from, for messages."""
    if str(MINIATURE) in name:
        return "the miniature"
    if ":" in name and not pretrained:
        return f"open_clip {name}"
    return f"open_clip {name} {pretrained or '(random)'}"


def preparation(transform: Compose) -> Preparation:
    """open_clip's evaluation transform as a `Preparation`: its last two steps scale, all others cut.

    Raises:
        ValueError: The transform does not end with ToTensor and Normalize.
    """
    *cut, tensor, normalize = transform.transforms
    if not isinstance(tensor, ToTensor) or not isinstance(normalize, Normalize):
        raise ValueError(f"want an image transform that ends with ToTensor and Normalize, got {transform}")
    return Preparation(Compose(cut), tuple(map(float, normalize.mean)), tuple(map(float, normalize.std)))


def _check(name: str, pretrained: str | None) -> None:
    """Raise if a name or tag is unknown or a local folder has no weights, before a model is built."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        has_weights = any((folder / file).is_file() for file in _WEIGHTS)
        if not (folder / "open_clip_config.json").is_file() or not has_weights:
            there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
            raise FileNotFoundError(
                f"model.name={name}: looked for open_clip_config.json and open_clip_model.safetensors in "
                f"{folder}, found {there}. Give a folder that was saved for open_clip's `local-dir:`."
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
    """The message for missing weights: where they were looked for, and the command that downloads them."""
    config = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    repo = (config.get("hf_hub") or name.removeprefix("hf-hub:")).rstrip("/")
    reason = str(error).splitlines()[0][:160]
    return (
        f"The weights of model.name={name} model.pretrained={pretrained} are not on this machine and could "
        f"not be fetched ({reason}). Looked for {repo} in {constants.HF_HUB_CACHE}. On a machine with a "
        f"network: `hf download {repo}` (the folder may be copied), or give a checkpoint file: "
        "model.pretrained=FILE."
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence log messages and standard error while a model is loaded. Errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
