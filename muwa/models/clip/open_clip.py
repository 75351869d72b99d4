"""Load an open_clip model: a known architecture with a pretrained tag or a checkpoint file, or a folder."""

from __future__ import annotations

import difflib
import tempfile
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

from muwa.json_files import read_json
from muwa.models.clip.model import Clip, Preparation, Towers
from muwa.models.hub_access import cache_if_out_of_reach, out_of_reach
from muwa.models.library_output import one_line, quietly
from muwa.patch.ledger import requests_on
from muwa.runtime.devices import check_device
from muwa.runtime.notices import notice
from muwa.types.ranges import Device, Seed, Source
from muwa.weight_files.diagnosis import check_file
from muwa.weight_files.reading import misfit, read_state_dict, shapes

MINIATURE = Path(__file__).parents[2] / "miniature" / "clip"
# The files in which open_clip looks for a folder's weights, in its order; any other *.safetensors, *.bin and
# *.pth stand behind them.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_KINDS = (".safetensors", ".bin", ".pth")
# Settings that OpenAI's files hold among their weights; open_clip drops them too.
_SETTINGS = ("input_resolution", "context_length", "vocab_size")
# What open_clip raises, depending on what is wrong with a file.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    OSError,
    HfHubHTTPError,
    SafetensorError,
    UnpicklingError,
    LookupError,
    AttributeError,
    TypeError,
    StopIteration,
)


def load(name: Source, pretrained: Source | None, *, device: Device, seed: Seed) -> Clip:
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
    file = _local_weights(name, pretrained)
    folder = name.removeprefix("local-dir:") if name.startswith("local-dir:") else None
    place = Path(folder) if folder else file
    requests = requests_on(place) if place else ()
    if file is not None:
        check_file(file, "" if folder else "model.pretrained=")
    _warn_of_activation(name, pretrained)
    from_hub = file is None and (pretrained is not None or name.startswith("hf-hub:"))
    with torch.random.fork_rng(devices=[]), cache_if_out_of_reach(from_hub), quietly():
        torch.manual_seed(seed)
        try:
            model, prepare = _create(name, pretrained, device)
        except _UNREADABLE as error:
            if file is None and isinstance(error, ValueError):
                raise ValueError(f"model.name={name}: cannot be loaded ({one_line(str(error))})") from error
            if file is None:
                raise FileNotFoundError(_missing(name, pretrained, error)) from error
            model, prepare = _create_empty(name, pretrained, device)
            _fit(model, file, name)
        tokenize = open_clip.get_tokenizer(name)
    towers = Towers(model, model.encode_image, model.encode_text)
    source = _source(name, pretrained)
    return Clip(towers, preparation(prepare), tokenize, source=source, requests=requests, place=place)


def _create(name: str, pretrained: str | None, device: str, **options: Any) -> tuple[Any, Compose]:
    """(The model in fp32, its evaluation transform), as open_clip makes them."""
    with warnings.catch_warnings():
        # Its warning of another activation; `_warn_of_activation` says that, and what to do.
        warnings.filterwarnings("ignore", category=UserWarning, module="open_clip.factory")
        model, _, prepare = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, precision="fp32", device=device, pretrained_text=False, **options
        )
    if name.startswith("hf-hub:") and options.get("load_weights", True):
        _check_hub_weights(name)
    return model, prepare


def _create_empty(name: str, pretrained: str | None, device: str) -> tuple[Any, Compose]:
    """As `_create`, without weights.

    Raises:
        ValueError: open_clip cannot build the model that a folder's config describes.
    """
    try:
        return _create(name, pretrained, device, load_weights=False)
    except _UNREADABLE as error:
        raise ValueError(
            f"model.name={name}: open_clip cannot build the model of its config ({one_line(str(error))})"
        ) from error


def _check_hub_weights(name: str) -> None:
    """Raise if open_clip found no weights at a hub id: it would take random ones and only log that.

    Raises:
        HfHubHTTPError, OSError: The hub has none, or cannot be reached.
    """
    open_clip.download_pretrained_from_hf(name.removeprefix("hf-hub:"))


