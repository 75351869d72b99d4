"""The examples of docs/extending.md: each block is run as it stands there, or is the code of a test."""

import csv
import inspect
import json
import re
import sys
from pathlib import Path

import forked
import pytest
import test_fourth_family
import tiny
import torch
from omegaconf import OmegaConf

from muwa.data.celeba import read_celeba
from muwa.miniature.population import people
from muwa.run import Run

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text()


def blocks():
    """File -> the block that follows its name in the text."""
    return dict(re.findall(r"`(extras/[\w/.]+)`:\n\n```\w+\n(.*?)```", TEXT, re.S))


@pytest.fixture(scope="module")
def extras(tmp_path_factory):
    """The files of the text, written into a folder that can be imported from."""
    root = tmp_path_factory.mktemp("extending")
    for name, text in blocks().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.partition(".")[0] == "extras"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def table(miniature, tmp_path_factory):
    """A table of five people of the miniature: eight images each, half of them for training."""
    faces = read_celeba(miniature / "world" / "celeba", identities=None, frequent=None).files
    path = tmp_path_factory.mktemp("table") / "people.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "name", "caption", "use"])
        writer.writeheader()
        for person in people()[:5]:
            for i, one in enumerate(faces[person.name][:8]):
                use = "train" if i % 2 else "judge"
                writer.writerow(
                    {"file": one, "name": person.name, "caption": f"a photo of {person.name}", "use": use}
                )
    return path


def test_the_text_has_every_file_that_it_speaks_of():
    assert set(blocks()) == {
        "extras/random_step.py", "extras/conf/method/random_step.yaml", "extras/own_rank.py",
        "extras/conf/eval/own_rank.yaml", "extras/table.py", "extras/conf/task/table.yaml",
    }  # fmt: skip


def test_the_method_makes_a_step_of_its_size_and_refuses_an_unknown_layer(extras):
    from extras.random_step import RandomStep

    model = tiny.clip()
    method = RandomStep("visual.proj", 0.25, 0)
    method.check(model, tiny.task(), Run())
    delta = method(model, tiny.task(), Run()).deltas["visual.proj"]
    assert (delta.norm() / model.weights["visual.proj"].norm()).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="method.layer: got 'head', want a parameter of tiny"):
        RandomStep("head", 0.25, 0).check(model, tiny.task(), Run())


def test_the_metric_is_the_mean_rank_by_sorting(extras):
    from extras.own_rank import OwnRank

    features, task = tiny.clip().observe(Run()), tiny.task()
    images = task.eval.forget
    order = (features.images(images) @ features.classes(images.classes).T).argsort(1, descending=True)
    ranks = [row.tolist().index(label) + 1 for row, label in zip(order, images.labels, strict=True)]
    got = OwnRank(100)(features, task)["forget/own_rank"]
    assert got.value == pytest.approx(sum(ranks) / len(ranks))
    assert OwnRank(1)(features, task)["forget/own_rank"].value == 1
    with pytest.raises(ValueError, match="eval.own_rank.largest: got 0, want at least 1"):
        OwnRank(0).check(tiny.clip(), task)


def test_method_metric_and_layout_in_one_run_of_the_command_line(extras, table, miniature, tmp_path):
    words = [
        "--config-dir", "extras/conf", "task=table", f"task.table={table}", f"task.name={people()[0].name}",
        "method=random_step", "eval=[forget,own_rank]", f"dataset.root={miniature}", f"paths.outputs={tmp_path}",
        "dataset.utility=0.05", "dataset.utility_probe=0.03", "runtime.progress=false",
    ]  # fmt: skip
    done = forked.run(forked.LAUNCH, *words, cwd=extras, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results.json")
    results = json.loads(path.read_text())
    assert results["edit"]["layer"] == "visual.proj"
    assert results["edit"]["relative_norm"] == 0.2
    assert results["provenance"]["method"] == "random_step"
    assert results["task"]["names"] == [people()[0].name]
    assert results["task"]["forget_pairs"] == {people()[0].name: 4}
    assert results["metrics"]["before"]["forget/own_rank"]["unit"] == "rank"
    assert "Ranking" in path.with_name("report.html").read_text()


@pytest.mark.parametrize("name", ["Names", "Retriever"])
def test_the_family_of_the_text_is_the_one_that_the_tests_take_through_the_pipeline(name):
    assert f"```python\n{inspect.getsource(getattr(test_fourth_family, name))}```" in TEXT


def test_no_field_of_an_example_has_a_default_beside_its_yaml(extras):
    for file, key in (("method/random_step", ""), ("eval/own_rank", "own_rank"), ("task/table", "")):
        node = OmegaConf.load(extras / "extras" / "conf" / f"{file}.yaml")
        node = node[key] if key else node
        module, _, name = node._target_.rpartition(".")
        fields = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
        assert set(fields) == set(node) - {"_target_", "_partial_"}
        assert all(field.default is inspect.Parameter.empty for field in fields.values())


def test_a_random_direction_is_the_same_for_the_same_seed(extras):
    from extras.random_step import RandomStep

    first, again, other = (
        RandomStep("visual.proj", 0.2, seed)(tiny.clip(), tiny.task(), Run()).deltas["visual.proj"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
