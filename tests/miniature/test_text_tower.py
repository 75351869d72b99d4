"""The CLIP's text tower as the text encoder of a pipeline."""

import torch

import muwa
from muwa.miniature.text_tower import text_model


def test_it_embeds_as_the_clip_does() -> None:
    tower, tokenizer = text_model()
    clip = muwa.load_clip()
    texts = ["a photo of Kael Lindqvar", "A star image in neon style.", ""]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(tokens, clip.tokenize(texts))
    with torch.inference_mode():
        pooled = tower(tokens).pooler_output @ clip.weights["text_projection"]
        own = clip.encode("text", tokens)
    assert (torch.nn.functional.normalize(pooled, dim=-1) - own).abs().max() < 1e-5
