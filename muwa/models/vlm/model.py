"""A vision-language model of transformers with replaceable weights, and the CLIP of its vision tower."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from muwa.data.samples import decode
from muwa.fingerprint import Content, digest
from muwa.models.clip.model import Clip
from muwa.models.shipped import with_shipped
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.patch import names
from muwa.patch.weights import fingerprint_of_digests, same_bits, tensor_digest
from muwa.types.edit import Edit
from muwa.types.questions import Questions
from muwa.types.request import Request
from muwa.types.short import model_repr

if TYPE_CHECKING:
    from muwa.run import Run

TOWER = "vision_tower"
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
PLAIN = "USER: <image>\n{} ASSISTANT:"  # LLaVA-1.5's prompt, for a processor without a template
_PROBE_TEXT = "What is the name of the person in this image?"

# Entries of a config that change no answer.
_WITHOUT_EFFECT = ("architectures", "dtype", "transformers_version")


class Vlm(Content):
    """A model that answers questions about images.

    It is immutable: `edited` returns a new one that shares all unchanged tensors.

    Args:
        model: Any image-text-to-text model of transformers whose vision tower is a CLIP's (or a SigLIP's).
        processor: Makes the model's inputs from images and texts.
        clip: The CLIP that the tower was taken from. Gradients are taken on it. Only layers whose weights the
            model has and reads can be edited: LLaVA reads the last layer but one, so a later edit would
            change nothing.
        max_new_tokens: The longest answer. Answers are greedy.
        source: Where the weights came from, for messages.
        requests: The requests that the weights carry.
        place: The file or folder of this machine that the weights were read from; None if there is none.

    Attributes:
        unread: Names of the CLIP's vision layers that cannot be edited, as that would change no answer.
    """

    observer: ClassVar[type[QuestionAnswering]] = QuestionAnswering

    def __init__(
        self,
        model: Any,
        processor: Any,
        clip: Clip,
        *,
        max_new_tokens: int,
        source: str,
        requests: tuple[Request, ...] = (),
        place: Path | None = None,
    ):
        self.requests, self.place = requests, place
        self.model, self.processor, self.max_new_tokens, self.source = (
            model,
            processor,
            max_new_tokens,
            source,
        )
        model.eval().requires_grad_(False)
        # They hold the base weights, except while other weights are `loaded`; `_base` always does.
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._base = {name: p.detach() for name, p in self.parameters.items()}
        self.changes: Mapping[str, Tensor] = NOTHING
        self._digests: dict[str, str] = {}
        self.clip: Clip = clip.restricted(self._read(clip))
        editable = {layer.name for layer in self.clip.layers("tensor")}
        vision = (layer.name for layer in clip.layers("tensor") if layer.tower == "vision")
        self.unread: tuple[str, ...] = tuple(name for name in vision if name not in editable)

    def __repr__(self) -> str:
        return model_repr(self, self._base.values(), list(self.changes))

    @property
    def clips(self) -> Mapping[str, Clip]:
        """The vision tower's CLIP, under the encoder "vision_tower"."""
        return {TOWER: self.clip}

    def observe(self, run: Run) -> QuestionAnswering:
        """The answers of this model."""
        return QuestionAnswering(self, run)

    def patch_base(self, edit: Edit) -> Clip:
        """The CLIP whose vision tower this is, so that the patch fits the CLIP too."""
        return self.clip

    def about(self) -> dict[str, object]:
        """Provenance: source, fingerprint, how long an answer may be, and the number of weights."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "max_new_tokens": self.max_new_tokens,
            "parameters": sum(tensor.numel() for tensor in self._base.values()),
        }

    @property
    def tower(self) -> dict[str, Tensor]:
        """Parameter name -> tensor of this model's vision tower."""
        return {**{n: p for n, p in self._base.items() if f"{TOWER}." in n}, **self.changes}

    @property
    def device(self) -> torch.device:
        """Where the vision tower is."""
        return next(iter(self.tower.values())).device

    def edited(self, edit: Edit) -> Vlm:
        """The model after `edit`: `theta' = fp32(theta) + delta`, cast back, as in `muwa.patch.apply`.

        Deltas have the names of the CLIP's weights.

        Raises:
            KeyError: A delta belongs to no weight of the vision tower.
        """
        tower = self.tower
        deltas = names.convert_to_target(edit.deltas, tower) if edit.deltas else {}
        changes = {
            name: (tower[name].float() + delta.to(tower[name].device)).to(tower[name].dtype)
            for name, delta in deltas.items()
        }
        return self._copy({**self.changes, **changes}, self.clip.edited(edit))

    def shipped(self, changes: Mapping[str, Tensor]) -> Vlm:
        """The model as it was shipped, where its vision tower carries patches; this is its original.

        Args:
            changes: Parameter name -> the tensor with the patches.
        """
        return self._copy(changes, with_shipped(self.clip, {**self.tower, **changes}, changes))

    @property
    def unedited(self) -> Vlm:
        """The same model with the weights that it was loaded with."""
        return self._copy(NOTHING, self.clip.unedited) if self.changes else self

    def _copy(self, changes: Mapping[str, Tensor], clip: Clip) -> Vlm:
        other = object.__new__(Vlm)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k != "fingerprint"})
        other.changes, other.clip = changes, clip
        return other

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The transformers model with this model's weights in it, in a `with` block. Not thread-safe."""
        replaced: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for name, tensor in self.changes.items():
                replaced.append((self.parameters[name], self.parameters[name].data))
                self.parameters[name].data = tensor
            yield self.model
        finally:
            for parameter, data in replaced:
                parameter.data = data

    def prompt(self, text: str, images: int = 1) -> str:
        """The prompt of a question about `images` images, up to where the answer starts."""
        if not getattr(self.processor, "chat_template", None):
            return PLAIN.replace("<image>\n", "<image>\n" * images).format(text)
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )

    def inputs(self, questions: Questions, answers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The model's inputs for `questions`, padded on the left.

        Questions without an image are asked as text alone. All questions have images, or none has.

        Args:
            answers: One per question, appended to it with the end marker, for the loss of these answers.
        """
        tokenizer = self.processor.tokenizer
        endings = (
            [f" {answer}{tokenizer.eos_token}" for answer in answers] if answers else [""] * len(questions)
        )
        prompts = [
            self.prompt(text, len(images))
            for text, images in zip(questions.texts, questions.images, strict=True)
        ]
        tokenizer.padding_side, side = "left", tokenizer.padding_side
        try:
            inputs = self.processor(
                text=[prompt + ending for prompt, ending in zip(prompts, endings, strict=True)],
                images=[[decode(image) for image in images] for images in questions.images]
                if any(questions.images)
                else None,
                padding=True,
                return_tensors="pt",
                add_special_tokens=not _has_start(prompts[0], tokenizer),
            )
        finally:
            tokenizer.padding_side = side
        dtype = next(iter(self.tower.values())).dtype
        return {
            name: value.to(self.device, dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }

    @torch.inference_mode()
    def answer(self, questions: Questions) -> Tensor:
        """Greedy answers to one batch: (n, max_new_tokens) tokens on the CPU, padded with the end marker."""
        inputs = self.inputs(questions)
        end = self.processor.tokenizer.eos_token_id
        with self.loaded() as model:
            generated = model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=end,
                eos_token_id=end,
                temperature=None,
                top_p=None,
            )
        answers = generated[:, inputs["input_ids"].shape[1] :]
        padded = torch.full((len(questions), self.max_new_tokens), end)
        padded[:, : answers.shape[1]] = answers.cpu()
        return padded

    def words(self, answers: Tensor) -> list[str]:
        """The tokens of `answer` as texts."""
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    def batch(self) -> int:
        """How many questions are answered at once."""
        return 32 if self.device.type == "cpu" else 64

    def _read(self, clip: Clip) -> frozenset[str]:
        """Names of the CLIP's weights that the tower has and that change an answer.

        They are found by trial: the gradient of the logits with respect to them is not zero.

        Raises:
            ValueError: The tower's weights are not this CLIP's.
        """
        tower = self.tower
        vision = {name: w for name, w in clip.weights.items() if name.startswith(("visual", "vision"))}
        places = {name: at for name, w in vision.items() if (at := names.parts_in_target(name, w, tower))}
        expected = {place: part for at in places.values() for place, part in at.items()}
        different = [
            place
            for place, tensor in tower.items()
            if place not in expected or not same_bits(tensor, expected[place])
        ]
        if different:
            raise ValueError(
                f"model.clip: {clip.source} is not the vision tower of {self.source}: {different[0]} differs "
                f"({len(different)} of {len(tower)} do). Its gradients would be another model's; give the "
                "CLIP that the tower was taken from. If the tower was trained on after that, as LLaVA-NeXT's "
                "was, take model.tuned_tower=true"
            )
        read = self._with_gradient(list(tower))
        return frozenset(name for name, at in places.items() if read & set(at))

    def _with_gradient(self, weights: Sequence[str]) -> set[str]:
        """Which of these weights change the first token of an answer."""
        parameters = {name: self.parameters[name] for name in weights}
        try:
            with torch.enable_grad():
                for parameter in parameters.values():
                    parameter.requires_grad_(True)
                inputs = self.inputs(Questions((_PROBE_TEXT,), ((_probe_image(),),)))
                self.model(**inputs).logits[:, -1].float().square().sum().backward()
            return {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
        finally:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None

    def _digest(self, name: str) -> str:
        if name in self.changes:
            return tensor_digest(self.changes[name])
        if name not in self._digests:
            self._digests[name] = tensor_digest(self._base[name])
        return self._digests[name]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights and their dtype, the config, the processor, and the longest answer."""
        config = json.dumps(_deciding(self.model.config.to_dict()), sort_keys=True, default=str)
        parts = [type(self.model).__name__, config, str(self.max_new_tokens)]
        inputs = self.inputs(Questions((_PROBE_TEXT,), ((_probe_image(),),)))
        parts += [part for key in sorted(inputs) for part in (key, tensor_digest(inputs[key]))]
        return digest([*parts, fingerprint_of_digests({name: self._digest(name) for name in self._base})])


def _deciding(config: Any) -> Any:
    """What of a config, at any depth, can change an answer."""
    if not isinstance(config, Mapping):
        return config
    keys = [key for key in config if str(key)[:1] != "_" and key not in _WITHOUT_EFFECT]
    return {str(key): _deciding(config[key]) for key in keys}


def _has_start(text: str, tokenizer: Any) -> bool:
    """Whether a prompt has the start marker already: the tokenizer must not add another."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def _probe_image() -> bytes:
    """A small image of colour gradients, as a PNG."""
    x, y = np.meshgrid(np.arange(64, dtype=np.uint8) * 4, np.arange(64, dtype=np.uint8) * 4)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], -1)).save(buffer, "PNG")
    return buffer.getvalue()
