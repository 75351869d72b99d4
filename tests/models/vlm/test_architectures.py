"""Every architecture that `model=vlm` loads, whole: answers, gradient, search, edit and patch; and those it refuses."""

import io

import numpy as np
import pytest
import tiny
import tiny_towers
import tiny_vlm
import torch
import transformers
from models.vlm.test_loading import load
from models.vlm.test_model import answered
from PIL import Image
from records import part
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from muwa.gradients.answer_losses import Dialogues, answer_gradient_sum
from muwa.gradients.base import Recipe
from muwa.models.vlm.loading import ARCHITECTURES, TOWERS
from muwa.models.vlm.model import TOWER
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.run import Run
from muwa.types.data import Pairs
from muwa.types.edit import Edit
from muwa.types.questions import Questions

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")
OUT_PROJ = {
    "visual.transformer.resblocks.0.attn.out_proj.weight",
    "vision_model.encoder.layers.0.self_attn.out_proj.weight",
}


def noise(width: int, height: int, seed: int) -> bytes:
    """A picture of noise, as PNG bytes."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# As large as the tower's input, wide and high: in any resolution they have 2, 3 and 3 crops.
IMAGES = (noise(32, 32, 0), noise(90, 30, 1), noise(30, 90, 2))
ASKED = Questions(("Who is this?", "Name it.", "a b c d"), tuple((image,) for image in IMAGES))


@pytest.fixture(scope="module", params=tiny_towers.BUILDERS)
def made(request, tmp_path_factory):
    return tiny_towers.BUILDERS[request.param](tmp_path_factory.mktemp("tower") / "model")


@pytest.fixture(scope="module")
def model(made):
    return load(made.folder, clip=made.clip)


@pytest.fixture
def plain(made):
    """(transformers' own model, its processor) of the folder."""
    found = AutoModelForImageTextToText.from_pretrained(made.folder, dtype=torch.float32).eval()
    return found, AutoProcessor.from_pretrained(made.folder)


def layer_of(model) -> str:
    return next(layer.name for layer in model.clip.layers("tensor") if layer.name in OUT_PROJ)


def edit_of(model, size: float = 1.0) -> Edit:
    shape = model.clip.weights[layer_of(model)].shape
    return Edit({layer_of(model): size * torch.randn(shape, generator=torch.Generator().manual_seed(0))}, ())


def answers_of(plain, questions: Questions) -> torch.Tensor:
    """Greedy answers of transformers' own model to one question after the other."""
    network, processor = plain
    end, rows = processor.tokenizer.eos_token_id, []
    for text, (image,) in zip(questions.texts, questions.images, strict=True):
        ready = processor(
            text=[f"USER: <image>\n{text} ASSISTANT:"],
            images=[Image.open(io.BytesIO(image))],
            return_tensors="pt",
        )
        out = network.generate(**ready, max_new_tokens=6, do_sample=False, pad_token_id=end, eos_token_id=end)
        row = out[0, ready["input_ids"].shape[1] :]
        rows.append(torch.cat([row, row.new_full((6 - len(row),), end)]))
    return torch.stack(rows)


def test_all_that_are_named_are_tested() -> None:
    """LLaVA-1.5 is what the other tests of this folder load."""
    assert {"llava", *(name.split()[0] for name in tiny_towers.BUILDERS)} == set(ARCHITECTURES)


def test_answers_are_those_of_plain_transformers_before_and_after_an_edit(model, plain) -> None:
    before = answered(model, ASKED)
    assert torch.equal(before, answers_of(plain, ASKED))
    after = answered(model.edited(edit_of(model)), ASKED)
    assert not torch.equal(before, after)
    ending = "encoder.layers.0.self_attn.out_proj.weight"
    (home,) = (p for name, p in plain[0].named_parameters() if name.endswith(ending))
    with torch.no_grad():
        home += edit_of(model).deltas[layer_of(model)]
    assert torch.equal(after, answers_of(plain, ASKED))


def test_the_gradient_of_an_answer_is_that_of_transformers_own_loss(model, plain) -> None:
    """A wide image and a small one: the loss of each is transformers' mean over the tokens of its answer."""
    pairs = Pairs(("a", "b"), IMAGES[:2], ("Ada Fox", "Bo Hill"))
    dialogues = Dialogues(pairs, ("Who is this?", "Name it."))
    found = answer_gradient_sum(model, dialogues, loss="log_probability", batch_size=2, seed=0, run=Run())
    network, processor = plain
    for question, image, answer in zip(dialogues.questions, pairs.images, pairs.captions, strict=True):
        texts = [f"USER: <image>\n{question} ASSISTANT:", f"USER: <image>\n{question} ASSISTANT: {answer}"]
        texts[1] += processor.tokenizer.eos_token
        asked, ready = (
            processor(text=[text], images=[Image.open(io.BytesIO(image))], return_tensors="pt")
            for text in texts
        )
        labels = ready["input_ids"].clone()
        labels[:, : asked["input_ids"].shape[1]] = -100
        network(**ready, labels=labels).loss.backward()
    ending = "encoder.layers.0.self_attn.out_proj.weight"
    (home,) = (p for name, p in network.named_parameters() if name.endswith(ending))
    own = found["sum"][layer_of(model)]
    assert found["n"] == 2
    assert own.abs().max() > 0
    torch.testing.assert_close(own, home.grad, rtol=1e-3, atol=1e-4 * own.abs().max().item())


def test_a_search_edits_a_layer_that_is_read_and_its_patch_reaches_the_folder(
    made, model, tmp_path, capsys
) -> None:
    """Names are what the model answers anyway, so that there is something to forget."""
    task = tiny.task()
    asked = questions(task, task.probe, wordings=tiny_vlm.WORDINGS)
    said: dict[str, list[str]] = {}
    for one, answer in zip(asked, QuestionAnswering(model, Run()).ask(asked), strict=True):
        said.setdefault(one.accepted[0], []).append(answer)
    source = part("gradient_source=answer", wordings=tiny_vlm.WORDINGS)
    gradients = source(model, task, task.names[0], RECIPE, Run())
    search = part(
        "layer_search=answering", wordings=tiny_vlm.WORDINGS, aliases=said, start="ratio", forget_at_most=0.9,
        retain_pictures=9, max_evals=3, candidates=2, lost_at_most=0.9, rule="paper",
    )  # fmt: skip
    search.check(model, task)
    found = search(model, gradients, task, task.names[0], run=Run())
    read = {layer.name for layer in model.clip.layers("tensor")}
    assert {row.candidate.layers[TOWER] for row in found.trace} <= read
    assert found.chosen is not None
    edit = edit_of(model)
    write_patch(tmp_path / "patch", edit, model.patch_base(edit))
    for command, on, out in (("apply", made.folder, "edited"), ("remove", tmp_path / "edited", "back")):
        assert main([command, str(tmp_path / "patch"), str(on), "--out", str(tmp_path / out)]) == 0
    edited = AutoModelForImageTextToText.from_pretrained(tmp_path / "edited", dtype=torch.float32).eval()
    both = (edited, AutoProcessor.from_pretrained(tmp_path / "edited"))
    assert torch.equal(answers_of(both, ASKED), answered(model.edited(edit), ASKED))
    for path in made.folder.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


REFUSED = (
    "Idefics", "Idefics2", "Idefics3", "SmolVLM", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "InternVL", "Mllama", "Mistral3",
    "PaliGemma", "Gemma3", "AyaVision", "DeepseekVL", "VideoLlava", "Blip2", "Kosmos2", "Llama4", "Florence2", "Fuyu",
)  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_architecture_is_refused_with_what_it_is(name, tmp_path) -> None:
    """Before any weight is read: there is none in the folder."""
    config = getattr(transformers, f"{name}Config")()
    config.save_pretrained(tmp_path)
    for file in ("model.safetensors", "processor_config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"model\.path=.*: a {config.model_type}") as refused:
        load(tmp_path)
    said = str(refused.value)
    assert "LLaVA-1.5 (llava), LLaVA-NeXT (llava_next)" in said
    tower = getattr(getattr(config, "vision_config", None), "model_type", "none")
    assert f"of kind {tower}; want" in said
    assert ("was not tested" if tower in TOWERS else "no text tower of its own") in said


def trained_on(made, folder, by: float):
    """The folder with its tower's weights moved by `by` times their norm."""
    for path in made.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, weight in weights.items():
        if "vision_tower." in name:
            away = torch.randn(weight.shape, generator=generator)
            weights[name] = weight + by * away * weight.norm() / away.norm()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("made", ["llava_next", "llava_onevision"], indirect=True)
def test_a_tower_that_was_trained_on_is_edited_as_it_is(made, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    folder = trained_on(made, tmp_path / "model", 0.02)
    with pytest.raises(ValueError, match=r"is not the vision tower of .* take model\.tuned_tower=true"):
        load(folder, clip=made.clip)
    model = load(folder, clip=made.clip, tuned_tower=True)
    name = layer_of(model)
    weights = load_file(folder / "model.safetensors")
    (own,) = (w for key, w in weights.items() if key.endswith("encoder.layers.0.self_attn.out_proj.weight"))
    assert torch.equal(model.clip.weights[name], own)
    assert not torch.equal(model.clip.weights[name], made.clip().weights[name])
    gradients = part("gradient_source=clip")(model, tiny.task(), tiny.NAMES[0], RECIPE, Run())
    assert gradients[TOWER].forget[name].abs().max() > 0
    edit = edit_of(model, 0.01)
    write_patch(tmp_path / "patch", edit, model.patch_base(edit))
    assert main(["apply", str(tmp_path / "patch"), str(folder), "--out", str(tmp_path / "edited")]) == 0
    edited = load(tmp_path / "edited", clip=made.clip, tuned_tower=True)
    assert torch.equal(answered(edited, ASKED), answered(model.edited(edit), ASKED))


@pytest.mark.parametrize("made", ["llava_next"], indirect=True)
def test_a_tower_far_from_the_clip_was_not_trained_on_from_it(made, tmp_path) -> None:
    folder = trained_on(made, tmp_path, 1.0)
    with pytest.raises(ValueError, match=r"model\.tuned_tower: .* by 1\.00 of its norm, want at most 0\.5"):
        load(folder, clip=made.clip, tuned_tower=True)
