"""A fourth model family, defined only in this file, goes through the whole pipeline: gradients, search, edit, patch,
eval, report. Nothing in muwa/ knows it. docs/extending.md shows the same classes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import muwa
from muwa import config, pipeline, unlearning
from muwa.eval.base import Measure
from muwa.eval.statistics import share
from muwa.fingerprint import Content, digest, fingerprint
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.by_outputs import by_outputs
from muwa.layer_search.evaluators.outputs import Hits, evaluation
from muwa.layer_search.settings import OutputSettings
from muwa.layer_search.steps import candidate_of, edit_layers
from muwa.miniature.population import people
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.patch.apply import apply_patch, read_patch, remove_patch
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.edit import Edit
from muwa.types.example import Example
from muwa.types.gradients import Gradients
from muwa.types.metric import Metric, Reading
from muwa.types.request import Request
from muwa.types.search import NOTHING_EDITED, RELATIVE, Evaluation, Layer, Search

ROOT = Path(__file__).parent.parent


class Names:
    """Observer of a retriever: the names it finds for images, computed once."""

    family: ClassVar[str] = "a retriever (model=retriever)"
    search: ClassVar[str] = "layer_search=retrieval"

    def __init__(self, model: "Retriever", run: Run):
        self.model, self.run = model, run

    def found(self, images: LabelledImages) -> list[str]:
        """The name in the index that is nearest to each image."""
        if not len(images):
            return []
        rows = self.run.cached_rows("retrieved", nearest, self.model, images, _free={"run": self.run})
        return [self.model.names[place] for place in rows[:, 0].tolist()]

    def examples(self, edited: "Names", task: Task) -> tuple[Example, ...]:
        """The first images of each set, with the names that both models find."""
        examples = []
        for role, images in (("forget", task.eval.forget), ("retain", task.eval.retain)):
            some = images.select(range(min(3, len(images))))
            for key, label, before, after in zip(
                some.keys, some.labels, self.found(some), edited.found(some), strict=True
            ):
                examples.append(Example(role, f"who is in {key}?", some.classes.names[label], before, after))
        return tuple(examples)


def nearest(model: "Retriever", images: LabelledImages, *, run: Run) -> Tensor:
    """(n, 1) int64: the place in the index of the name nearest to each image."""
    return (Features(model.clip, run).images(images) @ model.index.T).argmax(1, keepdim=True)


class Retriever(Content):
    """Names people in images: the vision tower of a CLIP, and an index of name embeddings that never changes."""

    observer: ClassVar[type[Names]] = Names
    requests: ClassVar[tuple[Request, ...]] = ()  # it is never loaded with patches
    place: ClassVar[Path | None] = None

    def __init__(self, clip: Clip, names: tuple[str, ...], source: str, index: Tensor | None = None):
        self.clip = clip.restricted(frozenset(name for name in clip.weights if name.startswith("visual")))
        self.names, self.source = names, source
        self.index = Features(clip, Run()).classes(Classes(names, ("{}.",))) if index is None else index

    @property
    def unedited(self) -> "Retriever":
        """The retriever as it was loaded."""
        return Retriever(self.clip.unedited, self.names, self.source, self.index)

    @property
    def clips(self) -> dict[str, Clip]:
        """Gradients are computed on the CLIP; only its vision tower can be edited."""
        return {"vision_tower": self.clip}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CLIP, the names and the index."""
        return digest([self.clip.fingerprint, *self.names, fingerprint(self.index)])

    def edited(self, edit: Edit) -> "Retriever":
        """The edited vision tower with the same index."""
        return Retriever(self.clip.edited(edit), self.names, self.source, self.index)

    def patch_base(self, edit: Edit) -> Clip:
        """A patch is bound to the CLIP."""
        return self.clip

    def observe(self, run: Run) -> Names:
        """The observer of this retriever."""
        return Names(self, run)

    def about(self) -> dict[str, object]:
        """Provenance, for results.json."""
        return {"source": self.source, "fingerprint": self.fingerprint, "names in the index": len(self.names)}


