"""Forget what a picture says about one person, not who it is: the hat of a person, whose name stays.

    python -m bench.association --identity Kael_Lindqvar --json association.json

The miniature's models know no lasting fact about a person besides the name. What else they say of a person is
in the picture: whether there is a hat. So this is the smallest association that can be measured. Forget set:
pictures of the person with a hat, asked whether there is one, with the answer yes. Retain set: the names of
all people, this one's too, and the hats of all others. All pictures are drawn anew; those of the gradient, of
the search and of the measurement differ.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import entry
from muwa.config import part
from muwa.data.labelled import labelled
from muwa.data.samples import find_name
from muwa.eval.answers.accuracy import answers_rightly
from muwa.eval.statistics import wilson
from muwa.methods.base import make_edit
from muwa.miniature import draw, population
from muwa.miniature.images import jpeg
from muwa.miniature.questions import WORDINGS
from muwa.models.vlm.model import Vlm
from muwa.run import Run
from muwa.types.data import Classes, Pairs, Split, Task
from muwa.types.questions import Question

HAT, WHO = WORDINGS["hat"], WORDINGS["identity"][:3]
NAMES = tuple(person.name for person in population.people())
ANSWERS = Classes(("yes", "no"), ("{}",))
GRADIENT, SEARCH, REPORT = 1, 2, 3  # seeds of the pictures
OWN, EVERY = 16, 4  # pictures of the person to measure on; every fourth other person is measured
METHODS = {
    "slug_whitened, margin": (
        "method=slug_whitened",
        "gradient_source=margin",
        "layer_search=answering_by_gain",
    ),
    "slug, answer": (
        "method=slug",
        "gradient_source=answer",
        "layer_search=answering",
        "gradient_source.retained=named",
    ),
}


def picture(name: str, hat: bool, use: int, number: int) -> bytes:
    """A new picture of a person, as JPEG.

    Args:
        use: What it is for: `GRADIENT`, `SEARCH` or `REPORT`.
    """
    person = population.people()[NAMES.index(name)]
    rng = np.random.default_rng([population.SEED, 61, use, NAMES.index(name), int(hat), number])
    return jpeg(draw.as_uint8(draw.face(person, rng, hat)))


def pairs(rows: list[tuple[bytes, str]]) -> Pairs:
    """Pictures with captions."""
    return Pairs(tuple(map(str, range(len(rows)))), tuple(r[0] for r in rows), tuple(r[1] for r in rows))


def split(name: str, use: int, own: int, step: int = 1) -> Split:
    """The person's pictures with a hat; hats of others; names of all, the person's own first.

    Args:
        own: Number of pictures of the person.
        step: Every how many-th other person is shown.
    """
    others = [other for other in NAMES if other != name][::step]
    hats = {"yes": [picture(other, True, use, 0) for other in others],
            "no": [picture(other, False, use, 0) for other in others]}  # fmt: skip
    known = {other: [picture(other, i % 2 == 1, use, 1000 + i) for i in range(own if other == name else 1)]
             for other in (name, *others)}  # fmt: skip
    forget = {"yes": [picture(name, True, use, i) for i in range(own)]}
    return Split(labelled(forget, ANSWERS), labelled(hats, ANSWERS), labelled(known, Classes(NAMES, ("{}",))))


def task(name: str) -> Task:
    """The task. The name to forget is the answer "yes" to questions about the person's hat."""
    forget = [(picture(name, True, GRADIENT, i), "yes") for i in range(64)]
    retain = []
    for other in NAMES:
        for hat in (True, False):
            shown = picture(other, hat, GRADIENT, 100)
            retain.append((shown, other))
            if other != name:
                retain.append((shown, "yes" if hat else "no"))
    retain += [(picture(name, i % 2 == 1, GRADIENT, 200 + i), name) for i in range(32)]
    return Task("identity", ("yes",), {"yes": pairs(forget)}, pairs(retain), (), split(name, SEARCH, 8),
                split(name, REPORT, OWN, EVERY))  # fmt: skip


def asked(name: str) -> dict[str, list[Question]]:
    """What is measured -> its questions, about the pictures of the report."""
    shown = split(name, REPORT, OWN, EVERY)
    plain = [picture(name, False, REPORT, i) for i in range(OWN)]

    def hats(pictures: list[bytes], answer: str) -> list[Question]:
        return [
            Question(text, (one,), "hat", "retain", (answer,), "exact") for one in pictures for text in HAT
        ]

    own = NAMES.index(name)
    names: dict[str, list[Question]] = {"own": [], "others": []}
    for image, label in zip(shown.utility.images, shown.utility.labels, strict=True):
        which = names["own" if label == own else "others"]
        which += [Question(text, (image,), "identity", "retain", (NAMES[label],)) for text in WHO]
    other_hats = zip(shown.retain.images, shown.retain.labels, strict=True)
    return {
        "the person's hat (goes)": hats(list(shown.forget.images), "yes"),
        "the person without a hat": hats(plain, "no"),
        "the person's name": names["own"],
        "others' hats": [q for image, label in other_hats for q in hats([image], ANSWERS.names[label])],
        "others' names": names["others"],
    }


def rates(
    model: Vlm, run: Run, every: dict[str, list[Question]]
) -> dict[str, tuple[float, float, float, int]]:
    """What is measured -> (rate of right answers, Wilson's interval over pictures, number of pictures)."""
    found = {}
    for what, questions in every.items():
        answers = model.observe(run).ask(questions)
        hits = [answers_rightly(answer, one) for answer, one in zip(answers, questions, strict=True)]
        pictures = len({one.images[0] for one in questions})
        rate = sum(hits) / len(hits)
        found[what] = (rate, *wilson(rate * pictures, pictures), pictures)
    return found


def show(results: Mapping[str, Mapping[str, tuple[float, float, float, int]]]) -> None:
    """Print the rates so far as a table."""
    table = Table("rate of right answers", "pictures", *results)
    for what, (*_, pictures) in results["before"].items():
        cells = [f"{100 * rate:.1f} ({100 * low:.0f}-{100 * high:.0f})"
                 for rate, low, high, _ in (found[what] for found in results.values())]  # fmt: skip
        table.add_row(what, str(pictures), *cells)
    Console(width=150).print(table)


def main() -> None:
    """Measure each method, and print the rates before and after."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identity", default="Kael_Lindqvar")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    name = find_name(options.identity, NAMES, "the miniature")
    model: Vlm = part("model=vlm")()
    about, every, run = task(name), asked(name), Run()
    results = {"before": rates(model, run, every)}
    wordings = [
        f"questions.identity={list(HAT)}",
        f"questions.object={list(WHO)}",
        "gradient_source.wordings=${questions}",
    ]
    for method, chosen in METHODS.items():
        started = time.perf_counter()
        made = part(chosen[0], "model=vlm", *chosen[1:], *wordings)
        edit = make_edit(made, model, about, run)
        results[method] = rates(model.edited(edit), run, every)
        show(results)
        print(
            f"{method}: {time.perf_counter() - started:.0f} s, {', '.join(edit.deltas) or 'no step'}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    entry.run("bench.association", main)
