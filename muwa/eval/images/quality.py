"""Whether drawings are still what was asked for and look right, and whether the forgotten's look-alikes are still drawn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from muwa.data.prompts import image_requests
from muwa.data.samples import decode
from muwa.eval.images.canvas import canvas, share
from muwa.eval.images.classifiers import embed
from muwa.models.clip.embeddings import Tower, class_features, width
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import ImageClassifier, ImageGenerator
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.image_requests import ImageRequest, Prompts
from muwa.types.metric import Metric

BATCH = 64  # pictures whose features are computed at once


def clip_score(
    image_generator: ImageGenerator, task: Task, *, clip: Callable[[], Clip], prompts: Sequence[str] | None = None, seeds: int = 5,
    first_seed: int = 1000, retain: int | None = 12, cross: int | None = 12,
) -> dict[str, Metric]:  # fmt: skip
    """`utility/clip_score`: how well pictures of unrelated prompts fit their prompt. Higher is better.

        100 max(cos(picture, prompt), 0), the mean over pictures

    Args:
        clip: Loads an unedited judge.
        prompts: Unrelated texts; None takes those of `muwa.eval.images.canvas` of another kind, without the forgotten.
        seeds: LabelledImages a prompt, from `first_seed` on.
        retain, cross: As of `muwa.eval.images.canvas.answers`: with the same settings no picture is drawn twice.

    Source: CLIPScore (arXiv 2104.08718). Differs: times 100, not 2.5, as in most tables since.
    """
    if prompts is None:
        wanted = _kept(task, seeds, first_seed, retain, cross, roles=("cross",))
        chosen = Prompts(tuple(ask.text for ask in wanted), tuple(ask.seed for ask in wanted))
    else:
        rows = [(text, seed) for text in prompts for seed in range(first_seed, first_seed + seeds)]
        chosen = Prompts(tuple(text for text, _ in rows), tuple(seed for _, seed in rows))
    reads = "mean CLIP score (0 to 100) of pictures of unrelated prompts, by an unedited CLIP"
    if not len(chosen):
        return {"utility/clip_score": Metric(0.0, 0, 0.0, 100.0, "higher", reads)}
    judge = clip()
    texts = tuple(dict.fromkeys(chosen.texts))
    told = class_features(Tower(judge, "text"), Classes(texts, ("{}",)))[[texts.index(text) for text in chosen.texts]]
    scores = 100 * (embed(judge, image_generator.draw(chosen)) * told).sum(-1).clamp(min=0).double()
    mean = scores.mean().item()
    spread = 1.959964 * scores.std().item() / math.sqrt(len(scores)) if len(scores) > 1 else 100.0
    return {
        "utility/clip_score": Metric(
            mean, len(scores), max(0.0, mean - spread), min(100.0, mean + spread), "higher", reads
        )
    }


def lookalike(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], clip: Callable[[], Clip], nearest: int = 5,
    seeds: int = 5, first_seed: int = 1000, cross: int | None = 3,
) -> dict[str, Metric]:  # fmt: skip
    """`retain/lookalike`: the retained names most like a forgotten one, drawn and recognised. Higher is better.

    Args:
        clip: Loads an unedited judge: names are alike by the cosine of its embeddings of them.
        nearest: How many, of each forgotten name.
        seeds: LabelledImages a prompt, from `first_seed` on.
        cross: Of kinds "style" and "class": how many names stand in the other place; None is all.

    Source: pinpoint-ness of HUB (arXiv 2410.05664). Differs: the nearest of the task's own names, not words of a dictionary.
    """
    every = image_requests(task, task.eval, seeds=range(first_seed, first_seed + seeds), cross=cross)
    others = tuple(dict.fromkeys(ask.concept for ask in every if ask.role == "retain"))
    alike = nearest_names(clip(), task.names, others, nearest)
    wanted = [ask for ask in every if ask.role == "retain" and ask.concept in alike]
    judge = classifier()
    judge.check(wanted)
    reads = f"share of pictures of the retained names most like the forgotten ({', '.join(alike)}) recognised as such"
    return {"retain/lookalike": share(image_generator.hits(wanted, judge) if wanted else [], "higher", reads)}


def distances(
    image_generator: ImageGenerator, task: Task, *, clip: Callable[[], Clip], feature: Callable[[], nn.Module] | None = None,
    seeds: int = 5, first_seed: int = 1000, retain: int | None = 12, cross: int | None = 12, subset_size: int = 50,
    seed: int = 0,
) -> dict[str, Metric]:  # fmt: skip
    """`quality/fid`, `quality/kid`: how far drawings of what is kept are from the real pictures of it. Lower is better.

        FID = |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))        KID = MMD^2 of the kernel (x.y / d + 1)^3, unbiased

    of features x of the drawings and of real pictures: the held-out ones of the names that are asked for.

    Args:
        clip: Loads the unedited CLIP whose vision tower gives the features.
        feature: Makes another module to take in its place, uint8 (n, 3, h, w) -> (n, d); the numbers of other
            papers want Inception's.
        seeds, first_seed, retain, cross: As of `muwa.eval.images.canvas.answers`: with the same settings no picture is drawn twice.
        subset_size: Of KID's 100 random subsets (from `seed`), at most; all pictures where there are fewer.

    Source: FID (arXiv 1706.08500), KID (arXiv 1801.01401), by torchmetrics. Differs: features of CLIP; real
    pictures of the names that are drawn.
    """
    wanted = _kept(task, seeds, first_seed, retain, cross, roles=("retain", "cross"))
    names = {ask.concept for ask in wanted}
    real = [image for part in (task.eval.retain, task.eval.utility) for image in _of(part, names).images]
    rows = tuple(dict.fromkeys((ask.text, ask.seed) for ask in wanted))
    if len(rows) < 2 or len(real) < 2:
        raise ValueError(f"eval.distances: {len(rows)} drawings and {len(real)} real pictures, want at least 2 of each")
    net = feature() if feature is not None else Vision(clip())
    whose = f"{type(net).__name__}'s" if feature is not None else "CLIP's, not Inception's"
    reads = f"{{}} of {len(rows)} drawings of what is kept to {len(real)} real pictures, on features that are {whose}"
    drawn = image_generator.draw(Prompts(tuple(text for text, _ in rows), tuple(one for _, one in rows)))
    height, wide = drawn.shape[-2:]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.inference_mode():
        warnings.filterwarnings("ignore", "Metric `Kernel", UserWarning)  # says that it keeps all features
        torch.manual_seed(seed)
        size = min(subset_size, len(rows), len(real))
        fid = FrechetInceptionDistance(feature=net, normalize=False, input_img_size=(3, height, wide))
        kid = KernelInceptionDistance(feature=net, normalize=False, subset_size=size)
        for metric in (fid, kid):
            for start in range(0, len(real), BATCH):
                metric.update(_pixels(real[start : start + BATCH], height, wide), real=True)
            for batch in drawn.split(BATCH):
                metric.update(batch, real=False)
        values = {"fid": fid.compute().item(), "kid": kid.compute()[0].item()}
    return {
        f"quality/{key}": Metric(value, len(rows), better="lower", reads=reads.format(key.upper()))
        for key, value in values.items()
    }


class Vision(nn.Module):
    """A CLIP's vision tower as torchmetrics wants a network of features: (n, 3, h, w) uint8 -> (n, d) of length 1."""

    def __init__(self, clip: Clip):
        super().__init__()
        self._clip, self.num_features = clip, width(clip)

    def forward(self, pictures: Tensor) -> Tensor:
        """Prepared as the CLIP wants them."""
        return embed(self._clip, pictures)


