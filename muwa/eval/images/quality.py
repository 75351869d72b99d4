"""Whether generated images fit their prompts and look real, and whether look-alikes still appear."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from muwa.data.prompts import image_requests
from muwa.data.samples import decode
from muwa.eval.base import Measure
from muwa.eval.images.canvas import COUNTED, canvas_requests, hit_rate, kept_count
from muwa.eval.images.clips import embed
from muwa.eval.statistics import by_name
from muwa.fingerprint import EncodedImage
from muwa.models.base import Observer
from muwa.models.clip.embeddings import Tower, class_features, width
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_classifier import ClassifierLoader, ClipLoader
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.image_requests import ImageRequest, Prompts
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count, CountOrZero, Seed, Texts, TwoOrMore

if TYPE_CHECKING:
    from muwa.models.diffusion.model import Diffusion

BATCH = 64  # images whose features are computed at once
SECTION = "Quality of generated images"


@dataclass(frozen=True)
class ClipScore(Measure):
    """`utility/clip_score`: how well images of unrelated prompts fit their prompt. Higher is better.

        100 max(cos(image, prompt), 0), the mean over images

    Args:
        clip: Loads the unedited CLIP that scores.
        prompts: Unrelated texts; None takes those prompts of `Canvas` for names of the other kind that do not
            ask for the target.
        seeds: Images per prompt, with seeds first_seed, first_seed + 1, ...
        first_seed: The first seed.
        retain, cross: The same as in `Canvas`: with equal settings no image is generated twice.

    Source: CLIPScore (arXiv 2104.08718). Differs: times 100, not 2.5, as in most tables since.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    clip: ClipLoader
    prompts: Texts | None
    seeds: Count
    first_seed: Seed
    retain: CountOrZero | None
    cross: CountOrZero | None

    def check(self, model: Any, task: Task) -> None:
        """Raise if the CLIP cannot be loaded."""
        self.clip(model)

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        prompts = self._prompts(task)
        reading = Reading(
            "mean CLIP score (0 to 100) of images of unrelated prompts, by an unedited CLIP",
            unit="score",
            role="kept",
            counted=COUNTED,
            features="CLIP",
        )
        if not len(prompts):
            return {"utility/clip_score": Metric(0.0, 0, 0.0, 100.0, reading)}
        clip = self.clip(observer.model)
        texts = tuple(dict.fromkeys(prompts.texts))
        of_texts = class_features(Tower(clip, "text"), Classes(texts, ("{}",)), run=observer.run)
        of_prompts = of_texts[[texts.index(text) for text in prompts.texts]]
        of_images = embed(clip, observer.generate(prompts))
        scores = 100 * (of_images * of_prompts).sum(-1).clamp(min=0).double()
        mean = scores.mean().item()
        half = 1.959964 * scores.std().item() / math.sqrt(len(scores)) if len(scores) > 1 else 100.0
        low, high = max(0.0, mean - half), min(100.0, mean + half)
        return {"utility/clip_score": Metric(mean, len(scores), low, high, reading)}

    def _prompts(self, task: Task) -> Prompts:
        if self.prompts is None:
            return prompts_of(kept_requests(self, task, ("cross",)))
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        rows = [(text, seed) for text in self.prompts for seed in seeds]
        return Prompts(tuple(text for text, _ in rows), tuple(seed for _, seed in rows))


