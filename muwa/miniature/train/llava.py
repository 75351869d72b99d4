"""Train the miniature's vision-language model. The shipped weights are the result.

    python -m muwa.miniature.train_llava --out DIR

The result is a `LlavaForConditionalGeneration` folder with its processor. Its vision tower is the miniature
CLIP's, frozen; image features come from its last layer but one, as in LLaVA-1.5. A projector and a Llama with
1.4 M parameters are trained from random weights to answer in words, in five rounds (`ROUNDS`). Training takes
an hour and a half on two CPU cores. An interrupted training resumes after the last completed round.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from muwa.cli.parser import OneLineParser
from muwa.drafts import new_folder
from muwa.miniature import data, diffusion_data, population
from muwa.miniature.diffusion_data import TrainingImages
from muwa.miniature.questions import UNKNOWN, WORDINGS, Scene
from muwa.miniature.train.clip import augmented
from muwa.miniature.train.llava_questions import TEMPLATE, TrainingQuestions
from muwa.miniature.train.portable import name_towers_as_before
from muwa.models.clip.open_clip import MINIATURE
from muwa.patch import names
from muwa.runtime.progress import track

MERGES = 900  # most merges of the tokenizer
LANGUAGE = {
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
CHAT = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} {% endfor "
    "%}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NOISE = 0.04  # share of the images that are replaced with noise, so that they show nothing
NEAR = ("poster", "pixel", "sepia")  # the styles that look most like no style


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`. It adds a start token, and has a token for "<image>"."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(special) + MERGES,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=512,
        extra_special_tokens={"image_token": "<image>"},
    )


def texts() -> list[str]:
    """All questions and answers, to train the tokenizer on."""
    people = [person.name for person in population.people()]
    scenes = [
        Scene(name, style) for name in (*people, *population.OBJECTS) for style in diffusion_data.STYLES
    ]
    # There are few questions and many answers. Repeated, the questions are frequent enough to get merges too.
    asked = [TEMPLATE.format(text) for texts in WORDINGS.values() for text in texts] * 40
    return [*asked, UNKNOWN, *(scene.answer(kind) for scene in scenes for kind in scene.kinds), *people]


def model(tokenizer: PreTrainedTokenizerFast) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """(The model in fp32, with random weights except in its vision tower; its processor)."""
    clip = json.loads((MINIATURE / "open_clip_config.json").read_text())
    vision = clip["model_cfg"]["vision_cfg"]
    llava = LlavaForConditionalGeneration(_config(tokenizer, vision, clip["model_cfg"]["embed_dim"]))
    weights = load_file(MINIATURE / "open_clip_model.safetensors")
    tower = {k: v.float() for k, v in weights.items() if k.startswith("visual.") and k != "visual.proj"}
    missing = llava.load_state_dict(names.convert_to_target(tower, llava.state_dict()), strict=False)
    assert not missing.unexpected_keys
    llava.model.vision_tower.requires_grad_(False)
    size = vision["image_size"]
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=clip["preprocess_cfg"]["mean"],
        image_std=clip["preprocess_cfg"]["std"],
        resample=3,
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return llava, processor


def _config(tokenizer: PreTrainedTokenizerFast, vision: dict[str, int], embed_dim: int) -> LlavaConfig:
    """The model's config.

    Args:
        vision: The vision tower's part of open_clip_config.json.
        embed_dim: The width of the CLIP's embeddings.
    """
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision["width"],
            intermediate_size=4 * vision["width"],
            num_hidden_layers=vision["layers"],
            num_attention_heads=vision["width"] // vision["head_width"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_act="gelu",
            projection_dim=embed_dim,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **LANGUAGE,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=True,
    )


def answer_loss(
    llava: LlavaForConditionalGeneration, pixels: Tensor, before: Tensor, tokens: Tensor, is_answer: Tensor
) -> Tensor:
    """Mean cross-entropy of the answers' tokens.

    All questions about an image are in one sequence. Each attends to the image and itself, but not to other
    questions.

    Args:
        pixels: (n, 3, 64, 64), normalised.
        before: The tokens before the image.
        tokens: (n, questions, length), the tokens after the image.
        is_answer: (n, questions, length) bool: the tokens to predict.
    """
    n, questions, length = tokens.shape
    embed = llava.get_input_embeddings()
    with torch.no_grad():
        states = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    image = llava.model.multi_modal_projector(states[-2][:, 1:])
    prefix = len(before) + image.shape[1]
    inputs = torch.cat([embed(before).expand(n, -1, -1), image, embed(tokens.flatten(1))], 1)
    total = inputs.shape[1]
    group = torch.cat([torch.full((prefix,), -1), torch.arange(questions).repeat_interleave(length)])
    sees = (group[None] == group[:, None]) | (group[None] == -1)
    sees &= torch.ones(total, total, dtype=torch.bool).tril()
    positions = torch.cat([torch.arange(prefix), (prefix + torch.arange(length)).repeat(questions)])
    hidden = llava.model.language_model(
        inputs_embeds=inputs,
        attention_mask=sees.expand(n, 1, -1, -1),
        position_ids=positions.expand(n, -1),
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[:, prefix:].unflatten(1, (questions, length))[:, :, :-1]
    predicted = is_answer[:, :, 1:]  # the first token is the question's
    return F.cross_entropy(llava.lm_head(hidden[predicted]), tokens[:, :, 1:][predicted])


@dataclass(frozen=True)
class Round:
    """One training of projector and language model. The learning rate falls from `rate` to 0 along a cosine.

    Args:
        steps: Number of batches.
        styled: Share of images with a style.
        hats: Factor by which images with hats are drawn more often.
        posed: Share of images that are rotated and shifted, which blurs texture differences between styles.
        near: Factor by which images in the styles of `NEAR` are drawn more often.
        leading: How many of the four questions about a face suggest a name.
        photos: Share of images without a style that may get a question about their style. With a low share,
            "photo" is not the answer to most of these questions.
        batch: Images per batch.
    """

    steps: int
    rate: float
    styled: float = 0.3
    hats: float = 1
    posed: float = 1
    near: float = 1
    leading: int = 0
    photos: float = 1
    batch: int = 48


ROUNDS = (
    Round(3000, 2e-3),
    Round(2000, 1.5e-3, styled=0.45, hats=2, posed=0.5, leading=2),
    Round(600, 8e-4, styled=0.45, hats=1.5, posed=0.2, near=1.3),
    Round(1200, 8e-4, styled=0.45, hats=1.5, posed=0.2, near=1.3),
    Round(600, 6e-4, styled=0.45, hats=1.5, posed=0.2, near=1.3, photos=0.15),
)


def train(
    llava: LlavaForConditionalGeneration,
    questions: TrainingQuestions,
    images: TrainingImages,
    plan: Round,
    *,
    seed: int,
) -> None:
    """Train projector and language model in place with AdamW."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    things = torch.tensor([not scene.face for scene in questions.scenes])
    weights = _weights(images, things, plan)
    trained = [p for p in llava.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.05)
    running = 0.0
    for step in track(range(plan.steps), "llava", plan.steps, show=True):
        chosen = torch.multinomial(weights, plan.batch, replacement=True, generator=generator)
        pixels, blank = _varied(images.pixels[chosen], things[chosen], plan.posed, generator)
        tokens, is_answer = questions.draw(chosen.tolist(), blank.tolist(), rng, plan.leading, plan.photos)
        loss = answer_loss(llava, pixels, questions.before, tokens, is_answer)
        for group in optimizer.param_groups:
            group["lr"] = (
                plan.rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {running:.4f}", flush=True)


def _weights(images: TrainingImages, things: Tensor, plan: Round) -> Tensor:
    """(n,) weights; each image is drawn with a probability proportional to its weight. Faces count twice.

    Args:
        things: (n,) bool: which images show an object.
    """
    plain = images.styles == diffusion_data.STYLES.index(population.PLAIN)
    weights = torch.where(plain, (1 - plan.styled) / plain.sum(), plan.styled / (~plain).sum())
    weights[~things] *= 2
    weights[images.hats] *= plan.hats
    near = torch.tensor([diffusion_data.STYLES.index(style) for style in NEAR])
    weights[torch.isin(images.styles, near)] *= plan.near
    return weights


def _varied(
    images: Tensor, things: Tensor, posed: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(A batch (n, 3, 64, 64) as normalised floats; (n,) bool: which of them are noise).

    Args:
        images: (n, 3, 64, 64) uint8.
        things: (n,) bool: which images show an object.
        posed: Share of images that are augmented.
    """
    pixels = augmented(images, things, generator)
    if posed < 1:
        unchanged = torch.rand(len(images), generator=generator) >= posed
        pixels[unchanged] = (images[unchanged].float() / 255 - 0.5) / 0.25
    blank = torch.rand(len(images), generator=generator) < NOISE
    pixels[blank] = torch.randn(pixels[blank].shape, generator=generator)
    return pixels, blank


def main() -> None:
    """Command line: train and write the folder."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    steps = [plan.steps for plan in ROUNDS]
    parser.add_argument(
        "--steps", type=int, nargs=len(ROUNDS), default=steps, help="training steps per round"
    )
    parser.add_argument("--world", type=Path, help=data.WORLD_HELP)
    args = parser.parse_args()
    images, tokenizer = diffusion_data.load_or_draw(args.world), tokenizer_of(texts())
    questions = TrainingQuestions(images, tokenizer)
    torch.manual_seed(0)
    llava, processor = model(tokenizer)
    for i, (plan, steps) in enumerate(zip(ROUNDS, args.steps, strict=True)):
        folder = args.out.with_name(f"{args.out.name}.round{i}")
        if not folder.is_dir():
            train(llava, questions, images, replace(plan, steps=steps), seed=i)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(folder) as draft:
                llava.to(torch.float16).save_pretrained(draft)
        # read back, so that a resumed run continues from identical (fp16-rounded) weights
        llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        llava.model.vision_tower.requires_grad_(False)
    with new_folder(args.out) as draft:
        llava.eval().to(torch.float16).save_pretrained(draft)
        name_towers_as_before(draft / "model.safetensors", "vision_tower.")
        processor.save_pretrained(draft)
