"""Rates over the prompts of a file, counted by hand on painted images."""

import dataclasses
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import painter
import pytest
import torch
from records import part

from muwa.eval.images.kept_prompts import KeptPrompts, judge_of
from muwa.eval.measure import check_measures
from muwa.fingerprint import digest
from muwa.library import load_clip
from muwa.models.diffusion.image_classifier import ImageClassifier, margins, recognised
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Pairs, PromptRow, Split, Task
from muwa.types.image_requests import ImageRequest


def forget(text, seed=None, *, about=("Ada Fox",), guidance=None):
    return PromptRow(text, about, "forget", seed, guidance)


def keep(text, *about, seed=None):
    return PromptRow(text, about, "retain", seed, None)


def task_of(*rows, names=("Ada Fox",)):
    concepts = dict.fromkeys([*names, *(one for row in rows for one in row.concepts)])
    nothing = LabelledImages((), (), (), Classes(tuple(concepts), ("{}",)))
    split, empty = Split(nothing, nothing, nothing, rows), Pairs((), (), ())
    return Task("prompts", names, dict.fromkeys(names, empty), empty, (), split, split, prompts=())


class Painter(painter.Painter):
    """The painter with a CLIP, and with a guidance that it notes."""

    sampling = SimpleNamespace(guidance=5.0)

    def __init__(self, swap=lambda text, seed: None):
        super().__init__(swap)
        self.clip, self.guided = load_clip("miniature"), []

    def sampled(self, *, guidance):
        self.guided.append(guidance)
        return self


class Matcher(KeptPrompts):
    """Kept prompts by the painter's colours in place of a CLIP, which cannot see them."""

    def logits(self, images, domain):
        if domain != "prompt":
            return super().logits(images, domain)
        seen = painter.Colours().logits(images, "class")
        places = [painter.CLASSES.index(label) for label in self.labels["prompt"]]
        return seen[:, places]


def measured(model, task, **changed):
    measure = replace(part("eval=[prompts]")["prompts"], classifier=painter.Colours(), **changed)
    judge = judge_of(measure.classifier, model, task)
    if "prompt" in judge.labels:
        measure = replace(measure, classifier=Matcher(painter.Colours(), model.clip, judge._texts))
    measure.check(model, task)
    return measure(ImageGenerator(model, Run()), task)


ROWS = (
    forget("Ada Fox at sea", 7),
    forget("Ada Fox", 8),
    forget("a fox in disguise", about=("Ada Fox",)),
    keep("a star", "star", seed=1),
    keep("heart", "heart", "shape"),
    keep("Bo Hill smiles", "Bo Hill"),
)


def test_rates_are_counted_by_hand():
    """ "a fox in disguise" is painted in no colour of a name; the heart is painted as a ring."""
    model = Painter(lambda text, seed: "ring" if text == "heart" else None)
    found = measured(model, task_of(*ROWS))
    assert {name: (metric.value, metric.n) for name, metric in found.items()} == {
        "forget/detected": (pytest.approx(2 / 3), 3),
        "retain/matched": (pytest.approx(2 / 3), 3),
        "retain/detected": (pytest.approx(2 / 3), 3),
        "retain/target_detected": (0.0, 3),
    }
    assert sorted(model.asked) == [
        ("Ada Fox", 8),
        ("Ada Fox at sea", 7),
        ("Bo Hill smiles", 1000),
        ("a fox in disguise", 1000),
        ("a star", 1),
        ("heart", 1000),
    ]
    samples = found["forget/detected"].samples
    assert [(one.prompt, one.seed, one.hit) for one in samples] == [
        ("Ada Fox at sea", 7, True),
        ("Ada Fox", 8, True),
        ("a fox in disguise", 1000, False),
    ]
    # the score is the lead of a colour over the next: 40 for its own; -(250 - 0) + (250 - 200) for none
    assert [one.score for one in samples] == [40, 40, -200]
    assert [one.concept for one in found["retain/matched"].samples] == ["star", "heart", "Bo Hill"]
    assert found["forget/detected"].reading.role == "forgotten"
    assert found["forget/detected"].still_recognised == pytest.approx(2 / 3)


def test_several_names_have_a_rate_each_and_several_seeds_count_up():
    rows = (forget("Ada Fox"), forget("Bo Hill", 5, about=("Bo Hill",)), keep("star", "star"))
    found = measured(
        Painter(lambda text, seed: "ring" if seed == 6 else None),
        task_of(*rows, names=("Ada Fox", "Bo Hill")),
        seeds=2,
    )
    assert (found["forget/detected"].value, found["forget/detected"].n) == (0.75, 4)
    assert found["detected/Ada_Fox"].value == 1.0
    assert found["detected/Bo_Hill"].value == 0.5
    assert [one.seed for one in found["detected/Bo_Hill"].samples] == [5, 6]


