import dataclasses
import re
import shutil
from functools import partial

import pytest
import tiny
from data import datasets

from muwa import config
from muwa.data.shards import write_shard
from muwa.data.splits import Limits
from muwa.data.tasks import templates

PEOPLE = tiny.NAMES[:4]
THINGS = ("red_star", "blue_ring", "green_box")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four people x 6 images, three things x 8, two shards with each person twice and a thing between."""
    root = tmp_path_factory.mktemp("world")
    (root / "celeba" / "img_align_celeba").mkdir(parents=True)
    rows = [
        f"{100 * p + i:06d}.jpg {name.replace(' ', '_')}" for p, name in enumerate(PEOPLE) for i in range(6)
    ]
    for row in rows:
        (root / "celeba" / "img_align_celeba" / row.split()[0]).write_bytes(tiny.png(int(row[:6])))
    (root / "celeba" / "list_identity_celeba.txt").write_text("\n".join(rows))
    for t, thing in enumerate(THINGS):
        (root / "objects" / thing).mkdir(parents=True)
        for i in range(8):
            (root / "objects" / thing / f"{i}.png").write_bytes(tiny.png(1000 + 100 * t + i))
    captions = [f"{name} again" for name in PEOPLE] * 2 + ["a red star"] * 2
    for s in range(2):
        samples = [(f"{s}{i}", tiny.png(5000 + 100 * s + i), text, {}) for i, text in enumerate(captions)]
        write_shard(root / f"{s:05d}.tar", samples)
    return root


def dataset(root, out, **changed):
    places = dict(
        shards=f"{root}/{{00000..00001}}.tar",
        retain=f"{root}/00001.tar",
        curated=str(out),
        celeba=f"{root}/celeba",
        images=f"{root}/objects",
    )
    return datasets.dataset(**{**places, "utility": 0.5, "utility_probe": 0.25, **changed})


def celeba(data, **settings):
    return datasets.builder("celeba", **settings)(data)


def objects(data, **settings):
    return datasets.builder("object", **settings)(data)


def curate(data, identity, **settings):
    return datasets.builder("celeba", identity=identity, **settings).curate(data)


def test_every_set_has_the_size_worked_by_hand(world, tmp_path):
    task = celeba(
        dataset(world, tmp_path), identity="ada_fox", limits={"probe_share": 0.5, "probe_retain": 2}
    )
    assert task.names == ("Ada Fox",)
    assert len(task.forget["Ada Fox"]) == 4
    assert len(task.retain) == 10
    assert task.mentions == (0, 4)
    assert (len(task.probe.forget), len(task.eval.forget)) == (3, 3)
    assert (len(task.probe.retain), len(task.eval.retain)) == (3 * 2, 3 * 3)
    assert (len(task.probe.utility), len(task.eval.utility)) == (6, 12)
    assert task.eval.forget.classes.names == PEOPLE
    assert set(task.eval.forget.labels) == {0}
    assert set(task.eval.retain.labels) == {1, 2, 3}
    assert task.eval.utility.classes.names == ("blue ring", "green box", "red star")
    assert len(task.eval.utility.classes.templates) == 7


def test_the_sets_of_an_object_have_the_size_worked_by_hand(world, tmp_path):
    limits = {"forget_pairs": 3, "retain_pairs": 9, "probe_share": 0.25, "probe_retain": 1, "eval_retain": 5}
    task = objects(
        dataset(world, tmp_path, utility_probe=1 / 6),
        object="blue ring",
        aliases={"blue ring": ["star"]},
        limits=limits,
    )
    assert len(task.forget["blue ring"]) == 3  # of 4
    assert len(task.retain) == 9
    assert task.mentions == (8,)  # the other star is the tenth pair
    assert (len(task.probe.forget), len(task.eval.forget)) == (2, 6)
    assert (len(task.probe.retain), len(task.eval.retain)) == (2 * 1, 2 * 5)
    assert (len(task.probe.utility), len(task.eval.utility)) == (4, 12)  # of 4 x 6 faces
    assert set(task.eval.forget.labels) == {0}
    assert set(task.probe.retain.labels) == {1, 2}


def test_several_objects_at_once(world, tmp_path):
    aliases = {"blue_ring": ["Bo Hill"], "Green Box": ["Cy Reed"]}
    task = objects(dataset(world, tmp_path), object=["blue_ring", "Green_Box"], aliases=aliases)
    assert task.names == ("blue ring", "green box")
    assert task.mentions == (1, 2, 5, 6)
    assert set(task.eval.retain.labels) == {2}


@pytest.mark.parametrize("kind", ["celeba", "objects"])
def test_shares_that_make_one_use_every_image_of_the_utility_set(world, tmp_path, kind):
    data = dataset(world, tmp_path, utility=0.75, utility_probe=0.5)
    task = celeba(data, identity=PEOPLE[0]) if kind == "celeba" else objects(data, object=THINGS[0])
    assert (len(task.probe.utility), len(task.eval.utility)) == (
        10,
        14,
    )  # 24 in the ratio of 0.5 to 0.75, rounded


def test_mentions_are_the_retain_pairs_whose_caption_names_the_forgotten(world, tmp_path):
    task = celeba(dataset(world, tmp_path), identity="Bo Hill", aliases={"bo_hill": ["red star"]})
    assert [task.retain.captions[i] for i in task.mentions] == ["Bo Hill again"] * 2 + ["a red star"] * 2
    assert not any("Bo" in task.retain.captions[i] for i in range(10) if i not in task.mentions)
    assert len(task.forget["Bo Hill"]) == 8


@pytest.mark.parametrize("kind", ["celeba", "objects"])
def test_no_image_is_in_two_sets(world, tmp_path, kind):
    data = dataset(world, tmp_path)
    task = celeba(data, identity=PEOPLE[0]) if kind == "celeba" else objects(data, object=THINGS[0])
    splits = [
        getattr(split, part) for split in (task.probe, task.eval) for part in ("forget", "retain", "utility")
    ]
    measured = [path.read_bytes() for images in splits for path in images.images]
    assert len(measured) == len(set(measured)) > 20
    gradients = {*task.retain.images, *(image for pairs in task.forget.values() for image in pairs.images)}
    assert not gradients & set(measured)


def test_limits_cut_what_they_name(world, tmp_path):
    limits = {"forget_pairs": 3, "retain_pairs": 5, "probe_share": 0.34, "probe_retain": 1, "eval_retain": 2}
    task = celeba(dataset(world, tmp_path), identity="Ada Fox", limits=limits)
    assert (len(task.forget["Ada Fox"]), len(task.retain)) == (3, 5)
    assert (len(task.probe.forget), len(task.eval.forget)) == (2, 4)
    assert (len(task.probe.retain), len(task.eval.retain)) == (3, 6)


def test_the_seed_decides_the_split_and_nothing_else(world, tmp_path):
    one, same, other = (celeba(dataset(world, tmp_path), identity="Ada Fox", seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.retain == other.retain
    assert {*one.probe.forget.images, *one.eval.forget.images} == {
        *other.probe.forget.images,
        *other.eval.forget.images,
    }


def test_a_limit_given_on_the_command_line_changes_that_one_alone():
    limits = config.part("task=object", "task.limits.forget_pairs=3").limits
    assert limits == Limits(3, None, 0.5, 1, None)


def test_several_people_at_once(world, tmp_path):
    task = celeba(dataset(world, tmp_path), identity=["Ada_Fox", "Cy_Reed", "Ada_Fox"])
    assert task.names == ("Ada Fox", "Cy Reed")
    assert task.mentions == (0, 2, 4, 6)
    assert set(task.eval.retain.labels) == {1, 3}
    own = task.only("Cy Reed")
    assert own.names == ("Cy Reed",)
    assert set(own.probe.forget.labels) == {2}
    assert own.probe.retain == task.probe.retain


@pytest.mark.parametrize("kind", ["celeba", "objects"])
def test_the_seed_decides_which_images_are_the_utility_set_and_how_they_are_divided(world, tmp_path, kind):
    def made(seed, **shares):
        data = dataset(world, tmp_path, **shares)
        one = {"identity": PEOPLE[0]} if kind == "celeba" else {"object": THINGS[0]}
        return (celeba if kind == "celeba" else objects)(data, **one, seed=seed)

    def taken(task):
        return {*task.probe.utility.images, *task.eval.utility.images}

    one, same, other = (made(seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.probe.forget.images != other.probe.forget.images
    assert taken(one) != taken(other)
    one, other = (made(seed, utility=0.5, utility_probe=0.5) for seed in (0, 1))
    assert taken(one) == taken(other)
    assert one.probe.utility.images != other.probe.utility.images


@pytest.mark.parametrize("typed", [["Ada_Fox", "ada fox"], ["Ada Fox", "Ada_Fox"]])
def test_a_person_typed_in_two_ways_is_one_person(world, tmp_path, typed):
    task = celeba(dataset(world, tmp_path), identity=typed)
    assert task.names == ("Ada Fox",)
    assert len(task.probe.forget) == 3


def test_curating_a_name_typed_in_two_ways_curates_it_once(world, tmp_path):
    assert curate(dataset(world, tmp_path), ["Ada_Fox", "Ada Fox"]).counts == {"Ada Fox": 4}


def test_an_object_is_forgotten_among_objects_and_people_are_the_utility(world, tmp_path):
    task = objects(dataset(world, tmp_path), object="red_star")
    assert task.kind == "object"
    assert len(task.forget["red star"]) == 4
    assert task.mentions == (8, 9)
    assert (len(task.probe.forget), len(task.eval.forget)) == (4, 4)
    assert task.eval.utility.classes.names == PEOPLE
    assert len(task.probe.utility) + len(task.eval.utility) == 18


def test_bare_captions_are_the_name_alone(world, tmp_path):
    task = celeba(dataset(world, tmp_path), identity="Ada Fox", bare_captions=True)
    assert set(task.forget["Ada Fox"].captions) == {"Ada Fox"}


def test_a_curated_set_is_taken_without_scanning(world, tmp_path):
    curate(dataset(world, tmp_path), ["Ada_Fox"])
    data = dataset(world, tmp_path / "unused", forget=str(tmp_path), shards="nowhere/{0..9}.tar")
    assert len(celeba(data, identity="Ada Fox").forget["Ada Fox"]) == 4
    with pytest.raises(FileNotFoundError, match="not a finished forget set"):
        celeba(data, identity="Bo Hill")


def test_curating_alone_needs_the_shards_only(world, tmp_path):
    data = dataset(world, tmp_path, celeba="nowhere", images="nowhere", retain="nowhere")
    found = curate(data, "Ada_Fox", aliases={"Ada Fox": ["a red star"]}, limits={"forget_pairs": 5})
    assert found.counts == {"Ada Fox": 5}
    assert found.folders == {"Ada Fox": tmp_path / "Ada_Fox"}
    assert sorted(path.name for path in (tmp_path / "Ada_Fox").iterdir()) == ["forget.tar", "manifest.json"]


def test_a_folder_for_forget_sets_that_cannot_be_made_is_named(world, tmp_path):
    (tmp_path / "file").touch()
    data = dataclasses.replace(dataset(world, tmp_path), curated=str(tmp_path / "file" / "sets"))
    wanted = rf"^dataset.curated={re.escape(data.curated)}: cannot be written \(Not a directory\); want a folder that can be$"
    for build in (
        datasets.builder("celeba", identity="Ada_Fox").preview,
        partial(curate, identity="Ada_Fox"),
    ):
        with pytest.raises(ValueError, match=wanted):
            build(data)


def test_a_curated_set_given_is_cut_to_the_limit(world, tmp_path):
    curate(dataset(world, tmp_path), "Ada_Fox")
    task = celeba(
        dataset(world, tmp_path, forget=str(tmp_path)), identity="Ada Fox", limits={"forget_pairs": 3}
    )
    assert task.forget["Ada Fox"].keys == ("00000-00", "00000-04", "00001-10")


def test_curating_an_object_needs_the_shards_only_too(world, tmp_path):
    data = dataset(world, tmp_path, celeba="nowhere", images="nowhere", retain="nowhere")
    found = datasets.builder("object", object=["Red Star", "red_star"]).curate(data)
    assert found.counts == {"red star": 4}


def test_the_prompts_are_those_asked_for(world, tmp_path):
    data = dataset(world, tmp_path)
    faces = celeba(data, identity="Ada Fox", template="the face of {}", utility_templates="openai")
    assert faces.probe.forget.classes.prompts()[0] == "the face of Ada Fox"
    assert len(faces.probe.utility.classes.templates) == 80
    things = objects(data, object="red star", template="my {}", utility_template="it is {}")
    assert things.eval.retain.classes.prompts() == ["my blue ring", "my green box", "my red star"]
    assert things.eval.utility.classes.prompts()[1] == "it is Bo Hill"
    assert len(objects(data, object="red star").probe.forget.classes.templates) == 7
    with pytest.raises(ValueError, match="templates: got 'best'"):
        celeba(data, identity="Ada Fox", utility_templates="best")


def test_a_task_says_how_its_images_are_generated(world, tmp_path):
    data = dataset(world, tmp_path)
    assert celeba(data, identity="Ada Fox").prompts == ("a photo of {}", "a photo of a {}")
    assert objects(data, object="red star").prompts == ("a photo of a {}", "a photo of {}")
    faces = celeba(data, identity="Ada Fox", prompt="{}, smiling", utility_prompt="one {}")
    assert faces.prompts == ("{}, smiling", "one {}")
    things = objects(data, object="red star", prompt="my {}", utility_prompt="it is {}")
    assert things.prompts == ("my {}", "it is {}")
    assert faces.fingerprint != celeba(data, identity="Ada Fox").fingerprint


def test_a_folder_that_is_missing_is_named(world, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="dataset.images=nowhere: no such folder; want one folder per class"
    ):
        celeba(dataset(world, tmp_path, images="nowhere"), identity="Ada_Fox")
    with pytest.raises(
        FileNotFoundError, match="dataset.celeba=nowhere: looked for .*there is no such folder"
    ):
        objects(dataset(world, tmp_path, celeba="nowhere"), object="red star")
    with pytest.raises(FileNotFoundError, match="nowhere.tar: 1 of 1 shards are missing"):
        celeba(dataset(world, tmp_path, retain="nowhere.tar"), identity="Ada_Fox")


@pytest.fixture
def own_world(world, tmp_path):
    """A copy of the world that a test may spoil."""
    return shutil.copytree(world, tmp_path / "world")


def test_a_broken_face_is_left_out_and_named_until_there_are_too_many(own_world, tmp_path):
    (own_world / "celeba" / "img_align_celeba" / "000002.jpg").write_bytes(b"")
    task = celeba(dataset(own_world, tmp_path, max_broken=0.34), identity="Ada Fox")
    assert len(task.probe.forget) + len(task.eval.forget) == 5
    assert [(one.where, one.why) for one in task.broken] == [("000002.jpg", "empty file")]
    with pytest.raises(
        ValueError, match=r"images of (probe|eval)_forget: 1 of 3 samples are broken \(33.3%\)"
    ):
        celeba(dataset(own_world, tmp_path, max_broken=0.33), identity="Ada Fox")


def test_a_broken_pair_of_the_retain_set_is_named_in_the_task(own_world, tmp_path):
    write_shard(own_world / "retain.tar", [("0", tiny.png(1), "one", {}), ("1", b"x", "two", {})])
    task = celeba(
        dataset(own_world, tmp_path, retain=f"{own_world}/retain.tar", max_broken=0.5), identity="Ada Fox"
    )
    assert len(task.retain) == 1
    assert [one.where for one in task.broken] == ["retain.tar:1"]


@pytest.mark.parametrize("kind", ["celeba", "objects"])
def test_a_listed_face_that_is_not_there_is_named_in_the_task(own_world, tmp_path, kind):
    (own_world / "celeba" / "img_align_celeba" / "000102.jpg").unlink()
    data = dataset(own_world, tmp_path, max_broken=0.5)
    task = celeba(data, identity=PEOPLE[0]) if kind == "celeba" else objects(data, object=THINGS[0])
    assert [one.where for one in task.broken] == ["000102.jpg"]


def test_a_broken_face_among_the_utility_of_an_object_is_left_out_and_named(own_world, tmp_path):
    for face in sorted((own_world / "celeba" / "img_align_celeba").iterdir())[::2]:
        face.write_bytes(b"")
    task = objects(
        dataset(own_world, tmp_path, utility=0.6, utility_probe=0.4, max_broken=0.5), object="red star"
    )
    assert len(task.probe.utility) + len(task.eval.utility) == 12
    assert len(task.broken) == 12


def test_the_images_of_two_classes_of_one_name_are_measured_once(own_world, tmp_path):
    for thing, wnid in zip(THINGS, ("n00000001", "n00000002", "n00000003"), strict=True):
        (own_world / "objects" / thing).rename(own_world / "objects" / wnid)
    (own_world / "objects" / "classnames.txt").write_text(
        "n00000001 star\nn00000002 crane\nn00000003 crane\n"
    )
    task = objects(
        dataset(own_world, tmp_path),
        object="star",
        aliases={"star": ["red star"]},
        limits={"probe_retain": None},
    )
    measured = [*task.probe.retain.images, *task.eval.retain.images]
    assert len(measured) == len(set(measured)) == 16


def test_wrong_requests_are_answered_before_anything_is_read(world, tmp_path):
    data = dataset(world, tmp_path, shards="nowhere/{0..9}.tar")
    with pytest.raises(
        ValueError, match="Unknown name 'Ada_Foks': not among the 4 names of .*celeba. Nearest: Ada_Fox"
    ):
        celeba(data, identity="Ada_Foks")
    with pytest.raises(
        ValueError, match="Unknown name 'red_stag': not among the 3 names of .*objects. Nearest: red_star"
    ):
        objects(data, object="red_stag")
    with pytest.raises(ValueError, match=r"task.identity: got \[\], want .* a list that is not empty"):
        celeba(data, identity=[])
    with pytest.raises(FileNotFoundError, match="Expected layout"):
        celeba(dataset(world, tmp_path, celeba="nowhere"), identity="Ada_Fox")


def test_an_empty_forget_set_is_an_error(world, tmp_path):
    with pytest.raises(ValueError, match="Ada Fox: no caption contains it. Searched 0 captions"):
        write_shard(tmp_path / "empty.tar", [])
        celeba(dataset(world, tmp_path, shards=str(tmp_path / "empty.tar")), identity="Ada_Fox")
    write_shard(tmp_path / "others.tar", [("1", tiny.png(1), "somebody else", {})])
    with pytest.raises(ValueError, match="Ada Fox: no caption contains it. Searched 1 captions in 1 shards"):
        celeba(dataset(world, tmp_path, shards=str(tmp_path / "others.tar")), identity="Ada_Fox")


def test_one_image_is_too_few_to_measure_on(world, tmp_path):
    (tmp_path / "who.txt").write_text("000000.jpg Ada_Fox\n000100.jpg Bo_Hill\n000101.jpg Bo_Hill\n")
    with pytest.raises(ValueError, match="Ada Fox: got 1 images to measure on, want at least 2"):
        celeba(dataset(world, tmp_path, identities=str(tmp_path / "who.txt")), identity="Ada_Fox")


def test_one_image_of_an_object_is_too_few_too(own_world, tmp_path):
    for i in range(1, 8):
        (own_world / "objects" / "red_star" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="red star: got 1 images to measure on, want at least 2"):
        objects(dataset(own_world, tmp_path), object="red_star")


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_with_two_images_there_is_one_for_the_search_and_one_for_the_report(world, tmp_path, share):
    (tmp_path / "who.txt").write_text("000000.jpg Ada_Fox\n000001.jpg Ada_Fox\n000100.jpg Bo_Hill\n")
    data = dataset(world, tmp_path, identities=str(tmp_path / "who.txt"))
    task = celeba(data, identity="Ada_Fox", limits={"probe_share": share})
    assert (len(task.probe.forget), len(task.eval.forget)) == (1, 1)
    assert (len(task.probe.retain), len(task.eval.retain)) == (0, 1)


def test_only_frequent_people_are_retained_but_all_are_labels(world, tmp_path):
    (tmp_path / "often.txt").write_text("Di_Moss\nAda_Fox\n")
    task = celeba(dataset(world, tmp_path, frequent=str(tmp_path / "often.txt")), identity="Ada_Fox")
    assert set(task.eval.retain.labels) == {3}
    assert task.eval.retain.classes.names == PEOPLE


def test_templates():
    assert len(templates("simple")) == 7
    assert len(templates("openai")) == 80
    assert all(template.count("{}") == 1 for template in (*templates("simple"), *templates("openai")))
    assert templates("look, {}!") == ("look, {}!",)
    with pytest.raises(ValueError, match="templates: got 'best', want simple, openai, or a prompt"):
        templates("best")


def test_people_of_a_numbered_identity_file_are_called_by_number_or_text(world, tmp_path, caplog):
    rows = [f"{100 * p + i:06d}.jpg {2880 + p}" for p in range(4) for i in range(6)]
    (tmp_path / "identity_CelebA.txt").write_text("\n".join(rows))
    data = dataset(world, tmp_path / "out", identities=str(tmp_path / "identity_CelebA.txt"))
    aliases = {2880: ["Ada Fox"]}  # a setting such as task.aliases.2880=[...] arrives as a number
    for identity in (2880, "2880", [2880]):
        task = celeba(data, identity=identity, aliases=aliases)
        assert task.names == ("2880",)
        assert len(task.forget["2880"]) == 4
    assert "has numbers in place of names, as CelebA is published" in caplog.text
    with pytest.raises(
        ValueError, match="among the 4 names of .*celeba, which are numbers .CelebA's authors"
    ):
        datasets.builder("celeba", identity="Ada_Fox").check(data)


def test_both_spellings_of_a_name_are_forgotten_together(world, tmp_path):
    rows = [row.split() for row in (world / "celeba" / "list_identity_celeba.txt").read_text().splitlines()]
    spelt = {"Ada_Fox": "Ad\u00e9_Fox", "Bo_Hill": "Ade\u0301_Fox"}  # composed and decomposed
    (tmp_path / "who.txt").write_text("\n".join(f"{image} {spelt.get(who, who)}" for image, who in rows))
    data = dataset(world, tmp_path / "out", identities=str(tmp_path / "who.txt"))
    task = celeba(data, identity="ade_fox", aliases={"Ade Fox": ["Ada Fox"]})
    assert task.names == ("Ad\u00e9 Fox",)
    assert len(task.probe.forget) + len(task.eval.forget) == 12
    kept = {task.eval.retain.classes.names[label] for label in task.eval.retain.labels}
    assert kept == {"Cy Reed", "Di Moss"}


def test_a_folder_of_validation_images_serves_as_utility_images(world, tmp_path):
    root = tmp_path / "val"
    root.mkdir()
    for i in range(1, 9):
        (root / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(tiny.png(i))
    data = dataset(world, tmp_path / "out", images=str(root))
    with pytest.raises(FileNotFoundError, match=r"dataset.images=.*val: 8 images and no class folder"):
        datasets.builder("celeba", identity="Ada_Fox").check(data)
    (root / "val.txt").write_text("\n".join(f"ILSVRC2012_val_{i:08d}.JPEG {i % 2}" for i in range(1, 9)))
    datasets.builder("celeba", identity="Ada_Fox").check(data)
    task = celeba(data, identity="Ada_Fox")
    assert task.eval.utility.classes.names == ("tench", "goldfish")
    assert len(task.probe.utility) + len(task.eval.utility) == 6


@pytest.mark.parametrize(("choice", "setting"), [
    ("celeba", "template"), ("celeba", "prompt"), ("object", "utility_template"), ("object", "utility_prompt"),
])  # fmt: skip
def test_a_prompt_without_a_place_for_the_name_is_refused(choice, setting):
    with pytest.raises(
        ValueError, match=rf"task.{setting}: got 'a person', want a text with {{}} in it for the name"
    ):
        config.part(f"task={choice}", **{setting: "a person"})
    record = dataclasses.replace(config.part(f"task={choice}"), **{setting: "a person"})
    with pytest.raises(ValueError, match=rf"task.{setting}: got 'a person', want {{}} in it for the name"):
        record.check(None)


@pytest.mark.parametrize(("setting", "value", "wanted"), [
    ("probe_share", 7, "less than 1"), ("probe_share", -0.5, "more than 0"), ("retain_pairs", -5, "at least 0"),
    ("retain_pairs", "abc", "a whole number"), ("forget_pairs", 1.5, "a whole number"), ("eval_retain", True, "a whole number"),
])  # fmt: skip
def test_limits_out_of_range_are_named(setting, value, wanted):
    with pytest.raises(ValueError, match=rf"task.limits.{setting}: got {value!r}, want {wanted}"):
        config.part("task=celeba", limits={setting: value})


@pytest.mark.parametrize("setting", ["max_broken", "max_empty", "utility", "utility_probe"])
@pytest.mark.parametrize("value", [-1, 2, "x"])
def test_shares_of_a_data_set_are_in_range(setting, value):
    with pytest.raises(ValueError, match=rf"dataset.{setting}: got {value!r}, want"):
        config.part("dataset=laion_celeba", **{setting: value})
