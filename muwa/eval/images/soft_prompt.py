"""White-box prompt attack: a prompt learnt on forget images through the model under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from muwa.data.samples import decode
from muwa.eval.base import Measure
from muwa.eval.images.attacks import (
    attack_reading,
    check_one_encoder,
    forget_requests,
    generate_embedded,
    open_texts,
)
from muwa.eval.images.canvas import hit_rate
from muwa.models.base import Observer
from muwa.models.diffusion.denoiser import Conditions, Denoiser, check_denoiser
from muwa.models.diffusion.image_classifier import ClassifierLoader, recognised
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.diffusion.text_encoders import prompt_only
from muwa.run import Run
from muwa.types.data import Pairs, Task
from muwa.types.image_requests import ImageRequest
from muwa.types.metric import Metric
from muwa.types.ranges import Count, CountOrZero, LearningRate, Seed, Templates, Text

if TYPE_CHECKING:
    from muwa.models.diffusion.model import Diffusion

# A single token in every CLIP tokenizer and not a word of any name; the learnt embeddings replace it.
MARKER = "q"

# Loss scale: Adam is invariant to it, and it keeps small fp16 gradients from underflowing.
SCALE = 2.0**10


@dataclass(frozen=True)
class Learning:
    """How token embeddings are learnt.

    Args:
        texts: Prompts with {} for the learnt tokens; one is taken at random for each image of a batch.
        start: A word whose token embeddings initialise the learnt ones; repeated if it has fewer tokens.
        tokens: Number of token embeddings to learn.
        steps, batch, rate: Number of Adam steps, images per step, learning rate.
        seed: Seed for templates, images, noise and timesteps.
    """

    texts: tuple[str, ...]
    start: str
    tokens: int
    steps: int
    batch: int
    rate: float
    seed: int


@dataclass(frozen=True)
class SoftPrompt(Measure):
    """`attack/soft_prompt`: token embeddings learnt by textual inversion. Lower is better.

    Args:
        classifier: Loads the classifier.
        templates: Prompts with {} for the learnt tokens; one is taken at random for each image of a batch.
        style_templates: The same, for tasks of kind "style".
        start: Kind of task -> a word whose token embeddings initialise the learnt ones.
        tokens: Number of token embeddings to learn.
        steps, batch, rate: Number of Adam steps, images per step, learning rate.
        examples: Number of forget images per name to learn from (the first ones).
        seed: Seed for templates, images, noise and timesteps.
        seeds: Images per prompt, with seeds first_seed, first_seed + 1, ... The prompt is the task's, with
            the learnt tokens in place of the name.
        first_seed: The first seed.
        cross: For tasks of kind "style" and "class": how many names of the other kind fill the prompts; None
            takes all.

    Raises:
        ValueError: The pipeline is not Stable Diffusion 1 or 2; a setting is below 1; `start` has no word for
            the task's kind; a prompt does not fit; the classifier has no label for a name to forget
            (`check`).

    Sources: textual inversion (arXiv 2208.01618); as an attack on unlearnt models, Pham et al. (arXiv
    2308.01508). Differs: several tokens are learnt; latents are the mean of the VAE's posterior, not samples.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    classifier: ClassifierLoader
    templates: Templates
    style_templates: Templates
    start: Mapping[str, Text]
    tokens: Count
    steps: Count
    batch: Count
    rate: LearningRate
    examples: Count
    seed: Seed
    seeds: Count
    first_seed: Seed
    cross: CountOrZero | None

    def check(self, model: Any, task: Task) -> None:
        """Raise if the pipeline, a setting, a prompt or the classifier does not fit."""
        check_one_encoder(model, "soft_prompt")
        check_denoiser(model)
        for key in ("tokens", "steps", "batch", "examples", "seeds"):
            if (value := getattr(self, key)) < 1:
                raise ValueError(f"eval.soft_prompt.{key}: got {value}, want at least 1")
        if task.kind not in self.start:
            raise ValueError(
                f"eval.soft_prompt.start: got words for {', '.join(self.start)}, want one for {task.kind}"
            )
        classifier = self.classifier(model, task)
        check_markers(model, with_markers(self._learning(task).texts, self.tokens), self.tokens)
        for name in task.names:
            of_name = task.only(name)
            check_markers(model, self._prompts(of_name), self.tokens)
            classifier.check(self._requests(of_name))

    def __call__(self, observer: ImageGenerator, task: Task) -> dict[str, Metric]:
        """See the class."""
        model, classifier = observer.model, self.classifier(observer.model, task)
        hits: list[bool] = []
        for name in task.names:
            of_name = task.only(name)
            pairs = of_name.forget[name].select(range(min(self.examples, len(of_name.forget[name]))))
            free = {"run": observer.run}
            learnt = observer.run.cached(
                "soft_prompts", learn, model, pairs, self._learning(task), _free=free
            )
            with in_place_of_markers(model, learnt):
                embeddings = model.embed(self._prompts(of_name))
            requests = self._requests(of_name)
            hits += recognised(generate_embedded(model, requests, embeddings), requests, classifier)
        text = (
            f"fraction of images, generated from a learnt prompt ({self.tokens} token embeddings, "
            f"{self.steps} steps), whose first classifier guess is the target"
        )
        return {"attack/soft_prompt": hit_rate(hits, attack_reading(text, "by a learnt prompt"))}

    def _learning(self, task: Task) -> Learning:
        """The settings of `learn` for the task's kind."""
        texts = self.style_templates if task.kind == "style" else self.templates
        start = self.start[task.kind]
        return Learning(tuple(texts), start, self.tokens, self.steps, self.batch, self.rate, self.seed)

    @property
    def _seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def _requests(self, task: Task) -> list[ImageRequest]:
        """What to generate: the images of the task's prompt, from each seed."""
        return forget_requests(task, task.prompts[0], self._seeds, self.cross)

    def _prompts(self, task: Task) -> list[str]:
        """The texts of `_requests` with markers in place of the name."""
        return with_markers(open_texts(task, task.prompts[0], self._seeds, self.cross), self.tokens)


