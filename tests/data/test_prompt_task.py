"""The task that forgets what the prompts of a file bring up."""

from pathlib import Path

import pytest
from data import datasets

from muwa.data.prompts import (
    image_requests,
    prompts_with,
    replaced_prompts,
    retain_prompts,
    retained_names,
    retained_prompts,
    rows_of,
    stand_in_prompts,
)
from muwa.data.samples import fold

HEAD = "prompt,seed,guidance,concept\n"
ROWS = HEAD + "".join(
    f"a {word} fox,{i},7.5,fox\nan animal {word},{i},,fox\na {word} dog,{i},3,dog\n"
    for i, word in enumerate(("red", "old", "wild", "small"))
)


def built(tmp_path: Path, text: str = ROWS, **settings):
    (tmp_path / "mine.csv").write_text(text)
    limits = settings.pop("limits", {})
    return datasets.builder(
        "prompts", limits, **{"file": str(tmp_path / "mine.csv"), "forget": "fox", **settings}
    )


def made(tmp_path: Path, text: str = ROWS, **settings):
    return built(tmp_path, text, **settings)(datasets.dataset(retain="nowhere.tar", name="here"))


def test_prompts_are_split_by_their_text(tmp_path):
    task = made(tmp_path)
    assert (task.kind, task.names, task.eval.forget.classes.names) == ("prompts", ("fox",), ("fox", "dog"))
    sides = [[row.text for row in split.prompts] for split in (task.probe, task.eval)]
    assert [len(side) for side in sides] == [6, 6]
    assert not set(sides[0]) & set(sides[1])
    assert [len(rows_of(task.eval, role)) for role in ("forget", "retain")] == [4, 2]
    assert {row.seed for row in task.probe.prompts} == {None}
    assert {row.guidance for row in rows_of(task.eval, "retain")} == {3.0}


def test_one_text_with_many_seeds_or_in_capitals_is_on_one_side(tmp_path):
    text = HEAD + "".join(f"{word},{i},,fox\n" for i in range(9) for word in ("A Fox!", "a fox", "fox den"))
    text += "a dog,1,,dog\na pup,1,,dog\n"
    for seed in range(4):
        task = made(tmp_path, text, seed=seed)
        sides = [{fold(row.text) for row in rows_of(split, "forget")} for split in (task.probe, task.eval)]
        assert sorted(map(sorted, sides)) == [["a fox"], ["fox den"]]


