"""Load a model from a folder or a hub id by `from_pretrained`: which files, no foreign code, all weights.

The classes are given by the families; this module imports no model library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError

from muwa.models.library_output import one_line
from muwa.weight_files.components import weights_of
from muwa.weight_files.reading import WRAPPERS, differences

log = logging.getLogger(__name__)

# What `from_pretrained` raises, depending on which file of a folder is damaged. The hub's own errors are
# OSErrors.
LOADING_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    OSError,
    SafetensorError,
    UnpicklingError,
)
# What wrappers of a model added to the names of its weights -> nothing, as `from_pretrained` takes it.
_UNWRAP = {**{rf"(^|\.){wrapper}\.": r"\1" for wrapper in sorted(WRAPPERS)}, r"^module\.": ""}


def tried(path: str, wanted: str, read: Callable[[], Any]) -> Any:
    """`read()`; what a library raises becomes an error of one line.

    Args:
        path: The setting `model.path`: a folder or a hub id.
        wanted: What a folder must hold, for the message.

    Raises:
        ValueError: The folder cannot be loaded.
        FileNotFoundError: There is no such folder, and no such hub id that can be had.
    """
    try:
        return read()
    except LOADING_ERRORS as error:
        reason = one_line(str(error)) or type(error).__name__
        if path == "miniature" or Path(path).is_dir():
            raise ValueError(f"model.path={path}: cannot be loaded ({reason})") from error
        raise FileNotFoundError(
            f"model.path={path}: no such folder, and no hub id that is in {constants.HF_HUB_CACHE} or could "
            f"be fetched ({reason}). On a machine with a network: `hf download {path}` (ids leave the hub; "
            f"conf/model/ has those that we know), or give a folder with {wanted}, as save_pretrained writes "
            "it."
        ) from error


def check_code(path: str, config: Mapping[str, Any], known_types: Collection[str]) -> None:
    """Raise if a config wants Python code of its folder. Log it if transformers has its own class.

    Args:
        config: The content of config.json.
        known_types: The model types that transformers has classes for.

    Raises:
        ValueError: The model type is known to that code alone. Names the code.
    """
    code = config.get("auto_map")
    if not code:
        return
    classes = ", ".join(map(str, code.values())) if isinstance(code, Mapping) else str(code)
    kind = config.get("model_type")
    if kind not in known_types:
        raise ValueError(
            f"model.path={path}: its config.json wants code of its own ({classes}) for the model type "
            f"{kind!r}. muwa runs no code of a folder; want a model type that transformers has"
        )
    log.warning(
        f"model.path={path}: the code that its config.json names ({classes}) is not run; transformers' own "
        f"{kind} is taken"
    )


def weight_options(path: str) -> dict[str, Any]:
    """Options of `from_pretrained` for the weights that a folder has; none for a hub id.

    Raises:
        FileNotFoundError, ValueError: See `muwa.weight_files.components.weights_of`.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {}
    taken = weights_of(folder, "model.path")
    if taken.variant is not None:
        log.warning(f"model.path={path}: its weights are there as {taken.variant} alone; these are read")
    return {"variant": taken.variant, "use_safetensors": not taken.pickled}


def read_model(kind: Any, path: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """`kind.from_pretrained(path, **options)` without code of the folder, and what did not fit.

    Names of weights that a wrapper of the model changed (torch.compile, FSDP, DataParallel) are put right.

    Returns:
        (the model, transformers' loading info). `check_complete` raises if weights are missing.
    """
    options = {
        **options,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `check_complete` refuses them, and says which
    }
    model, info = kind.from_pretrained(path, **options)
    if info["missing_keys"] and any(_is_wrapped(name) for name in info["unexpected_keys"]):
        model, info = kind.from_pretrained(path, key_mapping=_UNWRAP, **options)
    return model, info


def _is_wrapped(name: str) -> bool:
    return name.startswith("module.") or not WRAPPERS.isdisjoint(name.split("."))


def check_complete(path: str, info: Mapping[str, Any]) -> None:
    """Raise if weights are missing or have another shape; log those that the model does not use.

    Args:
        info: transformers' loading info.

    Raises:
        ValueError: Says the first names of each kind.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    differ = differences(missing, unexpected, sorted(info["mismatched_keys"]))
    if missing or info["mismatched_keys"]:
        raise ValueError(f"model.path={path}: no weights for this model in some places: {differ}")
    if unexpected:
        log.warning(f"model.path={path}: weights that the model does not use: {differ}")
