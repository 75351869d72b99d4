"""A LLaVA over a SigLIP's vision tower: transformers' own models, random and tiny."""

from functools import partial

import pytest
import tiny
import tiny_vlm
import torch
from tiny_towers import VISION, language, siglip
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
)

from muwa.gradients.losses import cosine
from muwa.layer_search.steps import step_deltas
from muwa.library import load_clip_hf as load
from muwa.miniature.train.llava import CHAT
from muwa.models.vlm.loading import load as load_vlm
from muwa.models.vlm.question_answering import answered
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients
from muwa.types.questions import Questions


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(a SiglipModel's folder, the folder of a LLaVA that reads the last layer but one of its vision tower)."""
    both, llava = siglip(tmp_path_factory.mktemp("siglip")), tmp_path_factory.mktemp("llava")
    answer_tokenizer = tiny_vlm.tokenizer()
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=language(),
        vision_feature_layer=-2,
        image_seq_length=4,
        image_token_index=answer_tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlavaForConditionalGeneration(config)
    for parameter in model.model.language_model.parameters():
        parameter.data *= 8
    tower = model.model.vision_tower.parameters()  # their names differ between versions, their order does not
    for parameter, source in zip(
        tower, SiglipModel.from_pretrained(both).vision_model.parameters(), strict=True
    ):
        parameter.data = source.data.clone()
    model.save_pretrained(llava)
    LlavaProcessor(
        SiglipImageProcessor.from_pretrained(both),
        answer_tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT,
    ).save_pretrained(llava)
    return both, llava


def load_llava(folders):
    return load_vlm(
        str(folders[1]),
        clip=partial(load, str(folders[0])),
        tuned_tower=False,
        max_new_tokens=6,
        dtype="fp32",
        device="cpu",
    )


def test_embeddings_of_both_towers_of_a_siglip_are_those_of_transformers(folders):
    ours, theirs = load(str(folders[0])), SiglipModel.from_pretrained(folders[0]).eval()
    pixels, tokens = (
        tiny.pixels([tiny.png(1), tiny.png(200)]),
        ours.tokenize(["Ada Fox", "a photo of Bo Hill"]),
    )
    with torch.no_grad():
        want = theirs(input_ids=tokens, pixel_values=pixels)
    torch.testing.assert_close(ours.encode("vision", pixels), want.image_embeds)
    torch.testing.assert_close(ours.encode("text", tokens), want.text_embeds)
    assert cosine(want.image_embeds, want.text_embeds, ours.scale).isfinite()


def test_only_layers_that_the_model_reads_may_be_edited(folders):
    model = load_llava(folders)
    names = [layer.name for layer in model.clip.layers("tensor")]
    assert "vision_model.encoder.layers.0.self_attn.out_proj.weight" in names
    assert not any(
        ".layers.1." in name or ".head." in name or name.startswith("text_model.") for name in names
    )
    assert any(".head." in layer.name for layer in load(str(folders[0])).layers("tensor"))


def test_answers_after_an_edit_are_those_of_plain_transformers(folders):
    model = load_llava(folders)
    layer = next(
        layer
        for layer in model.clip.layers("tensor")
        if layer.name.endswith("layers.0.self_attn.q_proj.weight")
    )
    generator = torch.Generator().manual_seed(0)
    noise = {
        part.name: torch.randn(model.clip.weights[part.name].shape, generator=generator)
        for part in layer.edited
    }
    edit = Edit(step_deltas(model.clip, Gradients(noise, {}, 1, 1, {}), layer, 1.0), ())
    questions = Questions(("Who is this?", "Name it."), ((tiny.png(1),), (tiny.png(300),)))
    before, after = (answered(one, questions, run=Run()) for one in (model, model.edited(edit)))
    assert not torch.equal(before, after)
    theirs = LlavaForConditionalGeneration.from_pretrained(folders[1]).eval()
    for name, delta in edit.deltas.items():
        ending = name.removeprefix(
            "vision_model"
        )  # ".encoder...": what is before it differs between versions
        (home,) = (p for key, p in theirs.named_parameters() if key.endswith(ending))
        home.data += delta
    ready = model.inputs(questions)
    end = model.processor.tokenizer.eos_token_id
    tokens = theirs.generate(**ready, max_new_tokens=6, do_sample=False, pad_token_id=end, eos_token_id=end)
    answers = tokens[:, ready["input_ids"].shape[1] :]
    torch.testing.assert_close(after[:, : answers.shape[1]], answers)


def test_another_kind_of_model_is_refused(folders):
    with pytest.raises(ValueError, match=r"a model of type llava, want one of clip, siglip"):
        load(str(folders[1]))
