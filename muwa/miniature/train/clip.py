"""Train the miniature's models. The shipped weights came from exactly this, with the default seed.

    python -m muwa.miniature.train clip --out DIR                          # the shipped model
    python -m muwa.miniature.train clip --out DIR --without "Kael Lindqvar"  # its twin that never saw one person

The twin is the exact answer that unlearning approximates: same data less that person's pairs, same seed, same steps.
About an hour on two CPU cores; goes on where it was stopped. The folder is open_clip's own layout (`local-dir:` loads it).
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import open_clip
import torch
import webdataset as wds
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 6, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT, "width": 128, "heads": 4, "layers": 4},
}
SAVED_EVERY = 250  # steps
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, lower case) with `MERGES` merges, learnt from `captions`, saved to `folder`."""
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


def _load(root: Path, without: str | None) -> tuple[Tensor, list[str], list[str]]:
    """Training pictures (n, 3, 64, 64) uint8, captions and names, in shard order, less those of `without`."""
    pixels, captions, names = [], [], []
    shards = sorted(str(p) for p in (root / "shards").glob("*.tar"))
    for sample in wds.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        if without and match_names(sample["txt"], [without]):
            continue
        pixels.append(torch.tensor(sample["jpg"]).permute(2, 0, 1))
        captions.append(sample["txt"])
        names.append(sample["json"]["name"])
    return torch.stack(pixels), captions, names


def _batches(names: list[str], faces: int, things: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch: each batch holds `faces` + `things` pictures of as many *different* names (no false negatives)."""
    people = {p.name for p in population.people()}
    decks: dict[str, list[int]] = {}
    for index in rng.permutation(len(names)):
        decks.setdefault(names[index], []).append(int(index))
    batches: list[np.ndarray] = []
    while True:
        batch = []
        for count, group in ((faces, people), (things, set(population.OBJECTS))):
            left = sorted((n for n in decks if n in group and decks[n]), key=lambda n: (-len(decks[n]), n))
            if len(left) < count // 2:
                return batches
            weight = np.array([len(decks[n]) for n in left], float)
            chosen = rng.choice(len(left), min(count, len(left)), replace=False, p=weight / weight.sum())
            batch += [decks[left[i]].pop() for i in chosen]
        batches.append(np.array(batch))


def augmented(pixels: Tensor, things: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 -> normalised float, each picture shifted, scaled, turned and brightened a little; `things` also mirrored.

    Args:
        things: (n,) bool: which pictures show an object (a mirrored face would be somebody else).
    """
    n = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.12, 0.12) * torch.where(things, 3.0, 1.0), uniform(0.85, 1.12)
    mirror = torch.where(things & (uniform(0, 1) < 0.5), -1.0, 1.0)
    theta = torch.stack(
        [mirror * scale * angle.cos(), -scale * angle.sin(), uniform(-0.1, 0.1),
         mirror * scale * angle.sin(), scale * angle.cos(), uniform(-0.1, 0.1)], 1
    ).view(n, 2, 3)  # fmt: skip
    grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
    x = F.grid_sample(pixels.float() / 255, grid, padding_mode="reflection", align_corners=False)
    x = (x * uniform(0.85, 1.15).view(n, 1, 1, 1)).clamp(0, 1)
    return (x - 0.5) / 0.25


def _keep(path: Path, model: open_clip.CLIP, optimizer: torch.optim.Optimizer, drawn: Tensor, about: str) -> None:
    """Write what a stopped training goes on from, whole or not at all."""
    tensors = {"generator": drawn, **{f"weight/{name}": p for name, p in model.named_parameters()}}
    for name, p in model.named_parameters():
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[p].items()}
    draft = path.with_suffix(".draft")
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, draft, metadata={"about": about})
    os.replace(draft, path)


def _go_on(
    path: Path, model: open_clip.CLIP, optimizer: torch.optim.Optimizer, about: str
) -> tuple[int, Tensor | None]:
    """(steps done, the generator's state) after putting weights and moments back; (0, None) where nothing fits `about`."""
    if not path.is_file():
        return 0, None
    with safe_open(path, "pt") as file:
        done, _, of = (file.metadata() or {}).get("about", "").partition(" ")
        if of != about:
            return 0, None
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(file.get_tensor(f"weight/{name}"))
                optimizer.state[p] = {
                    key: file.get_tensor(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                }
        return int(done), file.get_tensor("generator")


def train_clip(root: Path, out: Path, *, without: str | None, epochs: int, seed: int, tokenizer: Path | None) -> None:
    """Train the miniature CLIP on the shards under `root` and write an open_clip folder to `out`.

    A training that was stopped goes on where it was (every `SAVED_EVERY` steps) and ends with the same bytes.

    Args:
        without: A person whose pairs are left out, or None.
        tokenizer: A folder with the tokenizer to use; None trains one on all captions of the world.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    pixels, captions, names = _load(root, without)
    clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizer) if tokenizer else train_tokenizer(captions, out)
    if tokenizer:
        clip_tokenizer.save_pretrained(out)
    config = json.loads(json.dumps(MODEL))
    config["text_cfg"] |= {
        "vocab_size": len(clip_tokenizer), "hf_tokenizer_name": "muwa/miniature", "tokenizer_kwargs": {"clean": "lower"},
    }  # fmt: skip
    (out / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}, indent=2) + "\n"
    )
    model = open_clip.CLIP(**{k: v for k, v in config.items() if k != "text_cfg"}, text_cfg={
        k: v for k, v in config["text_cfg"].items() if k not in ("hf_tokenizer_name", "tokenizer_kwargs")
    })  # fmt: skip
    tokens = torch.tensor(
        clip_tokenizer(captions, padding="max_length", truncation=True, max_length=CONTEXT)["input_ids"]
    )
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.98))  # fmt: skip
    things = torch.tensor([name in population.OBJECTS for name in names])
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    schedule = [b for _ in range(epochs) for b in _batches(names, 80, 80, rng)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    state, about = out / "training.safetensors", json.dumps([without, epochs, seed, len(schedule)])
    first, drawn = _go_on(state, model, optimizer, about)
    if drawn is not None:
        generator.set_state(drawn)
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=len(schedule), completed=first)
        for step, batch in list(enumerate(schedule))[first:]:
            rate = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / len(schedule)))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * rate
            with torch.autocast("cpu", torch.bfloat16):
                v = model.encode_image(augmented(pixels[batch], things[batch], generator))
                t = model.encode_text(tokens[batch])
            loss = contrastive(F.normalize(v.float(), dim=-1), F.normalize(t.float(), dim=-1), model.logit_scale.exp())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            bar.update(task, advance=1, description=f"loss {loss.item():.3f}")
            if (step + 1) % SAVED_EVERY == 0:
                _keep(state, model, optimizer, generator.get_state(), f"{step + 1} {about}")
    save_file({k: p.half().contiguous() for k, p in model.state_dict().items() if k != "attn_mask"},
              out / "open_clip_model.safetensors")  # fmt: skip
    state.unlink(missing_ok=True)
