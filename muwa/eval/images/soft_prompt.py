"""The strongest question there is: a prompt learnt by gradient, on pictures of the forgotten, against the edited model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from muwa.data.samples import decode
from muwa.eval.images.attacks import check_one_encoder, draw_embedded, forgotten, open_texts
from muwa.eval.images.canvas import share
from muwa.models.diffusion.denoiser import Conditions, Denoiser
from muwa.models.diffusion.image_generation import ImageClassifier, ImageGenerator, seen
from muwa.models.diffusion.model import Diffusion
from muwa.runtime.progress import track
from muwa.types.data import Pairs, Task
from muwa.types.metric import Metric

MARKER = "q"  # one token of every CLIP tokenizer, and in nobody's prompt: the learnt vectors stand where it does
SCALE = 2.0**10  # of the loss: Adam does not see it, half precision would lose small gradients


def soft_prompt(
    image_generator: ImageGenerator, task: Task, *, classifier: Callable[[], ImageClassifier], templates: Sequence[str],
    style_templates: Sequence[str], start: Mapping[str, str], tokens: int = 4, steps: int = 400, batch: int = 4,
    rate: float = 0.005, examples: int = 32, seed: int = 0, seeds: int = 20, first_seed: int = 5000, cross: int | None = 2,
) -> dict[str, Metric]:  # fmt: skip
    """`attack/soft_prompt`: token embeddings learnt by textual inversion of the edited model. Lower is better.

    Args:
        templates: Prompts with {} for the learnt tokens; one is taken at random each step.
        style_templates: The same, of kind "style".
        start: Kind of task -> a word whose token embeddings the learnt ones start at.
        tokens: How many are learnt.
        steps, batch, rate: Of Adam, on pictures of the forgotten with noise of random strength.
        examples: LabelledImages to learn from, of each name: the first of its pairs.
        seed: Of templates, pictures, noise and timesteps.
        seeds: LabelledImages drawn a prompt, from `first_seed` on, with the task's own prompt around the learnt tokens.
        cross: Of kinds "style" and "class": how many names stand in the other place; None is all.

    Raises:
        ValueError: The pipeline is not of Stable Diffusion 1 or 2; a setting is below 1; the learnt tokens do not fit.

    Source: textual inversion (arXiv 2208.01618); against erased models, Pham et al. (arXiv 2308.01508). Differs: several
    tokens; latents are means of the posterior.
    """
    check_one_encoder(image_generator.model, "soft_prompt")
    counts = {"tokens": tokens, "steps": steps, "batch": batch, "examples": examples, "seeds": seeds}
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"eval.soft_prompt.{key}: got {value}, want at least 1")
    judge = classifier()
    hits: list[bool] = []
    for name in task.names:
        one, drawn_from = task.only(name), range(first_seed, first_seed + seeds)
        wanted = forgotten(one, one.prompts[0], drawn_from, cross)
        judge.check(wanted)
        learnt = _learnt(
            image_generator, one.forget[name].select(range(min(examples, len(one.forget[name])))),
            texts=list(style_templates if task.kind == "style" else templates), start=start[task.kind], tokens=tokens,
            steps=steps, batch=batch, rate=rate, seed=seed,
        )  # fmt: skip
        texts = [text.format(_markers(tokens)) for text in open_texts(one, one.prompts[0], drawn_from, cross)]
        _check_markers(image_generator.model, texts, tokens)
        with standing(image_generator.model, learnt):
            embeddings = image_generator.model.embed(texts)
        hits += seen(draw_embedded(image_generator.model, wanted, embeddings), wanted, judge)
    reads = (
        f"share of pictures drawn with {tokens} token embeddings learnt against the model in {steps} steps on pictures of "
        "the forgotten, in which the classifier sees it first; compare with before the edit, and with more steps"
    )
    return {"attack/soft_prompt": share(hits, "lower", reads)}


def _learnt(image_generator: ImageGenerator, pairs: Pairs, **settings: Any) -> Tensor:
    store = image_generator.store
    if store is None:
        return learn(image_generator.model, pairs, **settings, progress=image_generator.progress)
    return store.get("soft_prompts", learn, image_generator.model, pairs, **settings, _free={"progress": image_generator.progress})


def learn(
    model: Diffusion, pairs: Pairs, *, texts: Sequence[str], start: str, tokens: int, steps: int, batch: int, rate: float,
    seed: int, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Token embeddings (tokens, d), fp32, for which the pipeline's own loss on the pictures of `pairs` is least.

        E |truth - UNet(x_t, t, e(text with the tokens))|^2        truth: the noise, or v, as the pipeline predicts

    Args:
        texts: With {} for the tokens.
        start: A word; its token embeddings, repeated, are where they start.
    """
    placed = [text.format(_markers(tokens)) for text in texts]
    _check_markers(model, placed, tokens)
    generator = torch.Generator().manual_seed(seed)
    denoiser, latents = Denoiser(model), latents_of(model, pairs)
    vectors = _word(model, start, tokens).requires_grad_()
    descent = torch.optim.Adam([vectors], lr=rate)
    times = denoiser.scheduler.config.num_train_timesteps
    for _ in track(range(steps), "learning a prompt", steps, show=progress):
        x = latents[torch.randint(len(latents), (batch,), generator=generator).to(latents.device)]
        noise = denoiser.noise(batch, generator)
        t = torch.randint(times, (batch,), generator=generator).to(x.device)
        chosen = [placed[i] for i in torch.randint(len(placed), (batch,), generator=generator).tolist()]
        with torch.enable_grad(), standing(model, vectors):
            told = Conditions(_told(model, chosen))
            predicted = denoiser(denoiser.scheduler.add_noise(x, noise, t), t, told)
            loss = F.mse_loss(predicted, denoiser.truth(x, noise, t))
            descent.zero_grad(set_to_none=True)
            (loss * SCALE).backward()
        descent.step()
    return vectors.detach().cpu()