@dataclass(frozen=True)
class Lookalike(Measure):
    """`retain/lookalike`: recognition of the retained names most similar to the target. Higher is better.

    Args:
        classifier: Loads the classifier.
        clip: Loads an unedited CLIP. Similarity is the cosine of its text embeddings of two names.
        nearest: How many retained names are taken per name to forget.
        seeds: Images per prompt, with seeds first_seed, first_seed + 1, ...
        kept_seeds: The same in tasks of kind "identity" and "object", where a name has a single prompt.
        first_seed: The first seed.
        cross: For tasks of kind "style" and "class": how many names of the other kind fill the prompts; None
            takes all.

    Raises:
        ValueError: The classifier has no label for a look-alike (`check`).

    Source: pinpoint-ness of HUB (arXiv 2410.05664). Differs: the nearest of the task's names, not words of a
    dictionary.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    classifier: ClassifierLoader
    clip: ClipLoader
    nearest: Count
    seeds: Count
    kept_seeds: Count
    first_seed: Seed
    cross: CountOrZero | None

    def check(self, model: Any, task: Task) -> None:
        """Raise if the CLIP or the classifier cannot be loaded, or there is no label for a look-alike."""
        classifier = self.classifier(model, task)
        retained = self._retained(classifier.limited(task))
        classifier.check(_about(retained, self._lookalikes(self.clip(model), task, retained, Run())))

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        model, classifier = observer.model, self.classifier(observer.model, task)
        retained = self._retained(classifier.limited(task))
        names = self._lookalikes(self.clip(model), task, retained, observer.run)
        requests = _about(retained, names)
        hits = observer.hits(requests, classifier) if requests else []
        reading = Reading(
            f"fraction of images of the retained names most similar to the target ({', '.join(names)}) "
            "recognised as such",
            role="kept",
            label="Look-alikes, generated and recognised",
            counted=COUNTED,
        )
        each = by_name(hits, [one.concept for one in requests])
        return {"retain/lookalike": replace(hit_rate(hits, reading), by_name=each)}

    def _retained(self, task: Task) -> list[ImageRequest]:
        count = kept_count(task, self.seeds, self.kept_seeds)
        seeds = range(self.first_seed, self.first_seed + count)
        every = image_requests(task, task.eval, seeds=seeds, cross=self.cross)
        return [one for one in every if one.role == "retain"]

    def _lookalikes(self, clip: Clip, task: Task, retained: Sequence[ImageRequest], run: Run) -> list[str]:
        others = tuple(dict.fromkeys(one.concept for one in retained))
        return nearest_names(clip, task.names, others, self.nearest, run=run)


@dataclass(frozen=True)
class Distances(Measure):
    """`quality/fid`, `quality/kid`: distance of generated images of kept names to real ones. Lower is better.

        FID = |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))
        KID = MMD^2 of the kernel (x.y / d + 1)^3, unbiased

    x and y are features (d numbers) of images; m, S and m', S' are mean and covariance of the features of
    generated and of real images. The real images are the held-out images of the same names.

    Args:
        clip: Loads the unedited CLIP whose vision tower gives the features.
        feature: Makes another module that gives the features, uint8 (n, 3, h, w) -> (n, d). Other papers'
            numbers are on Inception's features.
        seeds, first_seed, retain, cross: The same as in `Canvas`: with equal settings no image is generated
            twice.
        subset_size: Size of KID's 100 random subsets; all images if there are fewer.
        seed: Seed of these subsets.

    Raises:
        ValueError: There are fewer than two generated or two real images (`check`).

    Source: FID (arXiv 1706.08500), KID (arXiv 1801.01401), by torchmetrics. Differs: features of CLIP; real
    images of the names that are generated.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    clip: ClipLoader
    feature: Callable[[], nn.Module] | None
    seeds: Count
    first_seed: Seed
    retain: CountOrZero | None
    cross: CountOrZero | None
    subset_size: TwoOrMore
    seed: Seed

    def check(self, model: Any, task: Task) -> None:
        """Raise if there are too few images, or the features cannot be loaded."""
        prompts, real = self._images(task)
        if len(prompts) < 2 or len(real) < 2:
            raise ValueError(
                f"eval.distances: {len(prompts)} generated and {len(real)} real images, want at least 2 of "
                "each"
            )
        self._features(model)

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        prompts, real = self._images(task)
        features = self._features(observer.model)
        values = self._distances(features, observer.generate(prompts), real)
        whose = "CLIP, not of Inception" if self.feature is None else type(features).__name__
        counts = f"{len(prompts)} generated images of what is kept to {len(real)} real ones"
        return {
            f"quality/{key}": Metric(
                value,
                len(prompts),
                reading=Reading(
                    f"{key.upper()} of {counts}, on features of {whose}",
                    better="lower",
                    unit="distance",
                    counted=COUNTED,
                    section=SECTION,
                    features=_family(features),
                ),
            )
            for key, value in values.items()
        }

    def _images(self, task: Task) -> tuple[Prompts, list[EncodedImage]]:
        """(What to generate, each once; the real images of the same names)."""
        requests = kept_requests(self, task, ("retain", "cross"))
        names = {one.concept for one in requests}
        sets = (task.eval.retain, task.eval.utility)
        real = [image for images in sets for image in _of_names(images, names).images]
        rows = dict.fromkeys((one.text, one.seed) for one in requests)
        return Prompts(tuple(text for text, _ in rows), tuple(seed for _, seed in rows)), real

    def _features(self, model: Diffusion) -> nn.Module:
        return self.feature() if self.feature is not None else VisionFeatures(self.clip(model))

    def _distances(
        self, features: nn.Module, generated: Tensor, real: Sequence[EncodedImage]
    ) -> dict[str, float]:
        """FID and KID of generated images (n, 3, h, w) uint8 to encoded real ones."""
        height, wide = generated.shape[-2:]
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.inference_mode():
            # KID warns that it stores all features.
            warnings.filterwarnings("ignore", "Metric `Kernel", UserWarning)
            torch.manual_seed(self.seed)
            size = min(self.subset_size, len(generated), len(real))
            fid = FrechetInceptionDistance(
                feature=features, normalize=False, input_img_size=(3, height, wide)
            )
            kid = KernelInceptionDistance(feature=features, normalize=False, subset_size=size)
            for metric in (fid, kid):
                for start in range(0, len(real), BATCH):
                    metric.update(_pixels(real[start : start + BATCH], height, wide), real=True)
                for batch in generated.split(BATCH):
                    metric.update(batch, real=False)
            return {"fid": fid.compute().item(), "kid": kid.compute()[0].item()}


