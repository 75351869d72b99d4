"""Classifiers of generated images: trained ones (timm), and an unedited CLIP by zero-shot classification.

`timm_models`, `zero_shot` and `pipeline_clip` are `ClassifierLoader`s: muwa/conf/classifier/*.yaml configures
them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muwa.data.text_files import read_lines
from muwa.eval.images.clips import embed
from muwa.fingerprint import digest
from muwa.models.clip.embeddings import Tower, class_features
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_classifier import ImageClassifier
from muwa.patch.weights import fingerprint_of_digests, tensor_digest
from muwa.run import Run
from muwa.runtime.devices import check_device
from muwa.types.data import PROMPTS, Classes, LabelledImages, Task
from muwa.types.ranges import Device, Fractions, Number, Pixels, Template, Text, Texts
from muwa.weight_files.reading import misfit, read_state_dict, shapes

if TYPE_CHECKING:
    from muwa.models.diffusion.model import Diffusion

BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A network that classifies images by the labels of one domain, and how it wants its images.

    Args:
        net: (n, 3, size, size) scaled -> (n, labels).
        labels: The labels, in the order of the network's outputs.
        size: Height and width of its input.
        mean, std: Statistics of pixel values in [0, 1]: one number for all channels, or three.
        about: Its architecture as a text, for the fingerprint.
    """

    net: nn.Module
    labels: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels) fp32 on the CPU."""
        device = next(self.net.parameters()).device
        mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (self.mean, self.std))
        logits = []
        for batch in images.split(BATCH):
            x = batch.to(device).float()
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True).round()
            logits.append(self.net((x / 255 - mean) / std).float().cpu())
        return torch.cat(logits)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, labels and preparation."""
        weights = fingerprint_of_digests(
            {name: tensor_digest(t) for name, t in self.net.state_dict().items()}
        )
        return digest([self.about, weights, *self.labels, f"{self.size} {self.mean} {self.std}"])


class Classifiers(ImageClassifier):
    """A trained classifier for each domain."""

    def __init__(self, domains: Mapping[str, Classifier]):
        self._domains = dict(domains)
        self.labels = {domain: one.labels for domain, one in domains.items()}

    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`)."""
        return self._domains[domain](images)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all its classifiers."""
        return digest(
            [part for name in sorted(self._domains) for part in (name, self._domains[name].fingerprint)]
        )


class ZeroShot(ImageClassifier):
    """An unedited CLIP that chooses the label whose prompt is nearest to the image.

    Args:
        clip: Its weights decide the fingerprint.
        labels: Domain -> the labels to choose from.
        templates: Domain -> prompt of a label, with {}.

    Raises:
        ValueError: A domain has labels and no template with {}, or the other way round.

    Source: CLIP (arXiv 2103.00020), section 3.1.4.
    """

    def __init__(self, clip: Clip, labels: Mapping[str, Sequence[str]], templates: Mapping[str, str]):
        for domain in {**labels, **templates}:
            if "{}" not in templates.get(domain, "") or not labels.get(domain):
                raise ValueError(
                    f"classifier: the domain {domain!r} wants labels and a template with {{}} for them"
                )
        self._clip = clip
        self._classes = {
            domain: Classes(tuple(names), (templates[domain],)) for domain, names in labels.items()
        }
        self.labels = {domain: classes.names for domain, classes in self._classes.items()}
        self._features: dict[str, Tensor] = {}

    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`) cosines."""
        if domain not in self._features:
            text = Tower(self._clip, "text")
            self._features[domain] = class_features(text, self._classes[domain], run=Run())
        return embed(self._clip, images) @ self._features[domain].T

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the CLIP, the labels and their templates."""
        named = [part for name in sorted(self._classes) for part in (name, self._classes[name].fingerprint)]
        return digest(["zero shot", self._clip.fingerprint, *named])


def zero_shot(
    *model_and_task: object,
    clip: Callable[[], Clip],
    labels: Mapping[str, Texts],
    templates: Mapping[str, Template],
) -> ImageClassifier:
    """A given CLIP with given labels, by zero-shot classification.

    Args:
        model_and_task: Not used: the classifier is the same for any model and task.
        clip: Loads the CLIP.
        labels, templates: The same as in `ZeroShot`; both have the same domains.

    Raises:
        ValueError: See `ZeroShot`.
    """
    return ZeroShot(clip(), labels, templates)


def pipeline_clip(model: Diffusion, task: Task, *, templates: Mapping[str, Template]) -> ImageClassifier:
    """The pipeline's unedited CLIP, by zero-shot classification over the names of the task.

    It classifies any images that the pipeline generates, as well as that CLIP tells the names apart. An edit
    of the pipeline does not change it.

    Args:
        model: The pipeline, edited or not.
        task: Its names are the labels (`task_labels`).
        templates: Domain ("class", "style") -> prompt of a label, with {}.

    Raises:
        ValueError: The task has fewer than two names in a domain, so that nothing can be told apart.
    """
    labels = task_labels(task)
    for domain, names in labels.items():
        if len(names) < 2:
            raise ValueError(
                f"classifier=pipeline_clip: the task has {len(names)} name of the domain {domain!r} "
                f"({', '.join(names)}), want at least 2 to choose from; give another classifier, "
                "classifier=unlearncanvas"
            )
    return ZeroShot(
        model.clip.unedited, labels, {domain: templates[domain] for domain in labels if domain in templates}
    )