def _warn_of_activation(name: str, pretrained: str | None) -> None:
    """Log if a tag's weights were trained with another activation than the architecture has.

    open_clip's table says which: QuickGELU (x * sigmoid(1.702 x)) or GELU. Results differ by points: ImageNet
    62.9 % and 60.2 % for ViT-B-32 laion400m_e32 (muwa/conf/model/clip_vit_b32.yaml).
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained and ":" not in name else {}
    if not tag:
        return
    used = {True: "QuickGELU", False: "GELU"}
    trained, built = tag.get("quick_gelu", False), open_clip.get_model_config(name).get("quick_gelu", False)
    if trained != built:
        same = f"{name}-quickgelu"
        mend = f"; as they were trained: model.name={same}" if same in open_clip.list_models() else ""
        notice(
            f"model.name={name} model.pretrained={pretrained}: these weights were trained with "
            f"{used[trained]}, {name} has {used[built]}, so that results differ{mend}"
        )


def _local_weights(name: str, pretrained: str | None) -> Path | None:
    """The file of this machine that the weights are read from; None for a tag, a hub id or random weights."""
    if name.startswith("local-dir:"):
        return _weights_in(Path(name.removeprefix("local-dir:")))
    if ":" in name or not pretrained or pretrained in open_clip.list_pretrained_tags_by_model(name):
        return None
    return Path(pretrained)


def _weights_in(folder: Path) -> Path | None:
    """The weight file that open_clip takes from a folder."""
    there = [path for path in sorted(folder.glob("*")) if path.suffix in _KINDS]
    named = [folder / name for name in _WEIGHTS if folder / name in there]
    others = sorted(there, key=lambda path: path.suffix != ".safetensors")
    return next(iter([*named, *others]), None)


def _fit(model: Any, file: Path, name: str) -> None:
    """Load a file's weights under the names that wrappers of a model left unsaid (`plain_names`).

    Raises:
        ValueError: The file holds no weights, or weights of another model; says which names differ.
    """
    found = {key: tensor for key, tensor in read_state_dict(file).items() if key not in _SETTINGS}
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.safetensors"
            save_file({key: tensor.contiguous().clone() for key, tensor in found.items()}, plain)
            open_clip.load_checkpoint(model, str(plain))
    except _UNREADABLE as error:
        wanted = {key: tensor for key, tensor in model.state_dict().items() if key != "attn_mask"}
        raise ValueError(
            f"{file}: these weights do not fit {name} ({misfit(shapes(found), shapes(wanted))}){_hint(found)}"
        ) from error


def _hint(found: dict[str, Tensor]) -> str:
    """What to do with weights that have the names of another library."""
    if any(key.startswith(("vision_model.", "text_model.")) for key in found):
        return "; these names are those of transformers: model=clip_hf model.path=FOLDER"
    return ""


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
        _check_folder(name, Path(name.removeprefix("local-dir:")))
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


def _check_folder(name: str, folder: Path) -> None:
    """Raise if a folder has no config that can be read, or no weights."""
    config = folder / "open_clip_config.json"
    if not config.is_file() or _weights_in(folder) is None:
        there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"model.name={name}: looked for open_clip_config.json and open_clip_model.safetensors in "
            f"{folder}, found {there}. Give a folder that was saved for open_clip's `local-dir:`. For one of "
            "transformers' save_pretrained: model=clip_hf model.path=FOLDER."
        )
    try:
        known = "model_cfg" in read_json(config, dict, "the config that open_clip saves")
    except ValueError as error:
        raise ValueError(f"model.name={name}: {config} is not JSON ({error})") from error
    if not known:
        raise ValueError(
            f"model.name={name}: {config} has no model_cfg; want the config that open_clip saves"
        )


def _missing(name: str, pretrained: str | None, error: BaseException) -> str:
    """The message for missing weights: where they were looked for, and the command that downloads them."""
    config = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    repo = (config.get("hf_hub") or name.removeprefix("hf-hub:")).rstrip("/")
    reason = out_of_reach() or one_line(str(error))
    return (
        f"The weights of model.name={name} model.pretrained={pretrained} are not on this machine and could "
        f"not be fetched ({reason}). Looked for {repo} in {constants.HF_HUB_CACHE}. On a machine with a "
        f"network: `hf download {repo}` (the folder may be copied), or give a checkpoint file: "
        "model.pretrained=FILE."
    )
