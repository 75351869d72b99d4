"""A vision-language model of transformers, whose vision tower is edited without a second copy, and the tower's CLIP."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from muwa.data.samples import decode
from muwa.fingerprint import Content, digest
from muwa.models.clip.model import Clip
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.patch import names
from muwa.patch.weights import fingerprint_of_digests, same_bits, tensor_digest
from muwa.types.edit import Edit
from muwa.types.questions import Questions

if TYPE_CHECKING:
    from muwa.run import Run

TOWER = "vision_tower"
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
PLAIN = "USER: <image>\n{} ASSISTANT:"  # LLaVA-1.5's, where a processor has no template of its own
_PROBE_TEXT = "What is the name of the person in this image?"
_NOT_SAID = ("architectures", "dtype", "transformers_version")  # of a config: says nothing of what is computed


class Vlm(Content):
    """A model that answers questions about pictures. Immutable: `edited` gives a new one that shares all unchanged weights.

    Args:
        model: Any image-text-to-text model of transformers whose vision tower is a CLIP's (or a SigLIP's).
        processor: Its own: pictures and texts to what it takes.
        clip: The CLIP that the tower was taken from: gradients are taken on it. Its candidates are limited to weights that
            the model has and reads: LLaVA reads the last layer but one, so an edit after it would change nothing.
        max_new_tokens: Of an answer; answers are greedy.
        source: Where the weights came from, for messages.

    Attributes:
        unread: Names of the CLIP's vision layers that are no candidates: an edit of them would change no answer.
    """

    def __init__(self, model: Any, processor: Any, clip: Clip, *, max_new_tokens: int, source: str):
        self.model, self.processor, self.max_new_tokens, self.source = model, processor, max_new_tokens, source
        model.eval().requires_grad_(False)
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())  # the base's, but inside `loaded`
        self._base = {name: p.detach() for name, p in self.parameters.items()}  # also inside `loaded`
        self.changes: Mapping[str, Tensor] = NOTHING
        self._digests: dict[str, str] = {}
        self.clip: Clip = clip.restricted(self._read(clip))
        known = {layer.name for layer in self.clip.layers("tensor")}
        every = (layer for layer in clip.layers("tensor") if layer.tower == "vision")
        self.unread: tuple[str, ...] = tuple(layer.name for layer in every if layer.name not in known)

    @property
    def clips(self) -> Mapping[str, Clip]:
        """The vision tower's CLIP, under the encoder "vision_tower"."""
        return {TOWER: self.clip}

    observer: ClassVar[type[QuestionAnswering]] = QuestionAnswering

    def observe(self, run: Run) -> QuestionAnswering:
        """The answers of this model."""
        return QuestionAnswering(self, run)

    def patch_base(self, edit: Edit) -> Clip:
        """The CLIP whose vision tower this is: the same patch fits the CLIP too."""
        return self.clip

    def about(self) -> dict[str, object]:
        """Provenance: source, fingerprint, and how long an answer may be."""
        return {"source": self.source, "fingerprint": self.fingerprint, "max_new_tokens": self.max_new_tokens}

    @property
    def tower(self) -> dict[str, Tensor]:
        """Parameter name -> tensor of the vision tower, as it is now."""
        return {**{n: p for n, p in self._base.items() if f"{TOWER}." in n}, **self.changes}

    @property
    def device(self) -> torch.device:
        """Where the vision tower lives."""
        return next(iter(self.tower.values())).device

    def edited(self, edit: Edit) -> Vlm:
        """The model after `edit`, named after its CLIP: `theta' = fp32(theta) + delta`, cast back, as `muwa.patch.apply` does.

        Raises:
            KeyError: A delta belongs to no weight of the vision tower.
        """
        now = self.tower
        deltas = names.carry(edit.deltas, now) if edit.deltas else {}
        new = {name: (now[name].float() + d.to(now[name].device)).to(now[name].dtype) for name, d in deltas.items()}
        other = object.__new__(Vlm)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k != "fingerprint"})
        other.changes, other.clip = {**self.changes, **new}, self.clip.edited(edit)
        return other

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The transformers model with this model's weights in it, for as long as the context lasts; not for two threads."""
        kept = []
        try:
            for name, tensor in self.changes.items():
                kept.append((self.parameters[name], self.parameters[name].data))
                self.parameters[name].data = tensor
            yield self.model
        finally:
            for parameter, data in kept:
                parameter.data = data

    def prompt(self, text: str, pictures: int = 1) -> str:
        """A question as the model was trained to read it, up to where its answer starts."""
        if not getattr(self.processor, "chat_template", None):
            return PLAIN.replace("<image>\n", "<image>\n" * pictures).format(text)
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def inputs(self, questions: Questions, answers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What the model takes for `questions`, padded on the left; with `answers`, as if it had said them."""
        said = (
            [f" {answer}{self.processor.tokenizer.eos_token}" for answer in answers]
            if answers
            else [""] * len(questions)
        )
        texts = [self.prompt(text, len(own)) for text, own in zip(questions.texts, questions.images, strict=True)]
        pictures = [[decode(image) for image in own] for own in questions.images]
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side, side = "left", tokenizer.padding_side
        try:
            ready = self.processor(
                text=[text + more for text, more in zip(texts, said, strict=True)], images=pictures, padding=True,
                return_tensors="pt", add_special_tokens=not _starts(texts[0], tokenizer),
            )  # fmt: skip
        finally:
            tokenizer.padding_side = side
        dtype = next(iter(self.tower.values())).dtype
        return {k: v.to(self.device, dtype) if v.is_floating_point() else v.to(self.device) for k, v in ready.items()}

    @torch.inference_mode()
    def answer(self, questions: Questions) -> Tensor:
        """Greedy answers to one batch: (n, max_new_tokens) tokens on the CPU, padded with the end marker."""
        ready = self.inputs(questions)
        end = self.processor.tokenizer.eos_token_id
        with self.loaded() as model:
            said = model.generate(
                **ready, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1,
                pad_token_id=end, eos_token_id=end, temperature=None, top_p=None,
            )[:, ready["input_ids"].shape[1] :]  # fmt: skip
        out = torch.full((len(questions), self.max_new_tokens), end)
        out[:, : said.shape[1]] = said.cpu()
        return out

    def words(self, answers: Tensor) -> list[str]:
        """Tokens of `answer` as text."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    @property
    def batch(self) -> int:
        """Questions answered at once."""
        return 32 if self.device.type == "cpu" else 64

    def _read(self, clip: Clip) -> frozenset[str]:
        """Names of the CLIP's weights that the tower has and that change an answer: those with a gradient of the logits.

        Raises:
            ValueError: The tower's weights are not this CLIP's.
        """
        own = self.tower
        vision = {name: w for name, w in clip.weights.items() if name.startswith(("visual", "vision"))}
        found = {name: there for name, w in vision.items() if (there := names.places(name, w, own))}
        parts = {place: part for there in found.values() for place, part in there.items()}
        if other := [place for place, p in own.items() if place not in parts or not same_bits(p, parts[place])]:
            raise ValueError(
                f"model.clip: {clip.source} is not the vision tower of {self.source}: {other[0]} differs ({len(other)} of "
                f"{len(own)} do). Its gradients would be another model's; give the CLIP that the tower was taken from"
            )
        parameters = {name: self.parameters[name] for name in own}
        try:
            with torch.enable_grad():
                for parameter in parameters.values():
                    parameter.requires_grad_(True)
                ready = self.inputs(Questions((_PROBE_TEXT,), ((_probe_picture(),),)))
                self.model(**ready).logits[:, -1].float().square().sum().backward()
            moved = {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
        finally:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
        return frozenset(name for name, there in found.items() if moved & set(there))

    def _digest(self, name: str) -> str:
        if name in self.changes:
            return tensor_digest(self.changes[name])
        if name not in self._digests:
            self._digests[name] = tensor_digest(self._base[name])
        return self._digests[name]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights and their dtype, the config, the processor, and how long an answer may be."""
        config = json.dumps(_said_by(self.model.config.to_dict()), sort_keys=True, default=str)
        parts = [type(self.model).__name__, config, str(self.max_new_tokens)]
        ready = self.inputs(Questions((_PROBE_TEXT,), ((_probe_picture(),),)))
        parts += [part for key in sorted(ready) for part in (key, tensor_digest(ready[key]))]
        return digest([*parts, fingerprint_of_digests({name: self._digest(name) for name in self._base})])


def _said_by(config: Any) -> Any:
    """What of a config, at any depth, decides what is said."""
    if not isinstance(config, Mapping):
        return config
    return {str(k): _said_by(v) for k, v in config.items() if str(k)[:1] != "_" and k not in _NOT_SAID}


def _starts(text: str, tokenizer: Any) -> bool:
    """Whether a prompt carries the start marker itself: the tokenizer is then not to add another."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def _probe_picture() -> bytes:
    """A small picture of colour gradients, as a PNG."""
    x, y = np.meshgrid(np.arange(64, dtype=np.uint8) * 4, np.arange(64, dtype=np.uint8) * 4)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], -1)).save(buffer, "PNG")
    return buffer.getvalue()
