"""Two judges of drawn pictures: trained classifiers (timm), and an unedited CLIP by zero-shot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from muwa.fingerprint import digest
from muwa.models.clip.embeddings import Tower, class_features, picture_batch
from muwa.models.clip.model import Clip, check_device
from muwa.models.diffusion.image_generation import ImageClassifier
from muwa.patch.weights import fingerprint_of_digests, tensor_digest
from muwa.types.data import Classes

BATCH = 32
LEVELS = ("model_state_dict", "state_dict", "model")  # under which training scripts keep the weights


@dataclass(frozen=True)
class Classifier:
    """A network that tells the labels of one domain apart, and how it wants its pictures.

    Args:
        net: (n, 3, size, size) scaled -> (n, labels).
        about: What it is beside its weights, for the fingerprint.
    """

    net: nn.Module
    labels: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: str

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels) fp32 on the CPU."""
        device = next(self.net.parameters()).device
        mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (self.mean, self.std))
        out = []
        for batch in pictures.split(BATCH):
            x = batch.to(device).float()
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True).round()
            out.append(self.net((x / 255 - mean) / std).float().cpu())
        return torch.cat(out)

    @cached_property
    def fingerprint(self) -> str:
        """Of weights, labels and preparation."""
        weights = fingerprint_of_digests({name: tensor_digest(t) for name, t in self.net.state_dict().items()})
        return digest([self.about, weights, *self.labels, f"{self.size} {self.mean} {self.std}"])


class Classifiers(ImageClassifier):
    """A classifier for each domain."""

    def __init__(self, domains: Mapping[str, Classifier]):
        self._domains = dict(domains)
        self.labels = {domain: one.labels for domain, one in domains.items()}

    def logits(self, pictures: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`)."""
        return self._domains[domain](pictures)

    @cached_property
    def fingerprint(self) -> str:
        """Of all its classifiers."""
        return digest([part for name in sorted(self._domains) for part in (name, self._domains[name].fingerprint)])


class ZeroShot(ImageClassifier):
    """An unedited CLIP that chooses the label whose prompt is nearest to the picture.

    Args:
        templates: Domain -> prompt of a label, with {}.
    """

    def __init__(self, clip: Clip, labels: Mapping[str, Sequence[str]], templates: Mapping[str, str]):
        self._clip = clip
        self._classes = {domain: Classes(tuple(names), (templates[domain],)) for domain, names in labels.items()}
        self.labels = {domain: classes.names for domain, classes in self._classes.items()}
        self._prompts: dict[str, Tensor] = {}

    def logits(self, pictures: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`) cosines."""
        if domain not in self._prompts:
            self._prompts[domain] = class_features(Tower(self._clip, "text"), self._classes[domain])
        return embed(self._clip, pictures) @ self._prompts[domain].T

    @cached_property
    def fingerprint(self) -> str:
        """Of the CLIP, the labels and their templates."""
        named = [part for name in sorted(self._classes) for part in (name, self._classes[name].fingerprint)]
        return digest(["zero shot", self._clip.fingerprint, *named])


@torch.inference_mode()
def embed(clip: Clip, pictures: Tensor) -> Tensor:
    """Embeddings (n, d) of length 1, on the CPU, of drawn pictures (n, 3, h, w) uint8, prepared as the CLIP wants them."""
    out = []
    for batch in pictures.split(picture_batch(clip)):
        images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in batch]
        pixels = torch.stack([clip.prepare(image) for image in images])
        out.append(clip.encode("vision", clip.prepare.scale(pixels.to(clip.device))).cpu())
    return torch.cat(out)


def zero_shot(
    *, clip: Callable[[], Clip], labels: Mapping[str, Sequence[str]], templates: Mapping[str, str]
) -> ImageClassifier:
    """A `ZeroShot`.

    Args:
        clip: Loads the judge; never the model under test.
        labels, templates: Of the same domains.

    Raises:
        ValueError: A domain has labels and no template with {}, or the other way round.
    """
    wrong = [name for name in {**labels, **templates} if "{}" not in templates.get(name, "") or not labels.get(name)]
    if wrong:
        raise ValueError(f"classifier: the domain {wrong[0]!r} wants labels and a template with {{}} for them")
    return ZeroShot(clip(), labels, templates)


def timm_models(*, domains: Mapping[str, Callable[[], Classifier]], device: str) -> ImageClassifier:
    """Trained classifiers, one a domain.

    Args:
        domains: "style", "class" -> `classifier` with its settings.
        device: "cpu", "cuda", ...

    Raises:
        FileNotFoundError, ValueError: As `classifier`; names the domain.
    """
    check_device(device)
    found = {}
    for domain, make in domains.items():
        try:
            found[domain] = make()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"classifier.domains.{domain}: {error}") from error
        except ValueError as error:
            raise ValueError(f"classifier.domains.{domain}: {error}") from error
        found[domain].net.to(device)
    return Classifiers(found)


def classifier(
    *, architecture: str, options: Mapping[str, Any], checkpoint: str, labels: Sequence[str] | str, size: int,
    mean: Sequence[float], std: Sequence[float], source: str,
) -> Classifier:  # fmt: skip
    """A timm model with the weights of a file, for the labels of one domain.

    Args:
        architecture, options: `timm.create_model(architecture, num_classes=len(labels), **options)`.
        checkpoint: A safetensors or torch file. Weights may stand under "model_state_dict", "state_dict" or "model".
        labels: In the order of the head's rows; or a text file with one a line.
        size: Height and width it takes; pictures are resized to it as a whole (bilinear, antialiased).
        mean, std: One number for all channels, or three, of values in [0, 1].
        source: Where the file can be had, for the message when it is not there.

    Raises:
        FileNotFoundError: The checkpoint or the file of labels is not there: says how to get it.
        ValueError: The architecture is unknown, the file cannot be read without unpickling code, or its weights are others.
    """
    names = _labels(labels, source)
    weights = _weights(Path(checkpoint), source)
    try:
        net = timm.create_model(architecture, pretrained=False, num_classes=len(names), **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"timm has no {architecture!r} with options {dict(options)} ({error})") from error
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{checkpoint} is not a {architecture} of {len(names)} labels: {why}") from error
    about = json.dumps([architecture, dict(options)], sort_keys=True)
    return Classifier(net.eval().requires_grad_(False), names, size, tuple(mean), tuple(std), about)


def _labels(labels: Sequence[str] | str, source: str) -> tuple[str, ...]:
    if isinstance(labels, str):
        if not Path(labels).is_file():
            raise FileNotFoundError(f"no file of labels {labels}. To get it: {source}")
        labels = Path(labels).read_text(encoding="utf-8").split("\n")
    names = tuple(name.strip() for name in labels if name.strip())
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"want labels, each once, got {len(names)} of which {len(set(names))} differ")
    return names


def _weights(path: Path, source: str) -> dict[str, Tensor]:
    """The state dict in `path`, out of whatever level it stands under."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}. To get it: {source}")
    read = load_file if path.suffix == ".safetensors" else partial(torch.load, map_location="cpu", weights_only=True)
    try:
        found = read(path)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as weights alone ({' '.join(str(error).split())[:160]}); want a safetensors file, or a "
            "torch file that holds tensors and plain values"
        ) from error
    for level in LEVELS:
        if isinstance(found, Mapping) and isinstance(found.get(level), Mapping):
            found = found[level]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: no weights in it; looked at its top and under {', '.join(LEVELS)}")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}
