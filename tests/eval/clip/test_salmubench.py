"""SALMUBench's scores, against plain loops over the model's own embeddings."""

import pytest
import tiny
import torch
from data import hub

from muwa.eval.clip.salmubench import Salmu
from muwa.models.clip.embeddings import Features
from muwa.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub.salmubench(tmp_path_factory.mktemp("salmu"))


@pytest.fixture(scope="module")
def found(folder):
    measure = Salmu(folder=str(folder), limit=None)
    measure.check(tiny.clip(), tiny.task())
    return measure(Features(tiny.clip(), Run()), tiny.task())


def image(seed):
    return tiny.clip().encode("vision", tiny.pixels([tiny.png(seed)]))[0]


def text(caption):
    return tiny.clip().encode("text", tiny.tokenize([caption]))[0]


FORGET = [(100, "Ada Oslo"), (101, "Ada Oslo"), (202, "Bo Rome"), (203, "Bo spy")]
GALLERY = ["Ada Oslo", "Bo Rome", "Bo spy", "tree 0", "tree 1", "tree 2"]


def test_similarities_are_mean_cosines(found) -> None:
    parts = {
        "forget": FORGET,
        "holdout_association": [(100, "Ada cook"), (101, "Ada cook")],
        "holdout_identity": [(300, "Cy Bonn"), (301, "Cy Bonn"), (302, "Cy Bonn")],
        "retain_joint": [(160, "woman 0"), (161, "woman 1")],
        "retain_disjoint": [(700, "tree 0"), (701, "tree 1"), (702, "tree 2")],
        "fragile": [(701, "tree 1")],
    }
    for part, rows in parts.items():
        expected = sum(float(image(seed) @ text(caption)) for seed, caption in rows) / len(rows)
        assert found[f"salmu/{part}_similarity"].value == pytest.approx(expected, abs=1e-6), part
    assert found["salmu/forget_similarity"].reading.better == "lower"
    assert found["salmu/holdout_association_similarity"].reading.better == "higher"
    assert (found["salmu/forget_similarity"].n, found["salmu/retain_disjoint_similarity"].n) == (2, 3)


def test_the_own_caption_is_ranked_among_all_others(found) -> None:
    places = []
    for seed, caption in FORGET:
        own = float(image(seed) @ text(caption))
        places.append(1 + sum(float(image(seed) @ text(o)) >= own for o in GALLERY if o != caption))
    assert found["salmu/forget_recall_1"].value == sum(place == 1 for place in places) / 4
    assert found["salmu/forget_mrr"].value == pytest.approx(sum(1 / place for place in places) / 4)
    assert "salmu/retain_joint_recall_1" not in found
    own = [float(image(s) @ text("Ada cook")) for s in (100, 101)]
    first = [all(float(image(s) @ text(o)) < best for o in GALLERY) for s, best in zip((100, 101), own, strict=True)]  # fmt: skip
    assert found["salmu/holdout_association_recall_1"].value == sum(first) / 2


def test_names_and_values_alone(found) -> None:
    """The larger cosine of "Ada Oslo" and "Oslo Ada"; of Ada, Bo and Cy the nearest name."""
    larger = [
        max(float(image(seed) @ text(t)) for t in (caption, " ".join(caption.split()[::-1])))
        for seed, caption in FORGET
    ]
    assert found["salmu/forget_core"].value == pytest.approx(sum(larger) / 4, abs=1e-6)
    names = torch.stack([text("Ada"), text("Bo"), text("Cy")])
    hits = [int((names @ image(seed)).argmax()) == "AB".index(caption[0]) for seed, caption in FORGET]
    assert found["salmu/forget_name"].value == sum(hits) / 4
    hits = [int((names @ image(seed)).argmax()) == 2 for seed in (300, 301, 302)]
    assert found["salmu/holdout_identity_name"].value == sum(hits) / 3


def test_without_a_folder_nothing_is_measured(folder) -> None:
    assert Salmu(folder=None, limit=None)(Features(tiny.clip(), Run()), tiny.task()) == {}
    with pytest.raises(ValueError, match="eval.salmubench.limit: got 0, want at least 1, or null for all"):
        Salmu(folder=str(folder), limit=0).check(tiny.clip(), tiny.task())
    with pytest.raises(FileNotFoundError, match="eval.salmubench.folder: no .*identities_metadata.json"):
        Salmu(folder=str(folder / "gone"), limit=None).check(tiny.clip(), tiny.task())
