from dataclasses import replace

import pytest
import tiny
import torch
from records import part

from muwa.eval.clip.accuracy import Retain
from muwa.eval.clip.rewording import typo
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def rewording(**changed):
    return replace(part("eval=[rewording]")["rewording"], **changed)


def test_every_way_is_asked_of_the_target_and_of_others():
    found = rewording(others=3, descriptions={"Ada Fox": ["a red thing"]})(
        Features(tiny.clip(), Run()), tiny.task()
    )
    kinds = ["template", "sentence", "first", "last", "upper", "typo"]
    pairs = [name for kind in kinds for name in (f"reworded/{kind}", f"reworded/{kind}_others")]
    assert list(found) == [*pairs, "reworded/description"]
    assert {metric.n for name, metric in found.items() if "_others" in name} == {3}
    assert found["reworded/typo"].reading.better == "lower"
    assert found["reworded/typo_others"].reading.better == "higher"


def cosines(picture, texts):
    model = tiny.clip()
    return (model.encode("vision", tiny.pixels([picture])) @ model.encode("text", tiny.tokenize(texts)).T)[0]


def test_half_a_name_stands_beside_the_others_as_they_are():
    task = tiny.task()
    asked = [f"{name}." for name in tiny.NAMES]
    for word, place in (("first", 0), ("last", 1)):
        rates = []
        for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True):
            texts = [*asked]
            texts[label] = f"{tiny.NAMES[label].split()[place]}."
            rates.append(float(cosines(image, texts).argmax() == label))
        found = rewording(others=None)(Features(tiny.clip(), Run()), task)[f"reworded/{word}_others"]
        assert found.value == pytest.approx(sum(rates) / len(rates))


def test_a_template_is_that_of_all_names():
    task, prompts = tiny.task(), ("{} here", "i see {}")
    rates = [
        float(cosines(image, [prompt.format(name) for name in tiny.NAMES]).argmax() == label)
        for image, label in zip(task.eval.retain.images, task.eval.retain.labels, strict=True) for prompt in prompts
    ]  # fmt: skip
    found = rewording(templates=prompts, others=None)(Features(tiny.clip(), Run()), task)[
        "reworded/template_others"
    ]
    assert found.value == pytest.approx(sum(rates) / len(rates))
    assert found.n == 7


def test_capitals_change_nothing_where_the_tokenizer_folds_case():
    model = Features(tiny.clip(), Run())
    found = rewording(others=None)(model, tiny.task())["reworded/upper_others"]
    assert found.value == pytest.approx(Retain()(model, tiny.task())["retain/top1"].value)


@pytest.mark.parametrize("i", range(12))
def test_a_typo_is_one_letter_and_always_the_same(i):
    name = "Kael Lindqvar"
    found = typo(name, [0, i])
    assert found == typo(name, [0, i]) != name
    one_less = {name[:k] + name[k + 1 :] for k in range(len(name))}
    one_more = {name[:k] + name[k] + name[k:] for k in range(len(name))}
    swapped = {name[:k] + name[k + 1] + name[k] + name[k + 2 :] for k in range(len(name) - 1)}
    assert found in one_less | one_more | swapped


def test_the_kinds_of_typos_all_occur():
    lengths = torch.tensor([len(typo("Kael Lindqvar", [0, i])) for i in range(30)])
    assert set(lengths.tolist()) == {12, 13, 14}
    assert typo("A", [0, 0]) != "A"


def test_settings_are_checked():
    model, task = tiny.clip(), tiny.task()
    with pytest.raises(ValueError, match="eval.rewording: got the prompt 'a photo', want {} in it"):
        rewording(templates=("a photo",)).check(model, task)
    with pytest.raises(ValueError, match="eval.rewording.typos: got 0"):
        rewording(typos=0).check(model, task)
    with pytest.raises(ValueError, match="eval.rewording.descriptions: got 'Bo Hill', want some of Ada Fox"):
        rewording(descriptions={"Bo Hill": ["x"]}).check(model, task)
    with pytest.raises(ValueError, match="eval: got 0 images to look at"):
        rewording(others=0).check(model, task)
    rewording(descriptions={"Ada Fox": ["x"]}).check(model, task)