def task_labels(task: Task) -> dict[str, tuple[str, ...]]:
    """Domain ("style", "class") -> the names that a task forgets or has images of, in that order.

    People and objects are one domain, "class". Tasks of kind "style" and "class" have both domains. Of a task
    of kind "prompts" they are the concepts of its prompts.
    """
    if task.kind == PROMPTS:
        return {"class": task.eval.forget.classes.names}
    splits = (task.probe, task.eval)
    same_kind = [_shown(one) for split in splits for one in (split.forget, split.retain)]
    other_kind = [_shown(split.utility) for split in splits]
    if task.kind not in ("style", "class"):
        return {"class": _each_once(task.names, *same_kind, *other_kind)}
    other = "class" if task.kind == "style" else "style"
    return {task.kind: _each_once(task.names, *same_kind), other: _each_once(*other_kind)}


def _shown(images: LabelledImages) -> list[str]:
    """The names that these images show, in the order of their classes."""
    return [images.classes.names[label] for label in sorted(set(images.labels))]


def _each_once(*lists: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in lists for name in names))


def timm_models(
    *model_and_task: object, domains: Mapping[str, Callable[[], Classifier]], device: Device
) -> ImageClassifier:
    """Trained classifiers, one for each domain.

    Args:
        model_and_task: Not used: the classifiers are the same for any model and task.
        domains: "style", "class" -> `classifier` with its settings.
        device: "cpu", "cuda", ...

    Raises:
        FileNotFoundError, ValueError: See `classifier`. The message names the domain.
    """
    check_device(device)
    classifiers = {}
    for domain, load in domains.items():
        try:
            classifiers[domain] = load()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"classifier.domains.{domain}: {error}") from error
        except ValueError as error:
            raise ValueError(f"classifier.domains.{domain}: {error}") from error
        classifiers[domain].net.to(device)
    return Classifiers(classifiers)


def classifier(
    *,
    architecture: Text,
    options: Mapping[str, Any],
    checkpoint: Text,
    labels: Texts | Text,
    size: Pixels,
    mean: Sequence[Number],
    std: Fractions,
    source: Text,
) -> Classifier:
    """A timm model with the weights of a file, for the labels of one domain.

    Args:
        architecture, options: `timm.create_model(architecture, num_classes=len(labels), **options)`.
        checkpoint: A safetensors or torch file. Its weights may be under "model_state_dict", "state_dict" or
            "model".
        labels: The labels in the order of the network's outputs, or a text file with one per line.
        size: Height and width of its input. Images are resized to it without a crop (bilinear, antialiased).
        mean, std: Statistics of pixel values in [0, 1]: one number for all channels, or three.
        source: How to get the files, for the message when they are not there.

    Raises:
        FileNotFoundError: The checkpoint or the file of labels is not there; says how to get it.
        ValueError: The architecture is unknown, the file cannot be read without unpickling code, or its
            weights do not fit.
    """
    names, path = _labels(labels, source), Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}. To get it: {source}")
    about = json.dumps([architecture, dict(options)], sort_keys=True)
    net = _network(about, path, path.stat().st_mtime_ns, len(names))
    return Classifier(net, names, size, tuple(mean), tuple(std), about)


@functools.lru_cache(maxsize=2)  # of both domains: every metric and the layer search load the same files
def _network(about: str, path: Path, changed: int, labels: int) -> nn.Module:
    """A timm model with the weights of a file, in eval mode.

    Args:
        about: Its architecture and options, as JSON.
        changed: When the file was changed last: a file that changed is read again.
        labels: The number of its outputs.
    """
    architecture, options = json.loads(about)
    weights = read_state_dict(path)
    try:
        net = timm.create_model(architecture, pretrained=False, num_classes=labels, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"timm has no {architecture!r} with options {options} ({error})") from error
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        why = misfit(shapes(weights), shapes(net.state_dict()))
        raise ValueError(f"{path} is not a {architecture} of {labels} labels: {why}") from error
    return net.eval().requires_grad_(False)


def _labels(labels: Sequence[str] | str, source: str) -> tuple[str, ...]:
    if isinstance(labels, str):
        if not Path(labels).is_file():
            raise FileNotFoundError(f"no file of labels {labels}. To get it: {source}")
        labels = read_lines(Path(labels))
    names = tuple(name.strip() for name in labels if name.strip())
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"want labels, each once, got {len(names)} of which {len(set(names))} differ")
    return names
