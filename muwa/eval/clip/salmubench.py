"""SALMUBench's scores of a CLIP: are facts that were tied to people gone, and is all else still there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from muwa.data.salmubench import Associations, SalmuBench, salmubench
from muwa.eval.base import Measure
from muwa.eval.clip.retrieval import first_hit
from muwa.eval.statistics import over_people
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count, Text

SECTION = "SALMUBench"
NO_CLASSES = Classes(("",), ("{}",))  # images are embedded without labels
DISTRACTORS = 1000  # captions of each of two sets that stand beside the right one (the benchmark's number)


@dataclass(frozen=True)
class Salmu(Measure):
    """`salmu/forget_...`, `salmu/holdout_association_...`, `salmu/holdout_identity_...`, `salmu/retain_...`.

    The forget split ties facts to people; these are to go (lower is better). `holdout_association` has other
    facts of the same people, `holdout_identity` facts of other people; both are to stay, and so is
    `retain_synth` (higher is better).

    - `<split>_similarity`: mean cosine of an image with its own caption. Of the forget split it is the
      benchmark's AssocStr, of holdout_association IntraIdSim, of holdout_identity InterIdSim. `retain_joint`
      (captions without facts, people of the forget split) is VisIdInt, and `fragile` is FragSim.
    - `<split>_recall_1`, `forget_mrr`: recall at 1 and mean reciprocal rank of the right caption among
      `DISTRACTORS` captions of the forget split and as many of retain_synth without a person (RetFail).
    - `forget_core`: mean of the larger cosine with "name value" and "value name" (CoreAssoc).
    - `forget_name`, `holdout_identity_name`: how often the right name is the nearest of all names that the
      benchmark knows (IdZSC, for people of the forget split).

    n is the number of people (of pairs, where a pair is about nobody); intervals resample them.

    Args:
        folder: A download of SALMUBench; None leaves it out.
        limit: At most so many rows per split, spread evenly; None takes all.

    Raises:
        FileNotFoundError, ValueError: A file is not there, or not of its format (`check`).

    Source: SALMUBench (arXiv 2603.26316), section 4. Differs: distractors are spread evenly, not drawn; names
    are asked for as bare text; no logistic probe (ACS); recall of the holdout splits is ours.
    """

    observes: ClassVar[type[Observer]] = Features

    folder: Text | None
    limit: Count | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a file is missing or not of its format, or the limit is below 1. All files are read."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"eval.salmubench.limit: got {self.limit}, want at least 1, or null for all")
        if self.folder:
            salmubench(Path(self.folder), limit=self.limit, setting="eval.salmubench.folder")

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        if not self.folder:
            return {}
        bench = salmubench(Path(self.folder), limit=self.limit, setting="eval.salmubench.folder")
        rows = _parts(bench)
        gallery = _gallery(bench)
        metrics: dict[str, Metric] = {}
        for part, some in rows.items():
            if not len(some):
                continue
            images, texts = _images(features, some), _texts(features, some.pairs.captions)
            about = "facts to forget" if part == "forget" else part.replace("_", " ")
            own = (images * texts).sum(1)
            metrics[f"salmu/{part}_similarity"] = _mean(
                own, some, part, f"mean cosine of images with their own caption, {about}", "cosine"
            )
            if part.startswith("retain") or part == "fragile":
                continue
            places = _places(features, images, own, some.pairs.captions, gallery)
            hits = f"fraction of images whose own caption comes first of {len(gallery) + 1}, {about}"
            metrics[f"salmu/{part}_recall_1"] = _mean((places == 1).double(), some, part, hits)
            if part == "forget":
                text = f"mean reciprocal rank of the own caption of {len(gallery) + 1}, {about}"
                metrics["salmu/forget_mrr"] = _mean(1 / places.double(), some, part, text)
                metrics |= _core(features, bench, images)
            if part != "holdout_association":
                metrics |= _names(features, bench, some, images, part)
        return metrics


def _parts(bench: SalmuBench) -> dict[str, Associations]:
    """Part of the benchmark -> its rows. Joint, disjoint and fragile are parts of retain_synth."""
    retain, forgotten = bench.splits["retain_synth"], set(bench.splits["forget"].who)
    every = range(len(retain))
    return {
        "forget": bench.splits["forget"],
        "holdout_association": bench.splits["holdout_association"],
        "holdout_identity": bench.splits["holdout_identity"],
        "retain_joint": retain.select([i for i in every if retain.who[i] in forgotten]),
        "retain_disjoint": retain.select([i for i in every if not retain.who[i]]),
        "fragile": retain.select([i for i in every if retain.pairs.keys[i] in bench.fragile]),
    }


def _gallery(bench: SalmuBench) -> tuple[str, ...]:
    """The captions that stand beside the right one, each once."""
    facts = bench.splits["forget"].pairs.captions
    plain = _parts(bench)["retain_disjoint"].pairs.captions
    spread = [some[i * len(some) // DISTRACTORS] if len(some) > DISTRACTORS else some[i]
              for some in (facts, plain) for i in range(min(len(some), DISTRACTORS))]  # fmt: skip
    return tuple(dict.fromkeys(spread))


def _places(
    features: Features, images: Tensor, own: Tensor, captions: Sequence[str], gallery: Sequence[str]
) -> Tensor:
    """(n,) the place of each image's own caption among the gallery, from 1; a tie counts against it."""
    others = images @ _texts(features, gallery).T
    place = {text: i for i, text in enumerate(gallery)}
    own_place = torch.tensor([place.get(caption, -1) for caption in captions])
    others = others.masked_fill(own_place[:, None] == torch.arange(len(gallery)), float("-inf"))
    first = torch.zeros(len(own), len(gallery) + 1, dtype=torch.bool)
    first[:, 0] = True
    return first_hit(torch.cat([own[:, None], others], 1), first)


