"""Naive second implementations of the baselines, on open_clip's network and with a separate AdamW."""

from __future__ import annotations

import copy
import math

import numpy as np
import tiny
import torch


def network(model, weights=None):
    """A copy of open_clip's module with these weights (by default the model's); gradients are required."""
    net = copy.deepcopy(model._towers.model)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_((weights or model.weights)[name])
    return net.requires_grad_(True)


def loss(net, pairs, batch, kind):
    """The mean loss of the pairs at the indices `batch`, from the formulas of the papers."""
    some = pairs.select(batch)
    images = net.encode_image(tiny.pixels(some.images), normalize=True)
    texts = net.encode_text(tiny.tokenize(list(some.captions)), normalize=True)
    if kind == "cosine":
        return torch.nn.CosineEmbeddingLoss()(images, texts, torch.ones(len(batch)))
    logits = net.logit_scale.exp() * images @ texts.T
    rows = sum(-logits[i].log_softmax(0)[i] - logits[:, i].log_softmax(0)[i] for i in range(len(batch)))
    return rows / (2 * len(batch))


def gradient(net, pairs, batch, kind):
    """Parameter name -> gradient of `loss`; zero where the loss does not reach."""
    net.zero_grad()
    loss(net, pairs, batch, kind).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def batches(n, size, *seeds):
    order = np.random.default_rng(seeds).permutation(n).tolist()
    return [order[i : i + size] for i in range(0, n, size)]


def train(model, sections, *, epochs, batch_size, learning_rate, weight_decay=0.1, seed=0, mask=None):
    """Train with AdamW by its formulas (betas 0.9 and 0.999): parameter name -> change.

    Each epoch goes through all `sections`, which are (pairs, kind of loss, sign), in turn.
    """
    net = network(model)
    own = dict(net.named_parameters())
    start = {n: p.detach().clone() for n, p in own.items()}
    first, second, count = {}, {}, {}
    every = epochs * sum(len(batches(len(pairs), batch_size, 0)) for pairs, _, _ in sections)
    done = 0
    for epoch in range(1, epochs + 1):
        for at, (pairs, kind, sign) in enumerate(sections):
            for batch in batches(len(pairs), batch_size, seed, epoch, at):
                rate = learning_rate * (1 + math.cos(math.pi * done / every)) / 2
                net.zero_grad()
                (sign * loss(net, pairs, batch, kind)).backward()
                for n, p in own.items():
                    if p.grad is None:
                        continue
                    count[n] = count.get(n, 0) + 1
                    first[n] = 0.9 * first.get(n, 0) + 0.1 * p.grad
                    second[n] = 0.999 * second.get(n, 0) + 0.001 * p.grad**2
                    m, v = first[n] / (1 - 0.9 ** count[n]), second[n] / (1 - 0.999 ** count[n])
                    decay = weight_decay if p.ndim >= 2 else 0.0
                    moved = p.detach() * (1 - rate * decay) - rate * m / (v.sqrt() + 1e-8)
                    p.data = moved if mask is None else torch.where(mask[n], moved, start[n])
                done += 1
    return {n: p.detach() - start[n] for n, p in own.items()}


def apart(got, want):
    """|got - want| / |want| over all tensors. A name that is absent from `got` is a change of zero."""
    both = [(got.get(n, torch.zeros_like(w)), w) for n, w in want.items()]
    off = sum((g - w).double().square().sum().item() for g, w in both)
    return (off / sum(w.double().square().sum().item() for _, w in both)) ** 0.5
