import pytest
import tiny

from muwa.data.shards import write_shard
from muwa.data.tasks import Dataset, celeba, curate_only, objects, templates

PEOPLE = tiny.NAMES[:4]
THINGS = ("red_star", "blue_ring", "green_box")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four people x 6 pictures, three things x 8, two shards with each person twice and a thing between."""
    root = tmp_path_factory.mktemp("world")
    (root / "celeba" / "img_align_celeba").mkdir(parents=True)
    rows = [f"{100 * p + i:06d}.jpg {name.replace(' ', '_')}" for p, name in enumerate(PEOPLE) for i in range(6)]
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
    own = dict(shards=f"{root}/{{00000..00001}}.tar", retain=f"{root}/00001.tar", curated=str(out), celeba=f"{root}/celeba",
               images=f"{root}/objects", utility=0.5, utility_probe=0.25)  # fmt: skip
    return Dataset(**{**own, **changed})


def test_every_set_has_the_size_worked_by_hand(world, tmp_path):
    task = celeba(dataset(world, tmp_path), identity="ada_fox", limits={"probe_share": 0.5, "probe_retain": 2})
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


@pytest.mark.parametrize("kind", ["celeba", "objects"])
def test_no_picture_is_in_two_sets(world, tmp_path, kind):
    data = dataset(world, tmp_path)
    task = celeba(data, identity=PEOPLE[0]) if kind == "celeba" else objects(data, object=THINGS[0])
    splits = [getattr(split, part) for split in (task.probe, task.eval) for part in ("forget", "retain", "utility")]
    judged = [path.read_bytes() for pictures in splits for path in pictures.images]
    assert len(judged) == len(set(judged)) > 20
    gradients = {*task.retain.images, *(image for pairs in task.forget.values() for image in pairs.images)}
    assert not gradients & set(judged)


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


def test_several_people_at_once(world, tmp_path):
    task = celeba(dataset(world, tmp_path), identity=["Ada_Fox", "Cy_Reed", "Ada_Fox"])
    assert task.names == ("Ada Fox", "Cy Reed")
    assert task.mentions == (0, 2, 4, 6)
    assert set(task.eval.retain.labels) == {1, 3}
    own = task.only("Cy Reed")
    assert own.names == ("Cy Reed",)
    assert set(own.probe.forget.labels) == {2}
    assert own.probe.retain == task.probe.retain


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
    curate_only(dataset(world, tmp_path), ["Ada_Fox"], {}, None, progress=False)
    data = dataset(world, tmp_path / "unused", forget=str(tmp_path), shards="nowhere/{0..9}.tar")
    assert len(celeba(data, identity="Ada Fox").forget["Ada Fox"]) == 4
    with pytest.raises(FileNotFoundError, match="not a finished forget set"):
        celeba(data, identity="Bo Hill")


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
    with pytest.raises(ValueError, match="no name to forget was given"):
        celeba(data, identity=[])
    with pytest.raises(FileNotFoundError, match="Expected layout"):
        celeba(dataset(world, tmp_path, celeba="nowhere"), identity="Ada_Fox")


def test_an_empty_forget_set_is_an_error(world, tmp_path):
    with pytest.raises(ValueError, match="Ada Fox: no caption has it; 0 captions"):
        write_shard(tmp_path / "empty.tar", [])
        celeba(dataset(world, tmp_path, shards=str(tmp_path / "empty.tar")), identity="Ada_Fox")
    write_shard(tmp_path / "others.tar", [("1", tiny.png(1), "somebody else", {})])
    with pytest.raises(ValueError, match="Ada Fox: no caption has it; 1 captions of 1 shards"):
        celeba(dataset(world, tmp_path, shards=str(tmp_path / "others.tar")), identity="Ada_Fox")


def test_one_picture_is_too_few_to_judge_on(world, tmp_path):
    (tmp_path / "who.txt").write_text("000000.jpg Ada_Fox\n000100.jpg Bo_Hill\n000101.jpg Bo_Hill\n")
    with pytest.raises(ValueError, match="Ada Fox: 1 pictures to judge on; at least 2 are needed"):
        celeba(dataset(world, tmp_path, identities=str(tmp_path / "who.txt")), identity="Ada_Fox")


def test_templates():
    assert len(templates("simple")) == 7
    assert len(templates("openai")) == 80
    assert all(template.count("{}") == 1 for template in (*templates("simple"), *templates("openai")))
    assert templates("look, {}!") == ("look, {}!",)
    with pytest.raises(ValueError, match="templates: got 'best', want simple, openai, or a prompt"):
        templates("best")