def learn(model: Diffusion, pairs: Pairs, settings: Learning, *, run: Run) -> Tensor:
    """Token embeddings (tokens, d), fp32, that minimise the pipeline's loss on the images of `pairs`.

        E |truth - UNet(x_t, t, e(text with the tokens))|^2

    The truth is the noise or v, whichever the pipeline predicts.
    """
    texts = with_markers(settings.texts, settings.tokens)
    generator = torch.Generator().manual_seed(settings.seed)
    denoiser, latents = Denoiser(model), latents_of(model, pairs)
    vectors = _start(model, settings).requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=settings.rate)
    timesteps = denoiser.scheduler.config.num_train_timesteps
    size = (settings.batch,)
    for _ in run.track(range(settings.steps), "learning a prompt", settings.steps):
        x = latents[torch.randint(len(latents), size, generator=generator).to(latents.device)]
        noise = denoiser.noise(settings.batch, generator)
        t = torch.randint(timesteps, size, generator=generator).to(x.device)
        chosen = [texts[i] for i in torch.randint(len(texts), size, generator=generator).tolist()]
        with torch.enable_grad(), in_place_of_markers(model, vectors):
            conditions = Conditions(embed_with_gradients(model, chosen))
            predicted = denoiser(denoiser.scheduler.add_noise(x, noise, t), t, conditions)
            loss = F.mse_loss(predicted, denoiser.truth(x, noise, t))
            optimiser.zero_grad(set_to_none=True)
            (loss * SCALE).backward()
        optimiser.step()
    return vectors.detach().cpu()


@torch.no_grad()
def latents_of(model: Diffusion, pairs: Pairs) -> Tensor:
    """(n, c, h, w) fp32 latents of the images, resized and centre-cropped to the generated size."""
    pipeline = model.pipeline
    side = model.sampling.size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    cut = [
        center_crop(resize(pil_to_tensor(decode(image)), [side], antialias=True), [side, side])
        for image in pairs.images
    ]
    return latents_of_images(model, torch.stack(cut))


@torch.no_grad()
def latents_of_images(model: Diffusion, images: Tensor) -> Tensor:
    """(n, c, h, w) fp32 latents of images (n, 3, h, w) uint8 of the generated size: posterior means."""
    with model.loaded() as loaded:
        pipeline: Any = loaded
        vae = pipeline.vae
        latents = [
            vae.encode((x.float() / 127.5 - 1).to(vae.device, vae.dtype)).latent_dist.mean.float()
            for x in images.split(1)
        ]
        return torch.cat(latents) * vae.config.scaling_factor


@contextmanager
def in_place_of_markers(model: Diffusion, vectors: Tensor) -> Iterator[None]:
    """Replace the token embeddings of the markers by `vectors` (k, d), in order, inside a `with` block."""
    table: nn.Module = model.pipeline.text_encoder.get_input_embeddings()
    marker = _token_ids(model, [MARKER])[0][0]

    def replace_markers(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        is_marker = inputs[0] == marker
        order = (is_marker.cumsum(-1) - 1).clamp(min=0) % len(vectors)
        return torch.where(is_marker[..., None], vectors.to(output)[order], output)

    handle = table.register_forward_hook(replace_markers)
    try:
        yield
    finally:
        handle.remove()


def embed_with_gradients(model: Diffusion, texts: Sequence[str]) -> Tensor:
    """`Diffusion.embed` with gradients, in fp32."""
    with model.loaded() as loaded:
        pipeline: Any = loaded
        return pipeline.encode_prompt(prompt=list(texts), **prompt_only(model.device))[0].float()


def _start(model: Diffusion, settings: Learning) -> Tensor:
    """(tokens, d) fp32: the token embeddings of the word `start`, repeated as often as needed."""
    with model.loaded() as loaded:
        pipeline: Any = loaded
        table = pipeline.text_encoder.get_input_embeddings().weight
        ids = _token_ids(model, [settings.start])[0]
        return table[[ids[i % len(ids)] for i in range(settings.tokens)]].detach().float().clone()


def _token_ids(model: Diffusion, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without start and end markers, truncated as the pipeline truncates them."""
    tokenizer = model.pipeline.tokenizer
    every = tokenizer(list(texts), truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
    return [ids[1:-1] for ids in every]


def with_markers(texts: Sequence[str], tokens: int) -> list[str]:
    """The texts with `tokens` markers in place of {}."""
    return [text.format(" ".join([MARKER] * tokens)) for text in texts]


def check_markers(model: Diffusion, texts: Sequence[str], tokens: int) -> None:
    """Raise if a prompt does not have exactly `tokens` markers after the pipeline has truncated it.

    Raises:
        ValueError: A prompt does not fit; the message quotes it.
    """
    marker = _token_ids(model, [MARKER])[0]
    for text, ids in zip(texts, _token_ids(model, texts), strict=True):
        if len(marker) != 1 or ids.count(marker[0]) != tokens:
            raise ValueError(
                f"eval.soft_prompt: {text!r} has {ids.count(marker[0])} places for learnt tokens, want "
                f"{tokens}: too long a prompt, or one with the word {MARKER!r} in it"
            )
