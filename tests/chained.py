"""Patches made one after the other, each on the model that carries the earlier ones, as runs write them."""

from pathlib import Path

import torch

from muwa.patch.apply import STATE, read_patch, write_patch
from muwa.patch.ledger import file_digest, request_of, state_of
from muwa.types.edit import Edit, Move

NAMES = ("Ada Fox", "Bo Hill", "Cy Reed", "Di Moss")


def edit(model, tensors, *, seed=0, size=0.3, name="Ada Fox"):
    """An edit of random deltas, with one move for each tensor."""
    generator = torch.Generator().manual_seed(seed)
    weights = model.patch_base(Edit({key: torch.zeros(1) for key in tensors}, ())).weights
    deltas = {key: size * torch.randn(weights[key].shape, generator=generator) for key in tensors}
    return Edit(deltas, tuple(Move(name, "text", key, 1.5, 0.1) for key in tensors))


def chain(folder: Path, model, *tensors):
    """(The patch files, the model after each): one patch for each list of tensors."""
    paths, states, requests = [], [], []
    for i, some in enumerate(tensors):
        made = edit(model, some, seed=i, name=NAMES[i])
        about = {"task": "identity", "names": [NAMES[i]], "method": "muwa.methods.slug"}
        base = model.patch_base(made)
        if requests:
            about[STATE] = state_of(requests, made.deltas, base.weights_fingerprint)
        path = folder / f"{i + 1}.safetensors"
        write_patch(path, made, base, about)
        requests.append(request_of(read_patch(path), file_digest(path)))
        model = model.edited(made)
        paths.append(path)
        states.append(model)
    return paths, states