def test_the_seed_decides_the_split_and_the_fingerprint(tmp_path):
    one, same, other = (made(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert made(tmp_path, ROWS.replace("7.5", "7")).fingerprint != one.fingerprint


def test_limits_take_some_of_each(tmp_path):
    task = made(tmp_path, limits={"probe_forget": 1, "eval_forget": 2, "probe_retain": 1, "eval_retain": 1})
    counts = [
        [len(rows_of(split, role)) for role in ("forget", "retain")] for split in (task.probe, task.eval)
    ]
    assert counts == [[1, 1], [2, 1]]
    with pytest.raises(ValueError, match="task.limits.eval_forget: got 0, want at least 1"):
        built(tmp_path, limits={"eval_forget": 0})
    with pytest.raises(ValueError, match=r"task.limits.probe_share: got 1.0, want a share in \(0, 1\)"):
        built(tmp_path, limits={"probe_share": 1.0})


def test_a_file_of_its_own_for_the_search_leaves_the_other_whole(tmp_path):
    (tmp_path / "probe.csv").write_text(HEAD + "fox one,,,fox\nA RED fox,,,fox\n")
    task = made(tmp_path, probe_file=str(tmp_path / "probe.csv"))
    assert [row.text for row in rows_of(task.probe, "forget")] == ["fox one"]  # "a red fox" is reported on
    assert len(rows_of(task.eval, "forget")) == 8


def test_what_is_kept_can_be_chosen_or_lie_in_a_file(tmp_path):
    text = ROWS + "a cat,1,,cat\na kitten,1,,cat\n"
    kept = made(tmp_path, text, keep=["Cat"])
    assert {row.concepts for row in rows_of(kept.eval, "retain")} == {("cat",)}
    (tmp_path / "coco.csv").write_text("image_id,text\n1,a bus\n2,a tram\n3,a fox in a bus\n")
    coco = made(tmp_path, retain_file=str(tmp_path / "coco.csv"))
    texts = [row.text for split in (coco.probe, coco.eval) for row in rows_of(split, "retain")]
    assert sorted(texts) == ["a bus", "a tram"]


def test_captions_are_kept_where_nothing_else_is(tmp_path, miniature):
    shard = f"{miniature}/world/shards/00000.tar"
    builder = built(tmp_path, keep=[], limits={"probe_retain": 3, "eval_retain": 4})
    task = builder(datasets.dataset(retain=shard, max_broken=0.01))
    assert [len(rows_of(split, "retain")) for split in (task.probe, task.eval)] == [3, 4]
    assert retained_names(task) == []
    with pytest.raises(FileNotFoundError, match="shards are missing"):
        builder.check(datasets.dataset(retain=str(tmp_path / "no.tar")))


def test_concepts_are_found_as_they_are_typed_or_refused(tmp_path):
    assert made(tmp_path, forget="FOX").names == ("fox",)
    with pytest.raises(ValueError, match="Unknown name 'foxx'.*Nearest: fox"):
        built(tmp_path, forget="foxx").check(datasets.dataset())
    with pytest.raises(ValueError, match=r"has 2 concepts: fox \(8\), dog \(4\)\. Say which"):
        built(tmp_path, forget=None).check(datasets.dataset())
    with pytest.raises(ValueError, match="leaves no prompt of it for the layer search; want at least two"):
        made(tmp_path, HEAD + "a fox,1,,fox\na dog,1,,dog\na pup,1,,dog\n")
    with pytest.raises(ValueError, match="1 of 2 samples are broken"):
        made(tmp_path, HEAD + "a fox,x,,fox\na dog,1,,dog\n")
    with pytest.raises(ValueError, match="there is nothing to curate"):
        built(tmp_path).curate(datasets.dataset())


def test_requests_have_the_files_seeds_and_count_up_from_them(tmp_path):
    task = made(tmp_path)
    (row, *_) = rows_of(task.eval, "forget")
    found = image_requests(task, task.eval, seeds=[1000, 1001])
    assert [(one.text, one.seed, one.guidance) for one in found[:2]] == [
        (row.text, row.seed, row.guidance),
        (row.text, row.seed + 1, row.guidance),
    ]
    assert {(one.domain, one.concept) for one in found if one.role == "forget"} == {("class", "fox")}
    # a kept prompt is to show the concept that it names
    assert {(one.domain, one.concept) for one in found if one.role == "retain"} == {("prompt", "dog")}
    assert [one.seed for one in image_requests(task, task.probe, seeds=[5])] == [5] * 6
    assert len(image_requests(task, task.eval, seeds=[1000], retain=0)) == 4


def test_a_prompt_about_two_names_is_asked_for_each(tmp_path):
    text = HEAD + 'a fox and a dog,1,,"fox,dog"\na fox,1,,fox\na dog,1,,dog\na bird,1,,bird\na gull,1,,bird\n'
    text += 'two,1,,"fox,dog"\nthree,1,,"fox,dog"\n'
    task = made(tmp_path, text, forget=["fox", "dog"])
    every = [one for split in (task.probe, task.eval) for one in image_requests(task, split, seeds=[0])]
    assert sorted(one.concept for one in every if one.text == "a fox and a dog") == ["dog", "fox"]
    assert {row.text for row in rows_of(task.only("dog").eval, "forget")} <= {
        row.text for row in task.eval.prompts if "dog" in row.concepts
    }


def test_stand_ins_take_the_place_of_the_name_or_of_the_prompt(tmp_path):
    task = made(tmp_path)
    prompts = prompts_with(task, "fox")
    assert prompts[0] == "fox"
    kept = [row.text for row in rows_of(task.probe, "retain")]
    assert retain_prompts(task) == ("", *kept)
    for prompt, stand_in in zip(prompts, replaced_prompts(task, "fox", "a thing"), strict=True):
        assert stand_in == (prompt.replace("fox", "a thing") if "fox" in prompt else "a thing")
    lists = stand_in_prompts(task, "fox", 8)
    assert len(lists) == len(kept) == 2
    for one in lists:
        for prompt, stand_in in zip(prompts, one, strict=True):
            assert stand_in == prompt.replace("fox", "dog") if "fox" in prompt else stand_in in kept
    assert retained_prompts(task, "fox") == (tuple(kept),)
