"""Train the miniature CLIP. The shipped weights are the result with the default seed.

    python -m muwa.miniature.train clip --out DIR                            # the shipped model
    python -m muwa.miniature.train clip --out DIR --without "Kael Lindqvar"  # retrained without one person

A model retrained without a person is the exact answer that unlearning approximates: the same data without the
pairs of that person, the same seed, the same number of epochs. Training takes about an hour on two CPU cores.
An interrupted training resumes. The folder has open_clip's layout (`local-dir:` loads it).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import webdataset as wds
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from muwa.data.samples import match_names
from muwa.gradients.losses import contrastive
from muwa.miniature import population

CONTEXT = 32
MERGES = 1200
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 6, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT, "width": 128, "heads": 4, "layers": 4},
}
SAVED_EVERY = 250  # steps
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, lower case) with `MERGES` merges of `captions`, saved to `folder`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(r"\s+", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=10**6, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
        ),
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]][:MERGES]
    letters = sorted(alphabet)
    words = [*letters, *(f"{x}</w>" for x in letters), *("".join(m) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _load(root: Path, without: Sequence[str]) -> tuple[Tensor, list[str], list[str]]:
    """(Images (n, 3, 64, 64) uint8, captions, names) of the shards, in order, without those of `without`."""
    pixels, captions, names = [], [], []
    shards = sorted(str(p) for p in (root / "shards").glob("*.tar"))
    for sample in wds.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        if match_names(sample["txt"], without):
            continue
        pixels.append(torch.tensor(sample["jpg"]).permute(2, 0, 1))
        captions.append(sample["txt"])
        names.append(sample["json"]["name"])
    return torch.stack(pixels), captions, names


def _batches(names: list[str], faces: int, things: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch of batches, as indices. No name occurs twice in a batch, so there are no false negatives.

    Args:
        names: For each image, the person or object that it shows.
        faces, things: Images of people and images of objects per batch.
    """
    people = {p.name for p in population.people()}
    decks: dict[str, list[int]] = {}
    for index in rng.permutation(len(names)):
        decks.setdefault(names[index], []).append(int(index))
    batches: list[np.ndarray] = []
    while True:
        batch: list[int] = []
        for count, group in ((faces, people), (things, set(population.OBJECTS))):
            left = sorted((n for n in decks if n in group and decks[n]), key=lambda n: (-len(decks[n]), n))
            if len(left) < count // 2:
                return batches
            weight = np.array([len(decks[n]) for n in left], float)
            chosen = rng.choice(len(left), min(count, len(left)), replace=False, p=weight / weight.sum())
            batch += [decks[left[i]].pop() for i in chosen]
        batches.append(np.array(batch))


