"""Load a Hugging Face `CLIPModel` or `SiglipModel` from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, PretrainedConfig, SiglipImageProcessor
from transformers import __version__ as version

from muwa.models.clip.model import Clip, Preparation, Towers
from muwa.models.hub_access import cache_if_out_of_reach
from muwa.models.library_output import quietly
from muwa.models.pretrained import check_code, check_complete, read_model, tried, weight_options
from muwa.patch.ledger import local_place, requests_on
from muwa.runtime.devices import check_device
from muwa.types.ranges import Device, Source

WANTED = "config.json, model.safetensors, preprocessor_config.json and tokenizer files"  # in a folder

# model_type of the config -> class
_PROCESSORS = {"clip": CLIPImageProcessor, "siglip": SiglipImageProcessor}
_PARTS = {  # what a folder needs besides its weights -> the files that can hold it
    "config.json": ("config.json",),
    "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
    "tokenizer.json": ("tokenizer.json", "vocab.json"),
}


class _Cut:
    """PIL image -> PIL image of the tower's size, by the folder's own image processor."""

    def __init__(self, processor: CLIPImageProcessor | SiglipImageProcessor):
        self._processor = processor

    def __call__(self, image: Image.Image) -> Image.Image:
        batch = self._processor(images=image, return_tensors="pt", do_rescale=False, do_normalize=False)
        return Image.fromarray(batch["pixel_values"][0].permute(1, 2, 0).numpy())

    def __repr__(self) -> str:
        return self._processor.to_json_string()


def preparation(processor: CLIPImageProcessor | SiglipImageProcessor, path: str) -> Preparation:
    """A folder's image processor as a `Preparation`.

    Raises:
        ValueError: It does not scale values from [0, 255] to [0, 1] and normalise them, as every CLIP's does.
    """
    rescales = processor.do_rescale and abs(processor.rescale_factor - 1 / 255) <= 1e-9
    if not rescales or not processor.do_normalize:
        raise ValueError(
            f"model.path={path}: its image processor must rescale by 1/255 and normalise, as CLIP's do"
        )
    return Preparation(_Cut(processor), tuple(processor.image_mean), tuple(processor.image_std))


def _check(folder: Path) -> None:
    """Raise if a folder lacks a part.

    Without the tokenizer's files, transformers would map every text to the same tokens and say nothing.
    """
    there = {p.name for p in folder.iterdir()}
    missing = [part for part, files in _PARTS.items() if not there & set(files)]
    if missing:
        raise FileNotFoundError(
            f"model.path={folder}: looked for config.json, model.safetensors, preprocessor_config.json and "
            "tokenizer.json as save_pretrained of model, image processor and tokenizer writes them; "
            f"{', '.join(missing)} missing, found {sorted(there)[:8]}"
        )


def load(path: Source, *, device: Device) -> Clip:
    """Load a `CLIPModel` or `SiglipModel` with its tokenizer and image processor in fp32, eval mode.

    A SigLIP is edited with the same losses as a CLIP (`muwa.gradients.losses`): they have a softmax over the
    batch, not the sigmoid of SigLIP's training.

    Args:
        path: A folder written by `save_pretrained` (model, tokenizer and image processor), or a hub id.
        device: "cpu", "cuda", ...

    Raises:
        FileNotFoundError: Files are missing: says where they were looked for and how to get them.
        ValueError: It is another kind of model, or the weights do not fit its config.
    """
    check_device(device)
    if Path(path).is_dir():
        _check(Path(path))
    model, processor, tokenizer = _read(path)
    model.to(device)
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> Tensor:
        batch = tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return batch["input_ids"]

    towers = Towers(
        model,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        lambda tokens: model.get_text_features(input_ids=tokens).pooler_output,
    )
    source = f"Hugging Face {type(model).__name__} {path}"
    requests, place = requests_on(path), local_place(path)
    return Clip(towers, preparation(processor, path), tokenize, source=source, requests=requests, place=place)


def _read_tokenizer(path: str, kind: str) -> Any:
    """The tokenizer of a folder or a hub id.

    Raises:
        ValueError: This transformers lacks a package that the tokenizer needs.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except AttributeError as error:  # transformers 5.0 knows no SigLIP tokenizer without sentencepiece
        raise ValueError(
            f"model.path={path}: transformers {version} cannot read the tokenizer of a {kind} here "
            f"({str(error)[:100]}). It may need a package: `pip install sentencepiece`"
        ) from error


def _read(path: str) -> tuple[Any, Any, Any]:
    """(model, image processor, tokenizer) of a folder or a hub id. The errors are those of `load`."""
    options = weight_options(path)
    with cache_if_out_of_reach(not Path(path).is_dir()), quietly():
        config = tried(path, WANTED, lambda: PretrainedConfig.get_config_dict(path)[0])
        kind = config.get("model_type")
        check_code(path, config, _PROCESSORS)
        if kind not in _PROCESSORS:
            raise ValueError(
                f"model.path={path}: a model of type {kind}, want one of {', '.join(_PROCESSORS)}"
            )
        model, info = tried(path, WANTED, lambda: read_model(AutoModel, path, dtype=torch.float32, **options))
        check_complete(path, info)
        processor = tried(path, WANTED, lambda: _PROCESSORS[kind].from_pretrained(path))
        tokenizer = tried(path, WANTED, lambda: _read_tokenizer(path, kind))
    return model, processor, tokenizer
