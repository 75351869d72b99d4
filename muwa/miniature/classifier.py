"""The miniature's own classifiers: two small timm networks that stand where UnlearnCanvas has its ViT classifiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from muwa.eval.images.classifiers import Classifier, classifier, timm_models
from muwa.models.diffusion.image_generation import ImageClassifier

FOLDER = Path(__file__).parent / "classifier_weights"


def load(folder: str | None = None, *, device: str = "cpu") -> ImageClassifier:
    """Both classifiers: of styles, and of people and objects (classes).

    Args:
        folder: What `muwa.miniature.train.classifier` wrote; None: the shipped ones.

    Raises:
        FileNotFoundError: A file of it is missing.
    """
    where = Path(folder) if folder else FOLDER
    if not (where / "config.json").is_file():
        raise FileNotFoundError(
            f"classifier.folder={where}: no config.json; want a folder of muwa.miniature.train.classifier"
        )
    about = json.loads((where / "config.json").read_text())
    made = "python -m muwa.miniature.train_classifier --out DIR"

    def one(domain: str) -> Callable[[], Classifier]:
        weights, labels = str(where / f"{domain}.safetensors"), str(where / f"{domain}.txt")
        return partial(
            classifier, architecture=about["architecture"], options=about["model_args"], checkpoint=weights, labels=labels,
            size=about["input_size"], mean=[about["mean"]], std=[about["std"]], source=made,
        )  # fmt: skip

    domains = {domain: one(domain) for domain in ("style", "class")}
    return timm_models(domains=domains, device=device)
