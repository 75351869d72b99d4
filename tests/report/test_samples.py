"""ImageEvaluator before and after, side by side."""

import dataclasses

import tiny
import tiny_sd
import torch
from eval.images.test_requests import styles

from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.report.samples import SEED, gallery, sheet
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts


def edited():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(128, 128, generator=generator) / 4
    return tiny_sd.diffusion().edited(Edit({"transformer.resblocks.1.attn.out_proj.weight": delta}, ()))


def test_the_same_prompts_and_seeds_by_both_models() -> None:
    before, after = tiny_sd.diffusion(), edited()
    shown = gallery(ImageGenerator(before), ImageGenerator(after), tiny.task(), each=2)
    assert [one.ask.role for one in shown] == ["forget"] * 2 + ["retain"] * 2 + ["cross"] * 2
    assert [one.ask.seed for one in shown[:2]] == [SEED, SEED + 1]
    for one in shown:
        prompt = Prompts((one.ask.text,), (one.ask.seed,))
        for shown_one, model in ((one.before, before), (one.after, after)):  # alone in its batch: but for rounding
            assert (shown_one.int() - model.draw(prompt)[0].int()).abs().max() <= 1


def test_a_styles_pictures_are_shown_once() -> None:
    shown = gallery(ImageGenerator(tiny_sd.diffusion()), ImageGenerator(edited()), styles(), each=3)
    assert {one.ask.role for one in shown} == {"forget", "retain"}
    assert all(one.ask.domain == "style" for one in shown)


def test_pictures_of_the_forgotten_are_not_shown_unless_asked() -> None:
    shown = gallery(ImageGenerator(tiny_sd.diffusion()), ImageGenerator(edited()), tiny.task(), each=2)

    def images(show: bool) -> list[torch.Tensor]:
        return [torch.tensor(axis.images[0].get_array()) for axis in sheet(shown, show_forget=show).axes if axis.images]

    secret = [one.before.permute(1, 2, 0) for one in shown if one.ask.role == "forget"]
    assert any(torch.equal(image, secret[0]) for image in images(True))
    assert not any(torch.equal(image, one) for image in images(False) for one in secret)
    kept = [one.after.permute(1, 2, 0) for one in shown if one.ask.role == "retain"]
    assert any(torch.equal(image, kept[0]) for image in images(False))
    alone = dataclasses.replace(shown[0])
    assert len([axis for axis in sheet((alone,), show_forget=False).axes if axis.images]) == 2
