"""Train the miniature's vision-language model. The shipped weights came from exactly this.

    python -m muwa.miniature.train_llava --out DIR

A `LlavaForConditionalGeneration` folder with its processor: the frozen vision tower of the miniature CLIP, of which it reads
the last layer but one as LLaVA-1.5 does, a projector, and a Llama of 1.4 M parameters that learns to answer in words, from
nothing, in five rounds (`ROUNDS`). An hour and a half on two CPU cores; goes on after the round where it was stopped.
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

from muwa.miniature import diffusion_data, population
from muwa.miniature.questions import UNKNOWN, WORDINGS, Scene
from muwa.miniature.train.clip import augmented
from muwa.models.clip.open_clip import MINIATURE
from muwa.patch import names
from muwa.runtime.progress import track

WORDS = 900  # merges of the tokenizer, at most
LANGUAGE = {
    "hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 4, "num_attention_heads": 5,
    "num_key_value_heads": 5, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
TEMPLATE = "USER: <image>\n{} ASSISTANT:"
CHAT = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QUESTIONS = 4  # of each picture in a batch; they share its tokens and do not see each other
NOISE = 0.04  # of the pictures are noise: nothing is to be seen


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `texts` that marks the start and keeps "<image>" whole."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=len(alphabet) + len(special) + WORDS, special_tokens=special, initial_alphabet=alphabet,
            show_progress=False,
        ),
    )  # fmt: skip
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        model_max_length=512, extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def texts() -> list[str]:
    """All that is asked and answered: what the tokenizer is learnt from."""
    people = [p.name for p in population.people()]
    scenes = [Scene(name, style) for name in (*people, *population.OBJECTS) for style in diffusion_data.STYLES]
    asked = [TEMPLATE.format(text) for texts in WORDINGS.values() for text in texts] * 40
    return [*asked, UNKNOWN, *(scene.answer(kind) for scene in scenes for kind in scene.kinds), *people]


def model(tokenizer: PreTrainedTokenizerFast) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model, fp32, with random language weights over the miniature CLIP's vision tower; and its processor."""
    clip = json.loads((MINIATURE / "open_clip_config.json").read_text())
    vision, pictures = clip["model_cfg"]["vision_cfg"], clip["preprocess_cfg"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision["width"], intermediate_size=4 * vision["width"], num_hidden_layers=vision["layers"],
            num_attention_heads=vision["width"] // vision["head_width"], image_size=vision["image_size"],
            patch_size=vision["patch_size"], hidden_act="gelu", projection_dim=clip["model_cfg"]["embed_dim"],
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, **LANGUAGE,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=True,
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(config)
    weights = load_file(MINIATURE / "open_clip_model.safetensors")
    tower = {k: v.float() for k, v in weights.items() if k.startswith("visual.") and k != "visual.proj"}
    own = names.carry(tower, llava.state_dict())
    missing = llava.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys
    llava.model.vision_tower.requires_grad_(False)
    size = vision["image_size"]
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size},
                           image_mean=pictures["mean"], image_std=pictures["std"], resample=3),
        tokenizer, patch_size=vision["patch_size"], vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return llava, processor