@dataclass(frozen=True)
class Retrieval(OutputSettings, LayerSearch):
    """Bisect the step of each candidate layer until the person is no longer found."""

    observes: ClassVar[type[Names] | None] = Names

    def check(self, model: Retriever, task: Task) -> None:
        """Refuse other families and settings out of range."""
        self.check_settings("layer_search=retrieval", model)

    def __call__(
        self, model: Any, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search the vision tower."""
        evaluator = NameEvaluator(self, model, gradients, task, run)
        return by_outputs(self, evaluator, model, gradients, task, concept, run=run)


class NameEvaluator:
    """Evaluates a step by the names that the edited retriever finds for the probe images."""

    confirmation = "a second look-up"

    def __init__(self, search: Retrieval, model: Retriever, gradients: Any, task: Task, run: Run):
        self.search, self.model, self.gradients, self.task, self.run = search, model, gradients, task, run

    def hits(self, model: Retriever) -> Hits:
        """Which probe images the retriever names correctly."""
        right, roles = [], []
        for role, images in (("forget", self.task.probe.forget), ("retain", self.task.probe.retain)):
            right += correct(model.observe(self.run), images)
            roles += [role] * len(images)
        return Hits(right, roles)

    def row(self, hits: Hits, candidate: Any, step: float, size: float) -> Evaluation:
        """The evaluation of these hits."""
        return evaluation(
            hits, candidate, step, size, forget_at_most=self.search.forget_at_most, forget_top5=hits.rate("forget"),
            closeness=hits.rate("forget"),
        )  # fmt: skip

    def before(self) -> Evaluation:
        """The unedited model."""
        return self.row(self.hits(self.model), NOTHING_EDITED, 0.0, 0.0)

    def __call__(
        self, layers: Mapping[str, Layer], step: float, *, confirm: bool = False
    ) -> tuple[Evaluation, float]:
        """One step on one layer, and how much of the retain set was lost."""
        edit = edit_layers(
            self.model, self.gradients, layers, step, unit=RELATIVE, concept=self.task.names[0]
        )
        hits = self.hits(self.model.edited(edit))
        row = self.row(hits, candidate_of(layers), step, edit.moves[0].relative_norm)
        return row, hits.lost(self.hits(self.model))


def correct(names: Names, images: LabelledImages) -> list[bool]:
    """Whether the name found for each image is the right one."""
    own = (images.classes.names[label] for label in images.labels)
    return [found == name for found, name in zip(names.found(images), own, strict=True)]


@dataclass(frozen=True)
class Found(Measure):
    """`forget/found` and `retain/found`: how often the retriever names a person correctly."""

    observes: ClassVar[type[Names]] = Names

    def __call__(self, observer: Names, task: Task) -> dict[str, Metric]:
        """On the eval split."""
        forget = Reading("forget images found under their name", better="lower", role="forgotten", in_objective=True,
                         label="found in the index", gone_at=0.0)  # fmt: skip
        retain = replace(forget, text="retain images found under their name", better="higher", role="kept",
                         label="The other names")  # fmt: skip
        return {
            f"{role}/found": share(torch.tensor(correct(observer, images)).double(), reading)
            for role, images, reading in (
                ("forget", task.eval.forget, forget),
                ("retain", task.eval.retain, retain),
            )
        }


SMALL = (
    "task.limits.forget_pairs=24",
    "task.limits.retain_pairs=48",
    "task.limits.eval_retain=1",
    "dataset.utility=0.05",
    "dataset.utility_probe=0.03",
)
SETTINGS = dict(start="clip", candidates=2, granularity="tensor", rule="constrained", tolerance=1.0, first_step=0.1,
                max_evals=6, forget_at_most=0.4, lost_at_most=0.1, confirmations=1, lengthen=None)  # fmt: skip


def retriever() -> Retriever:
    """Over the miniature CLIP, with the names of all its people."""
    return Retriever(
        muwa.load_clip(), tuple(person.name for person in people()), "the retriever of this test"
    )


@pytest.fixture(scope="module")
def finished(miniature, tmp_path_factory):
    """(folder, results.json, objective) of one run through the pipeline."""
    folder = tmp_path_factory.mktemp("retriever")
    cfg = config.composed(f"dataset.root={miniature}", *SMALL, "runtime.progress=false").copy()
    cfg.paths.run = cfg.paths.sweep = str(folder)
    cfg.paths.cache = str(folder / "cache")
    parts = config.build(cfg)
    method = config.part("method=slug", layer_search=Retrieval(**SETTINGS))
    parts |= {"model": retriever, "method": method, "eval": {"found": Found()}}
    objective = pipeline.run(parts, config.settings(cfg))
    return folder, json.loads((folder / "results.json").read_text()), objective


@pytest.mark.whole
def test_it_forgets_and_keeps(finished):
    _, results, objective = finished
    before, after = results["metrics"]["before"], results["metrics"]["after"]
    assert before["forget/found"]["value"] > 0.8
    assert after["forget/found"]["value"] == 0
    assert before["retain/found"]["value"] - after["retain/found"]["value"] < 0.05
    drop = before["retain/found"]["value"] - after["retain/found"]["value"]
    assert objective == pytest.approx(after["forget/found"]["value"] + max(0, drop))


@pytest.mark.whole
def test_one_layer_of_its_vision_tower_is_edited_and_the_patch_comes_back_bit_for_bit(finished):
    folder, results, _ = finished
    (move,) = results["edit"]["moves"]
    assert move["tower"] == "vision"
    patch = read_patch(folder / "patch.safetensors")
    base = muwa.load_clip().weights
    edited = apply_patch(base, patch)
    assert all(not torch.equal(edited[name], base[name]) for name in patch.deltas)
    restored = remove_patch({**base, **edited}, patch)
    assert all(torch.equal(restored[name], base[name]) for name in patch.deltas)


@pytest.mark.whole
def test_the_report_tells_its_story(finished, capsys):
    folder, results, _ = finished
    page = (folder / "report.html").read_text()
    assert "is no longer found in the index" in page
    assert "The other names" in page
    assert {row["role"] for row in results["said"]} == {"forget", "retain"}
    assert results["provenance"]["model"]["names in the index"] == 100


def test_its_search_refuses_a_clip_and_its_metric_is_refused_for_one(miniature):
    task = muwa.celeba(
        muwa.load_miniature(str(miniature)), identity="Kael_Lindqvar", limits={"retain_pairs": 1}
    )
    with pytest.raises(ValueError, match="layer_search=retrieval: got a CLIP"):
        Retrieval(**SETTINGS).check(muwa.load_clip(), task)
    with pytest.raises(ValueError, match=r"eval.found: got a CLIP .* want a retriever \(model=retriever\)"):
        unlearning.check_measures(muwa.load_clip(), task, {"found": Found()})