@torch.no_grad()
def latents_of(model: Diffusion, pairs: Pairs) -> Tensor:
    """(n, channels, height, width) fp32, scaled as the UNet wants them: the pictures of `pairs`, cut to the size drawn."""
    with model.loaded() as loaded:
        pipeline: Any = loaded
        vae = pipeline.vae
        side = model.sampling.size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        rows = []
        for image in pairs.images:
            x = center_crop(resize(pil_to_tensor(decode(image)), [side], antialias=True), [side, side])
            posterior = vae.encode((x[None].float() / 127.5 - 1).to(vae.device, vae.dtype)).latent_dist
            rows.append(posterior.mean.float() * vae.config.scaling_factor)
    return torch.cat(rows)


@contextmanager
def standing(model: Diffusion, vectors: Tensor) -> Iterator[None]:
    """`vectors` (k, d) in place of the markers' token embeddings: of each prompt, the first for the first marker."""
    table: nn.Module = model.pipeline.text_encoder.get_input_embeddings()
    marker = _ids(model, [MARKER])[0][0]

    def put(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        there = inputs[0] == marker
        order = (there.cumsum(-1) - 1).clamp(min=0) % len(vectors)
        return torch.where(there[..., None], vectors.to(output)[order], output)

    handle = table.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _told(model: Diffusion, texts: Sequence[str]) -> Tensor:
    """`Diffusion.embed` with gradients, fp32."""
    with model.loaded() as loaded:
        pipeline: Any = loaded
        return pipeline.encode_prompt(
            prompt=list(texts), device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0].float()


def _word(model: Diffusion, word: str, tokens: int) -> Tensor:
    """(tokens, d) fp32: the token embeddings of `word`, over and over."""
    with model.loaded() as loaded:
        pipeline: Any = loaded
        table = pipeline.text_encoder.get_input_embeddings().weight
        ids = _ids(model, [word])[0]
        return table[[ids[i % len(ids)] for i in range(tokens)]].detach().float().clone()


def _ids(model: Diffusion, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without start and end, cut as the pipeline cuts them."""
    tokenizer = model.pipeline.tokenizer
    found = tokenizer(list(texts), truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
    return [ids[1:-1] for ids in found]


def _markers(tokens: int) -> str:
    return " ".join([MARKER] * tokens)


def _check_markers(model: Diffusion, texts: Sequence[str], tokens: int) -> None:
    marker = _ids(model, [MARKER])[0]
    for text, ids in zip(texts, _ids(model, texts), strict=True):
        if len(marker) != 1 or ids.count(marker[0]) != tokens:
            raise ValueError(
                f"eval.soft_prompt: {text!r} has {ids.count(marker[0])} places for learnt tokens, want {tokens}: too long a "
                f"prompt, or one with the word {MARKER!r} in it"
            )
