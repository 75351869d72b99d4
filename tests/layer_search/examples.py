"""Gradients, a pipeline and evaluations for the tests of layer searches."""

import functools
from dataclasses import replace

import tiny
import tiny_sd
import torch
from records import part

from muwa.gradients.mean import ClipGradients
from muwa.gradients.whitening import WhitenedGradients, Whitening
from muwa.layer_search.evaluators.images import probe_requests
from muwa.models.clip.layers import as_matrix, matrices
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.models.diffusion.model import Diffusion
from muwa.run import Run
from muwa.types.data import Split, Task
from muwa.types.gradients import Gradients, Moments
from muwa.types.search import LAMBDA, Candidate, Evaluation, Layer

OUT_PROJ = "transformer.resblocks.1.attn.out_proj.weight"  # of the first text encoder of `pipeline`


def random_gradients(clip: Clip, seed: int = 3) -> Gradients:
    """Normal numbers for the forget loss; the same, upside down, for the retain loss."""
    generator = torch.Generator().manual_seed(seed)
    forget = {name: torch.randn(w.shape, generator=generator) for name, w in clip.weights.items()}
    return Gradients(forget, {name: g.flip(0) for name, g in forget.items()}, 4, 4, {"made": f"here {seed}"})


def whitened_gradients(clip: Clip, seed: int = 3) -> Gradients:
    """`random_gradients`, whitened with random input moments of every matrix."""
    generator = torch.Generator().manual_seed(1)
    moments = Moments(inputs={}, outputs={})
    for name in matrices(clip.weights):
        root = torch.randn(as_matrix(name, clip.weights[name]).shape, generator=generator)
        moments["inputs"][name] = root.T @ root
    source = WhitenedGradients(ClipGradients(), Whitening(0.3, 0.1, 1.0, 0.0))
    plain = replace(random_gradients(clip, seed), origin={"forget_pairs": f"here {seed}"})
    return source.whitened([plain], [1.0], moments)


@functools.cache
def pipeline() -> Diffusion:
    """`tiny_sd.diffusion`."""
    return tiny_sd.diffusion()


@functools.cache
def pipeline_gradients() -> dict[str, Gradients]:
    """Random gradients of the CLIP of `pipeline`."""
    return {"text_encoder": random_gradients(pipeline().clip)}


def layer_of(clip: Clip, name: str) -> Layer:
    """One layer at granularity "tensor"."""
    return next(layer for layer in clip.layers("tensor") if layer.name == name)


def task_with_probe(probe: Split) -> Task:
    """`tiny.task` with other probe images."""
    return replace(tiny.task(), probe=probe)


def row(
    layer: str, forgotten: float, retain: float, closeness: float = 0.5, *, utility: float = 1.0, n: int = 0
) -> Evaluation:
    """An evaluation that is feasible if nothing is recognised; its two rates are of `n` samples each."""
    error = 0.5 * ((retain * (1 - retain) + utility * (1 - utility)) / max(n, 1)) ** 0.5
    return Evaluation(
        Candidate({"": layer}, "vision"), 1, 1.0, LAMBDA, 0.1, forgotten <= 0, forgotten, (retain + utility) / 2, error,
        closeness, {"retain_top1": retain, "utility_top1": utility},
    )  # fmt: skip


def remembering(task: Task, limits: dict[str, float]) -> tiny_sd.Memory:
    """A classifier that knows every probe image as the unedited `pipeline` generates it, with 1 step and with 2.

    It is for searches with 4 images of the concept and 9 others.
    """
    search = part("layer_search=generation", pictures=4, retain_pictures=9)
    known: dict[str, list[torch.Tensor]] = {}
    for fresh, steps in ((False, 1), (True, 2)):
        requests = probe_requests(search, task, fresh=fresh)
        images = ImageGenerator(pipeline().sampled(steps=steps), Run()).generate(prompts_of(requests))
        for request, image in zip(requests, images, strict=True):
            known.setdefault(request.concept, []).append(image)
    splits = (task.probe.retain, task.probe.utility, task.eval.retain, task.eval.utility)
    names = dict.fromkeys(one.classes.names[label] for one in splits for label in one.labels)
    pictures = {name: torch.stack(images) for name, images in known.items()}
    return tiny_sd.Memory(pictures, limits, tuple(name for name in names if name not in known))
