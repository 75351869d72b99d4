"""Load a Hugging Face `CLIPModel` from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import constants
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from muwa.models.clip import Clip, Towers, check_device

_SINGLE = ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = "model.safetensors.index.json"


class _Prepare:
    """PIL picture -> pixels (3, h, w) by the folder's own image processor."""

    def __init__(self, processor: CLIPImageProcessor):
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    def __repr__(self) -> str:
        return self._processor.to_json_string()


def _check(folder: Path) -> None:
    """Refuse a folder that lacks a part (without its tokenizer, every text would become the same tokens, silently)."""
    there = {p.name for p in folder.iterdir()}
    parts = {
        "config.json": ("config.json",), "model.safetensors": (*_SINGLE, _INDEX),
        "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
        "tokenizer.json": ("tokenizer.json", "vocab.json"),
    }  # fmt: skip
    missing = [name for name, files in parts.items() if not there & set(files)]
    if missing:
        raise FileNotFoundError(
            f"model.path={folder}: looked for {', '.join(parts)} as save_pretrained of model, image processor and "
            f"tokenizer writes them; {', '.join(missing)} missing, found {sorted(there)[:8]}"
        )


def load(path: str, *, device: str = "cpu") -> Clip:
    """Load a `CLIPModel` with its tokenizer and image processor in fp32, eval mode.

    Args:
        path: A folder written by `save_pretrained` (model, tokenizer and image processor), or a hub id.
        device: "cpu", "cuda", ...

    Raises:
        FileNotFoundError: The weights are not there: names them, where they were looked for, and how to bring them.
    """
    check_device(device)
    if Path(path).is_dir():
        _check(Path(path))
    try:
        model, found = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        processor = CLIPImageProcessor.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"model.path={path}: its weights do not fit its config ({str(error).splitlines()[0][:200]})"
        ) from error
    except OSError as error:
        if Path(path).is_dir():
            raise ValueError(f"model.path={path}: cannot be read ({str(error).splitlines()[0][:200]})") from error
        raise FileNotFoundError(
            f"model.path={path}: no such folder, and the hub id is not in {constants.HF_HUB_CACHE} and could not be "
            f"fetched ({str(error).splitlines()[0][:160]}). On a machine with a network: `hf download {path}`, or give "
            "a folder with config.json, model.safetensors, preprocessor_config.json and tokenizer files."
        ) from error
    if found["missing_keys"]:
        raise ValueError(f"model.path={path}: no weights for {', '.join(sorted(found['missing_keys'])[:4])}")
    model.to(device)
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> Tensor:
        batch = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return batch["input_ids"]

    towers = Towers(
        model,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        lambda tokens: model.get_text_features(input_ids=tokens).pooler_output,
    )
    return Clip(towers, _Prepare(processor), tokenize, source=f"Hugging Face CLIPModel {path}")