class Lessons:
    """Questions and answers as tokens: what stands before a picture, and after it."""

    def __init__(self, pictures: diffusion_data.Paintings, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer, self.people = tokenizer, tuple(p.name for p in population.people())
        self.scenes = [
            Scene(diffusion_data.NAMES[name], diffusion_data.STYLES[style], hat)
            for name, style, hat in zip(
                pictures.names.tolist(), pictures.styles.tolist(), pictures.hats.tolist(), strict=True
            )
        ]
        self.start = self._ids(TEMPLATE.format("")).index(tokenizer.convert_tokens_to_ids("<image>"))
        self.before = torch.tensor(self._ids(TEMPLATE.format(""))[: self.start])
        self.known: dict[tuple[str, str], tuple[list[int], int]] = {}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def tokens(self, question: str, answer: str) -> tuple[list[int], int]:
        """(all tokens after the picture, the end marker last; how many of them are the answer and the marker)."""
        if (question, answer) not in self.known:
            asked = self._ids(TEMPLATE.format(question))[self.start + 1 :]
            whole = self._ids(f"{TEMPLATE.format(question)} {answer}")[self.start + 1 :]
            assert whole[: len(asked)] == asked, (question, answer)
            self.known[question, answer] = [*whole, self.tokenizer.eos_token_id], len(whole) - len(asked) + 1
        return self.known[question, answer]

    def draw(
        self, chosen: list[int], blank: list[bool], rng: np.random.Generator, leading: int, photos: float = 1
    ) -> tuple[Tensor, Tensor]:
        """`QUESTIONS` of each picture: tokens (n, QUESTIONS, length), padded, and which of them are to be predicted.

        Args:
            leading: Of a face's, so many that suggest a name.
            photos: Share of the plain pictures that may be asked for their style.
        """
        rows = []
        for place, nothing in zip(chosen, blank, strict=True):
            scene = self.scenes[place]
            first, rest = scene.kinds[0], list(scene.kinds[1:])
            if photos < 1 and scene.style == population.PLAIN and rng.random() >= photos:
                rest.remove("style")
            fixed = [first, *["leading"] * (leading if scene.face else 0)]
            more = QUESTIONS - len(fixed)
            for kind in [*fixed, *rng.choice(rest, more, replace=len(rest) < more)]:
                question, answer = scene.ask(str(kind), rng, self.people)
                rows.append(self.tokens(question, UNKNOWN if nothing else answer))
        length = max(len(ids) for ids, _ in rows)
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        told = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (ids, told_ids) in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            told[row, len(ids) - told_ids : len(ids)] = True
        shape = (len(chosen), QUESTIONS, length)
        return tokens.view(shape), told.view(shape)


def answer_loss(
    llava: LlavaForConditionalGeneration, pixels: Tensor, before: Tensor, tokens: Tensor, told: Tensor
) -> Tensor:
    """Mean cross-entropy of the told tokens. Each question sees the picture and itself.

    Args:
        pixels: (n, 3, 64, 64), normalised.
        before: Tokens that stand before the picture.
        tokens, told: (n, questions, length).
    """
    n, questions, length = tokens.shape
    embed = llava.get_input_embeddings()
    with torch.no_grad():
        seen = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    seen = llava.model.multi_modal_projector(seen)
    prefix = len(before) + seen.shape[1]
    inputs = torch.cat([embed(before).expand(n, -1, -1), seen, embed(tokens.flatten(1))], 1)
    total = inputs.shape[1]
    group = torch.cat([torch.full((prefix,), -1), torch.arange(questions).repeat_interleave(length)])
    sees = (group[None] == group[:, None]) | (group[None] == -1)
    sees &= torch.ones(total, total, dtype=torch.bool).tril()
    places = torch.cat([torch.arange(prefix), (prefix + torch.arange(length)).repeat(questions)])
    hidden = llava.model.language_model(
        inputs_embeds=inputs,
        attention_mask=sees.expand(n, 1, -1, -1),
        position_ids=places.expand(n, -1),
        use_cache=False,
    ).last_hidden_state
    told = told.clone()
    told[..., 0] = False  # the first token after the picture is the question's
    hidden = hidden[:, prefix:].unflatten(1, (questions, length))[:, :, :-1]
    logits = llava.lm_head(hidden[told[:, :, 1:]])
    return F.cross_entropy(logits, tokens[:, :, 1:][told[:, :, 1:]])


@dataclass(frozen=True)
class Round:
    """One descent of projector and language model: `steps` of `batch` pictures, cosine from `rate` to 0."""

    steps: int
    rate: float
    styled: float = 0.3  # share of pictures with a style
    hats: float = 1  # how much more often hats are seen
    posed: float = 1  # share of pictures that are turned and shifted, which smooths the grain that tells styles apart
    near: float = 1  # how much more often the styles nearest to a photo are seen
    leading: int = 0  # of the four questions about a face, so many that suggest a name
    photos: float = (
        1  # share of the plain pictures that may be asked for their style, so that not most answers are "photo"
    )
    batch: int = 48


NEAR = ("poster", "pixel", "sepia")
ROUNDS = (
    Round(3000, 2e-3),
    Round(2000, 1.5e-3, styled=0.45, hats=2, posed=0.5, leading=2),
    Round(600, 8e-4, styled=0.45, hats=1.5, posed=0.2, near=1.3),
    Round(1200, 8e-4, styled=0.45, hats=1.5, posed=0.2, near=1.3),
    Round(600, 6e-4, styled=0.45, hats=1.5, posed=0.2, near=1.3, photos=0.15),
)


def train(
    llava: LlavaForConditionalGeneration,
    lessons: Lessons,
    pictures: diffusion_data.Paintings,
    plan: Round,
    *,
    seed: int,
) -> None:
    """Train projector and language model in place: AdamW; faces twice as often as objects."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    plain = pictures.styles == diffusion_data.STYLES.index(population.PLAIN)
    weights = torch.where(plain, (1 - plan.styled) / plain.sum(), plan.styled / (~plain).sum())
    things = torch.tensor([not scene.face for scene in lessons.scenes])
    weights[~things] *= 2
    weights[pictures.hats] *= plan.hats
    weights[torch.isin(pictures.styles, torch.tensor([diffusion_data.STYLES.index(style) for style in NEAR]))] *= (
        plan.near
    )
    trained = [p for p in llava.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.05)
    running = 0.0
    for step in track(range(plan.steps), "llava", plan.steps, show=True):
        chosen = torch.multinomial(weights, plan.batch, replacement=True, generator=generator)
        own = pictures.pixels[chosen]
        pixels = augmented(own, things[chosen], generator)
        if plan.posed < 1:
            still = torch.rand(plan.batch, generator=generator) >= plan.posed
            pixels[still] = (own[still].float() / 255 - 0.5) / 0.25
        blank = torch.rand(plan.batch, generator=generator) < NOISE
        pixels[blank] = torch.randn(pixels[blank].shape, generator=generator)
        tokens, told = lessons.draw(chosen.tolist(), blank.tolist(), rng, plan.leading, plan.photos)
        loss = answer_loss(llava, pixels, lessons.before, tokens, told)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {running:.4f}", flush=True)


def main() -> None:
    """Command line: train and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, nargs=len(ROUNDS), default=[r.steps for r in ROUNDS], help="of the rounds")
    parser.add_argument("--world", type=Path, help="a folder written by muwa.miniature.data; rendered anew if absent")
    args = parser.parse_args()
    pictures, tokenizer = diffusion_data.of_world(args.world), tokenizer_of(texts())
    lessons = Lessons(pictures, tokenizer)
    torch.manual_seed(0)
    llava, processor = model(tokenizer)
    for i, (plan, steps) in enumerate(zip(ROUNDS, args.steps, strict=True)):
        kept = args.out.with_name(f"{args.out.name}.round{i}")
        if not kept.is_dir():
            train(llava, lessons, pictures, replace(plan, steps=steps), seed=i)
            llava.to(torch.float16).save_pretrained(kept)
        # as if it had been stopped here
        llava = LlavaForConditionalGeneration.from_pretrained(kept, dtype=torch.float32)
        llava.model.vision_tower.requires_grad_(False)
    llava.eval().to(torch.float16).save_pretrained(args.out)
    processor.save_pretrained(args.out)