def nearest_names(clip: Clip, names: Sequence[str], others: Sequence[str], nearest: int) -> list[str]:
    """Of `others`, the `nearest` of each of `names` by the cosine of the CLIP's embeddings of the bare names; each once."""
    if not others:
        return []
    rows = class_features(Tower(clip, "text"), Classes((*names, *others), ("{}",)))
    close = (rows[: len(names)] @ rows[len(names) :].T).topk(min(nearest, len(others))).indices
    return [others[i] for i in dict.fromkeys(close.flatten().tolist())]


def _kept(
    task: Task, seeds: int, first_seed: int, retain: int | None, cross: int | None, *, roles: Sequence[str]
) -> list[ImageRequest]:
    """What `muwa.eval.images.canvas` asks for of these roles, but in pictures of the forgotten."""
    every = canvas(task, seeds=seeds, forget_seeds=seeds, first_seed=first_seed, retain=retain, cross=cross)
    gone = {ask.text for ask in every if ask.role == "forget"}
    return [ask for ask in every if ask.role in roles and ask.text not in gone]


def _of(pictures: LabelledImages, names: set[str]) -> LabelledImages:
    return pictures.select([i for i, label in enumerate(pictures.labels) if pictures.classes.names[label] in names])


def _pixels(images: Sequence[bytes | Path], height: int, wide: int) -> Tensor:
    """Encoded pictures cut to the size of the drawings: (n, 3, height, wide) uint8."""
    cut = [
        center_crop(resize(pil_to_tensor(decode(image)), [max(height, wide)], antialias=True), [height, wide])
        for image in images
    ]
    return torch.stack(cut)
