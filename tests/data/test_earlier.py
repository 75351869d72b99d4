from dataclasses import replace

import pytest
import tiny

from muwa.data.earlier import joined, known, set_apart
from muwa.types.data import PROMPTS, Classes, LabelledImages, PromptRow, Split

ADA, BO, CY = tiny.NAMES[:3]


def names_of(images):
    return [images.classes.names[label] for label in images.labels]


def test_an_earlier_name_leaves_every_set_and_is_kept_apart():
    task = set_apart(tiny.task(), ["bo_hill"], (1, 9))
    assert task.earlier == ("bo_hill",)
    assert task.mentions == (0, 1, 8, 9)  # pairs 1 and 9 show Bo Hill
    for split, before in ((task.probe, tiny.task().probe), (task.eval, tiny.task().eval)):
        assert BO not in names_of(split.retain) + names_of(split.utility)
        assert [names_of(one) for one in split.earlier] == [
            [BO, BO]
        ]  # one of the retain, one of the utility set
        assert split.earlier_names == [BO]
        assert len(split.forget) == len(before.forget)
        assert len(split.retain) == len(before.retain) - 1
    assert len(task.retain_pairs()) == len(tiny.pairs()) - 4


def test_without_earlier_names_the_task_is_as_it_was():
    assert set_apart(tiny.task(), [], ()) is not None
    assert set_apart(tiny.task(), [], ()).fingerprint == tiny.task().fingerprint
    again = set_apart(tiny.task(), [ADA.upper()], (0, 8))  # it is to be forgotten again
    assert again.earlier == ()
    assert again.fingerprint == tiny.task().fingerprint


def test_what_was_forgotten_before_changes_the_fingerprint():
    one, two = set_apart(tiny.task(), [BO], (1, 9)), set_apart(tiny.task(), [CY], (2, 10))
    nobody = set_apart(tiny.task(), ["Nobody"], ())
    assert len({task.fingerprint for task in (tiny.task(), one, two, nobody)}) == 4
    assert nobody.probe.earlier == ()
    assert nobody.probe.fingerprint == tiny.task().probe.fingerprint


def test_names_of_another_kind_are_a_set_of_their_own():
    other = Classes(("red star", "blue ring"), ("{}.",))
    things = LabelledImages(("a", "b"), (tiny.png(1), tiny.png(2)), (0, 1), other)
    split = replace(tiny.split(), utility=things)
    task = set_apart(replace(tiny.task(), probe=split, eval=split), ["Red Star", BO], (1, 9))
    assert [one.classes for one in task.eval.earlier] == [tiny.split().retain.classes, other]
    assert names_of(task.eval.utility) == ["blue ring"]
    assert task.eval.earlier_names == [BO, "red star"]


def test_it_stays_with_the_task_of_one_name():
    task = set_apart(tiny.task_of([ADA, CY]), [BO], (1, 9))
    assert task.only(CY).earlier == (BO,)
    assert task.only(CY).probe.earlier_names == [BO]


def test_prompts_about_an_earlier_name_are_not_kept():
    rows = (
        PromptRow("Ada Fox", (ADA,), "forget"),
        PromptRow("Bo Hill smiles", (BO,), "retain"),
        PromptRow("a sea", (), "retain"),
    )
    nothing = LabelledImages((), (), (), Classes((ADA,), ("{}",)))
    split = Split(nothing, nothing, nothing, rows)
    task = set_apart(replace(tiny.task(), kind=PROMPTS, probe=split, eval=split), [BO], ())
    assert [row.role for row in task.eval.prompts] == ["forget", "earlier", "retain"]
    assert task.eval.earlier_names == [BO]


def test_known_names_are_spelt_as_the_data_spells_them():
    assert known(["bo_hill", "Nobody", "ADA FOX"], tiny.NAMES, [ADA]) == [BO]


def test_joined_sets_hold_all_images():
    both = joined(tiny.pictures([0, 1]), tiny.pictures([2], start=60))
    assert names_of(both) == [ADA, BO, CY]
    assert len(both.images) == len(both.keys) == 3


@pytest.mark.parametrize("kind", ["identity", "object", "style"])
def test_builders_have_all_probe_images_of_an_earlier_name(kind, miniature, composed):
    from muwa import config

    choice = {
        "identity": (
            "task=celeba",
            "task.identity=Kael_Lindqvar",
            ["Edda Everlane", "red star"],
            "Edda Everlane",
        ),
        "object": ("task=object", "task.object=red_star", ["blue ring", "Edda Everlane"], "blue ring"),
        "style": ("task=style", "task.concept=neon", ["sketch"], "sketch"),
    }[kind]
    task_name, setting, earlier, same = choice
    parts = config.build(
        composed(f"dataset.root={miniature}", task_name, setting, "task.limits.forget_pairs=2")
    )
    dataset = parts["dataset"]()
    plain, after = parts["task"](dataset), parts["task"].after(earlier, dataset)
    assert after.names == plain.names
    for split, before in ((after.probe, plain.probe), (after.eval, plain.eval)):
        mine = [name for one in split.earlier for name in names_of(one) if name == same]
        assert len(mine) == len(before.forget)  # as many as of the name to forget
        assert same not in names_of(split.retain)
    assert set(after.eval.earlier_names) == {*earlier}
    assert set(plain.mentions) <= set(after.mentions)
    forgetting = parts["task"].forgetting([same])
    assert getattr(forgetting, forgetting.names_setting) == [same]
    assert plain.kind in forgetting.kinds