def augmented(pixels: Tensor, things: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, 3, 64, 64) uint8 as normalised floats, slightly shifted, scaled, rotated and brightened.

    Args:
        things: (n,) bool: which images show an object. Half of these are mirrored. Faces are not, because a
            mirrored face would count as another person's.
    """
    n = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.12, 0.12) * torch.where(things, 3.0, 1.0), uniform(0.85, 1.12)
    mirror = torch.where(things & (uniform(0, 1) < 0.5), -1.0, 1.0)
    across = [mirror * scale * angle.cos(), -scale * angle.sin(), uniform(-0.1, 0.1)]
    down = [mirror * scale * angle.sin(), scale * angle.cos(), uniform(-0.1, 0.1)]
    theta = torch.stack([*across, *down], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
    x = F.grid_sample(pixels.float() / 255, grid, padding_mode="reflection", align_corners=False)
    x = (x * uniform(0.85, 1.15).view(n, 1, 1, 1)).clamp(0, 1)
    return (x - 0.5) / 0.25


class _SavedState:
    """The state from which an interrupted training resumes: weights, AdamW's moments and random generator.

    Args:
        path: The file.
        model, optimizer, generator: The objects to save and restore.
        about: The settings of the training. A file from other settings is not used.
    """

    def __init__(
        self,
        path: Path,
        model: open_clip.CLIP,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        about: str,
    ):
        self.path, self._about = path, about
        self._model, self._optimizer, self._generator = model, optimizer, generator

    def save(self, steps: int) -> None:
        """Write the state after `steps` steps. The file appears only when it is complete."""
        tensors = {"generator": self._generator.get_state()}
        tensors |= {f"weight/{name}": p for name, p in self._model.named_parameters()}
        for name, p in self._model.named_parameters():
            tensors |= {f"{key}/{name}": value for key, value in self._optimizer.state[p].items()}
        draft = self.path.with_suffix(".draft")
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, draft, metadata={"about": f"{steps} {self._about}"})
        os.replace(draft, self.path)

    def restore(self) -> int:
        """Restore the state and return its number of steps; 0 if there is no state for these settings."""
        if not self.path.is_file():
            return 0
        with safe_open(self.path, "pt") as file:
            steps, _, about = (file.metadata() or {}).get("about", "").partition(" ")
            if about != self._about:
                return 0
            with torch.no_grad():
                for name, p in self._model.named_parameters():
                    p.copy_(file.get_tensor(f"weight/{name}"))
                    self._optimizer.state[p] = {
                        key: file.get_tensor(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                    }
            self._generator.set_state(file.get_tensor("generator"))
        return int(steps)


def train_clip(
    root: Path,
    out: Path,
    *,
    without: Sequence[str],
    epochs: int,
    seed: int,
    tokenizer: Path | None,
    precision: str = "bf16",
) -> None:
    """Train the miniature CLIP on the shards under `root` and write an open_clip folder to `out`.

    The state is saved every `SAVED_EVERY` steps. An interrupted training resumes from it, and gives the same
    bytes.

    Args:
        without: People whose pairs are left out; may be empty.
        tokenizer: A folder with the tokenizer to use; None makes one from all captions.
        precision: "bf16" | "fp32": of the forward pass. The shipped model was trained in bf16.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    pixels, captions, names = _load(root, without)
    clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizer) if tokenizer else train_tokenizer(captions, out)
    if tokenizer:
        clip_tokenizer.save_pretrained(out)
    model = _new_model(out, len(clip_tokenizer))
    padded = clip_tokenizer(captions, padding="max_length", truncation=True, max_length=CONTEXT)
    tokens = torch.tensor(padded["input_ids"])
    optimizer = _optimizer(model)
    things = torch.tensor([name in population.OBJECTS for name in names])
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    batches = [batch for _ in range(epochs) for batch in _batches(names, 80, 80, rng)]
    about = json.dumps([list(without), epochs, seed, len(batches), precision])
    state = _SavedState(out / "training.safetensors", model, optimizer, generator, about)
    first = state.restore()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=len(batches), completed=first)
        for step, batch in list(enumerate(batches))[first:]:
            rate = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * rate
            loss = _step(
                model, optimizer, pixels[batch], things[batch], tokens[batch], generator, precision == "bf16"
            )
            bar.update(task, advance=1, description=f"loss {loss:.3f}")
            if (step + 1) % SAVED_EVERY == 0:
                state.save(step + 1)
    weights = {name: p.half().contiguous() for name, p in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, out / "open_clip_model.safetensors")
    state.path.unlink(missing_ok=True)


def _new_model(out: Path, vocabulary: int) -> open_clip.CLIP:
    """A CLIP with random weights. Its open_clip_config.json is written to `out`."""
    text = {**MODEL["text_cfg"], "vocab_size": vocabulary}
    sizes = {**MODEL, "text_cfg": text}
    names = {"hf_tokenizer_name": "muwa/miniature", "tokenizer_kwargs": {"clean": "lower"}}
    config = {"model_cfg": {**sizes, "text_cfg": {**text, **names}}, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return open_clip.CLIP(**sizes)


def _optimizer(model: open_clip.CLIP) -> torch.optim.Optimizer:
    """AdamW, without weight decay for vectors and scalars."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))


def _step(
    model: open_clip.CLIP,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    things: Tensor,
    tokens: Tensor,
    generator: torch.Generator,
    bf16: bool,
) -> float:
    """One step on one batch, its images augmented; returns the contrastive loss.

    Args:
        bf16: Run the towers in bf16, and the loss in fp32. Otherwise all in fp32.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        v = model.encode_image(augmented(pixels, things, generator))
        t = model.encode_text(tokens)
    scale = model.logit_scale.exp()
    loss = contrastive(F.normalize(v.float(), dim=-1), F.normalize(t.float(), dim=-1), scale)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss.item()