def _core(features: Features, bench: SalmuBench, images: Tensor) -> dict[str, Metric]:
    """The similarity with name and value alone, in both orders, of rows whose value the files give."""
    rows = bench.splits["forget"]
    facts = {i: fact for i in range(len(rows)) if (fact := bench.fact("forget", i))}
    if not facts:
        return {}
    known = list(facts)
    both = [
        _texts(features, [text.format(*fact) for fact in facts.values()]) for text in ("{0} {1}", "{1} {0}")
    ]
    larger = torch.stack([(images[known] * texts).sum(1) for texts in both]).amax(0)
    some = rows.select(known)
    return {
        "salmu/forget_core": _mean(larger, some, "forget", "mean cosine with name and value alone", "cosine")
    }


def _names(
    features: Features, bench: SalmuBench, rows: Associations, images: Tensor, part: str
) -> dict[str, Metric]:
    """How often the name of the person shown is the nearest of all names that the benchmark knows."""
    people = list(bench.names)
    known = [i for i in range(len(rows)) if rows.who[i] in bench.names]
    names = _texts(features, list(bench.names.values()))
    right = torch.tensor([people.index(rows.who[i]) for i in known])
    hits = ((images[known] @ names.T).argmax(1) == right).double()
    text = f"fraction of images whose name is the nearest of {len(people)} names"
    return {f"salmu/{part}_name": _mean(hits, rows.select(known), part, text)}


def _images(features: Features, rows: Associations) -> Tensor:
    pairs = rows.pairs
    return features.images(LabelledImages(pairs.keys, pairs.images, (0,) * len(pairs), NO_CLASSES))


def _texts(features: Features, texts: Sequence[str]) -> Tensor:
    """(n, d): the embedding of each text, of length 1."""
    once = tuple(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(once)}
    return features.classes(Classes(once, ("{}",)))[[place[text] for text in texts]]


def _mean(values: Tensor, rows: Associations, part: str, what: str, unit: str = "rate") -> Metric:
    """The mean over pairs, with the interval of resampled people."""
    better = "lower" if part == "forget" else "higher"
    who = [one or key for one, key in zip(rows.who, rows.pairs.keys, strict=True)]
    counted = "pairs" if part in ("retain_disjoint", "fragile") else "people"
    reading = Reading(what, better=better, unit=unit, counted=counted, section=SECTION)
    return over_people(values.tolist(), who, reading)
