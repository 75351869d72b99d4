"""The miniature's classifiers: two small timm networks in place of UnlearnCanvas' two ViT classifiers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from muwa.eval.images.classifiers import Classifier, classifier, timm_models
from muwa.json_files import read_json
from muwa.models.diffusion.image_classifier import ImageClassifier
from muwa.types.ranges import Device, Text

FOLDER = Path(__file__).parent / "classifier_weights"


def load(*model_and_task: object, folder: Text | None, device: Device) -> ImageClassifier:
    """Both classifiers: one for styles, one for people and objects (the domain "class").

    Args:
        model_and_task: Not used; the classifiers are the same for any model and task.
        folder: A folder written by `muwa.miniature.train.classifier`; None: the shipped one.
        device: "cpu", "cuda", ...

    Raises:
        FileNotFoundError: The folder has no config.json.
    """
    where = Path(folder) if folder else FOLDER
    if not (where / "config.json").is_file():
        raise FileNotFoundError(
            f"classifier.folder={where}: no config.json; want a folder of muwa.miniature.train.classifier"
        )
    about = read_json(where / "config.json", dict, "the settings of a classifier")

    def one(domain: str) -> Callable[[], Classifier]:
        return partial(
            classifier,
            architecture=about["architecture"],
            options=about["model_args"],
            checkpoint=str(where / f"{domain}.safetensors"),
            labels=str(where / f"{domain}.txt"),
            size=about["input_size"],
            mean=[about["mean"]],
            std=[about["std"]],
            source="python -m muwa.miniature.train_classifier --out DIR",
        )

    domains = {domain: one(domain) for domain in ("style", "class")}
    return timm_models(domains=domains, device=device)