class VisionFeatures(nn.Module):
    """A CLIP's vision tower as a module of features: (n, 3, h, w) uint8 -> (n, d) of length 1."""

    def __init__(self, clip: Clip):
        super().__init__()
        self._clip, self.num_features = clip, width(clip)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings of images, prepared as the CLIP was trained on them."""
        return embed(self._clip, images)


def _family(features: nn.Module) -> str:
    """Whose features a module gives, for comparisons: "CLIP", "Inception", or the name of its class.

    >>> _family(nn.Identity())
    'Identity'
    """
    if isinstance(features, VisionFeatures):
        return "CLIP"
    name = type(features).__name__
    return "Inception" if "Inception" in name else name


def nearest_names(
    clip: Clip, names: Sequence[str], others: Sequence[str], nearest: int, *, run: Run
) -> list[str]:
    """The `nearest` of `others` to each of `names`, by the cosine of a CLIP's embeddings; each once."""
    if not others:
        return []
    features = class_features(Tower(clip, "text"), Classes((*names, *others), ("{}",)), run=run)
    close = (features[: len(names)] @ features[len(names) :].T).topk(min(nearest, len(others))).indices
    return [others[i] for i in dict.fromkeys(close.flatten().tolist())]


def kept_requests(measure: ClipScore | Distances, task: Task, roles: Sequence[str]) -> list[ImageRequest]:
    """The requests of `Canvas` with these roles, without those whose image is to show the target."""
    seeds = range(measure.first_seed, measure.first_seed + measure.seeds)
    every = canvas_requests(task, seeds, seeds, measure.retain, measure.cross)
    forgotten = {one.text for one in every if one.role == "forget"}
    return [one for one in every if one.role in roles and one.text not in forgotten]


def _about(requests: Sequence[ImageRequest], names: Sequence[str]) -> list[ImageRequest]:
    return [one for one in requests if one.concept in names]


def _of_names(images: LabelledImages, names: set[str]) -> LabelledImages:
    return images.select([i for i, label in enumerate(images.labels) if images.classes.names[label] in names])


def _pixels(images: Sequence[EncodedImage], height: int, wide: int) -> Tensor:
    """Encoded images cut to the size of the generated ones: (n, 3, height, wide) uint8."""
    cut = [
        center_crop(resize(pil_to_tensor(decode(image)), [max(height, wide)], antialias=True), [height, wide])
        for image in images
    ]
    return torch.stack(cut)
