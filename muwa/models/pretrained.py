"""Load a model from a folder or a hub id by `from_pretrained`: which files, no foreign code, all weights.

The classes are given by the families; this module imports no model library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError

from muwa.json_files import read_json
from muwa.models.hub_access import out_of_reach
from muwa.models.library_output import one_line
from muwa.runtime.notices import notice
from muwa.weight_files.components import weights_of
from muwa.weight_files.diagnosis import PICKLED, foreign_objects
from muwa.weight_files.reading import WRAPPERS, differences, why_refused

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
# Configs beside config.json that may name code of the folder.
_OTHER_CONFIGS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
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
        if (pickled := _refused_pickle(path, error)) is not None:
            raise ValueError(f"model.path: {why_refused(pickled)}") from error
        reason = one_line(str(error)) or type(error).__name__
        if path == "miniature" or Path(path).is_dir():
            raise ValueError(f"model.path={path}: cannot be loaded ({reason})") from error
        reason = (isinstance(error, OSError) and out_of_reach()) or reason
        raise FileNotFoundError(
            f"model.path={path}: no such folder, and no hub id that is in {constants.HF_HUB_CACHE} or could "
            f"be fetched ({reason}). On a machine with a network: `hf download {path}` (ids leave the hub; "
            f"muwa/conf/model/ has those that we know), or give a folder with {wanted}, as "
            "save_pretrained writes it."
        ) from error


def _refused_pickle(path: str, error: BaseException) -> Path | None:
    """The pickled file of a folder that torch refused, if that is behind an error."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if not any(isinstance(one, UnpicklingError) for one in seen):
        return None
    pickled = sorted(one for one in Path(path).rglob("*") if one.suffix in PICKLED)
    return next((one for one in pickled if foreign_objects(one)), next(iter(pickled), None))


def check_code(path: str, config: Mapping[str, Any], known_types: Collection[str]) -> None:
    """Raise if a config wants Python code of its folder. Log it if transformers has its own class.

    Args:
        config: The content of config.json.
        known_types: The model types that transformers has classes for.

    Raises:
        ValueError: The model type is known to that code alone. Names the code.
    """
    for name in _OTHER_CONFIGS:
        if other := _classes(_read_json(Path(path) / name)):
            notice(
                f"model.path={path}: the code that its {name} names ({other}) is not run; transformers' own "
                "classes are taken"
            )
    if not (classes := _classes(config)):
        return
    kind = config.get("model_type")
    if kind not in known_types:
        raise ValueError(
            f"model.path={path}: its config.json wants code of its own ({classes}) for the model type "
            f"{kind!r}. muwa runs no code of a folder; want a model type that transformers has"
        )
    notice(
        f"model.path={path}: the code that its config.json names ({classes}) is not run; transformers' own "
        f"{kind} is taken"
    )


def _classes(config: Mapping[str, Any]) -> str:
    """The classes of a folder's own code that a config names, for messages; "" if there are none."""
    code = config.get("auto_map") or {}
    given = code.values() if isinstance(code, Mapping) else [code]
    parts = [part for one in given for part in (one if isinstance(one, list) else [one]) if part]
    return ", ".join(map(str, parts))


def _read_json(path: Path) -> Mapping[str, Any]:
    """The content of a JSON file of a folder; nothing if there is none, or if the library has to say why."""
    try:
        found: dict[str, Any] = read_json(path, dict, "a config")
        return found
    except (OSError, ValueError):
        return {}


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
        notice(f"model.path={path}: its weights are there as {taken.variant} alone; these are read")
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
        notice(f"model.path={path}: weights that the model does not use: {differ}")