def test_each_guidance_is_generated_with_and_order_is_kept():
    rows = [forget(f"Ada Fox {i}", i, guidance=g) for i, g in enumerate((3.0, None, 3.0, 7.5))]
    model = Painter(lambda text, seed: "ring" if seed == 1 else None)
    found = measured(model, task_of(*rows, keep("star", "star")))
    assert [one.hit for one in found["forget/detected"].samples] == [True, False, True, True]
    assert sorted(model.guided) == [3.0, 7.5]


class Detector(ImageClassifier):
    """Detects both people in a red image, and nobody in others."""

    labels = MappingProxyType({"class": ("Ada Fox", "Bo Hill")})
    detects = frozenset({"class"})

    def logits(self, images, domain):
        red = images[:, 0, 0, 0].float()
        return torch.stack([red - 100, red - 50], 1)

    @property
    def fingerprint(self):
        return digest(["red"])


def test_a_detector_decides_on_each_concept_alone():
    images = torch.tensor([200, 70, 0], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    for name, hits, scores in (
        ("Ada Fox", [1, 0, 0], [100, -30, -100]),
        ("Bo Hill", [1, 1, 0], [150, 20, -50]),
    ):
        asked = [ImageRequest("p", i, "class", name, "forget") for i in range(3)]
        assert recognised(images, asked, Detector()) == [bool(hit) for hit in hits]
        assert recognised(images, asked, Detector(), k=5) == [bool(hit) for hit in hits]
        assert margins(images, asked, Detector()) == scores


def test_kept_prompts_are_told_apart_by_the_unedited_clip_in_one_label_per_name():
    rows = (forget("Ada Fox"), keep("a star", "star"), keep("one star", "star"), keep("a calm sea", "view"))
    model, task = Painter(), task_of(*rows)
    judge = judge_of(painter.Colours(), model, task)
    assert judge.labels["prompt"] == ("star", "a calm sea")
    assert judge_of(judge, model, task) is judge
    images = torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    from muwa.eval.images.clips import embed

    clip = model.clip
    texts = torch.nn.functional.normalize(
        clip.encode("text", clip.tokenize(["a star", "one star", "a calm sea"])), dim=-1
    ).detach()
    cosines = embed(clip, images) @ texts.T
    wanted = torch.stack([cosines[:, :2].max(1).values, cosines[:, 2]], 1)
    assert torch.allclose(judge.logits(images, "prompt"), wanted, atol=1e-5)
    other = judge_of(painter.Colours(), model, task_of(*rows[:3]))
    assert len({judge.fingerprint, other.fingerprint, painter.Colours().fingerprint}) == 3
    assert judge_of(painter.Colours(), model, task_of(rows[0])).labels == painter.Colours.labels


def test_what_does_not_fit_is_refused():
    measure = replace(part("eval=[prompts]")["prompts"], classifier=painter.Colours())
    with pytest.raises(ValueError, match="eval.prompts: got a task of kind 'identity', want task=prompts"):
        measure.check(Painter(), painter.identity())
    with pytest.raises(ValueError, match="eval.prompts.seeds: got 0, want at least 1"):
        replace(measure, seeds=0).check(Painter(), task_of(*ROWS))
    unknown = task_of(forget("x", about=("nudity",)), names=("nudity",))
    with pytest.raises(ValueError, match="no label for the class 'nudity'"):
        measure.check(Painter(), unknown)


@pytest.mark.parametrize("name", ["canvas", "reworded", "soft_prompt", "clip_score"])
def test_a_measure_that_reads_no_prompts_is_refused(name):
    every = {**part("eval=[canvas,quality]"), **part("eval=[attacks]")}
    model = SimpleNamespace(observer=ImageGenerator, source="the painter")
    with pytest.raises(ValueError, match=f"eval.{name}: task=prompts has no images .*~eval.{name}"):
        check_measures(model, task_of(*ROWS), {name: every[name]})


def test_dataclasses_of_prompts_are_fingerprinted_with_guidance():
    one = task_of(*ROWS)
    other = dataclasses.replace(ROWS[0], guidance=3.0)
    assert task_of(other, *ROWS[1:]).fingerprint != one.fingerprint
