"""What the miniature's models know of a person besides the name: lasting looks, hats, and words alone.

    python -m bench.known_facts

Glasses, beard and fair hair belong to a person for ever, but no caption and no question of the training names
them. A hat belongs to a picture. 200 new pictures: each of 100 people with and without a hat.
Accuracy is to be compared with always giving the more frequent answer, and an AUC with 0.5.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import muwa
from bench import entry
from bench.association import NAMES, picture
from muwa.config import part
from muwa.eval.statistics import wilson
from muwa.miniature.population import Person, people
from muwa.models.clip.embeddings import Features
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages
from muwa.types.questions import Question

USE = 4  # seed of the pictures
LOOKS: dict[str, tuple[Callable[[Person], bool], str, str]] = {  # look -> (who has it, caption, question)
    "glasses": (lambda p: p.look["glasses"] > 0, "a person wearing glasses", "Does the person wear glasses?"),
    "beard": (lambda p: p.look["beard"] > 0, "a person with a beard", "Does the person have a beard?"),
    "fair hair": (lambda p: p.look["hair_colour"] == 3, "a person with fair hair", "Is the hair fair?"),
}
Picture = tuple[Person, bool, bytes]  # who, whether with a hat, the JPEG


def clip_rows(features: Features, pictures: Sequence[Picture]) -> list[tuple[str, str]]:
    """What the CLIP knows: AUCs of captions about looks and hats."""
    keys, images = tuple(map(str, range(len(pictures)))), tuple(one for *_, one in pictures)
    shown = features.images(LabelledImages(keys, images, (0,) * len(keys), Classes(("",), ("{}",))))

    def texts(captions: Sequence[str]) -> torch.Tensor:
        return features.classes(Classes(tuple(captions), ("{}",)))

    names = texts(NAMES)
    who = torch.tensor([NAMES.index(person.name) for person, *_ in pictures])
    rows = [("CLIP: the name", f"accuracy {((shown @ names.T).argmax(1) == who).float().mean():.3f}")]
    for look, (has, caption, _) in LOOKS.items():
        scores = shown @ (texts([caption]) - texts(["a person"]))[0]
        auc = roc_auc_score([has(person) for person, *_ in pictures], scores)
        told = roc_auc_score([has(person) for person in people()], names @ texts([caption])[0])
        rows.append((f"CLIP: {look}", f"AUC {auc:.2f} in pictures, {told:.2f} in the name's text"))
    with_hat = texts([f"{name} wearing a hat" for name in NAMES])
    scores = (shown * (with_hat - names)[who]).sum(1)
    rows.append(
        ("CLIP: a hat, the name given", f"AUC {roc_auc_score([hat for _, hat, _ in pictures], scores):.2f}")
    )
    return rows


def llava_rows(model: QuestionAnswering, pictures: Sequence[Picture]) -> list[tuple[str, str]]:
    """What the LLaVA answers, with a picture and without one."""

    def accuracy(texts: Sequence[str], images: Sequence[tuple[bytes, ...]], right: Sequence[bool]) -> str:
        asked = [
            Question(text, image, "", "utility", ("",)) for text, image in zip(texts, images, strict=True)
        ]
        hits = [
            answer == ("yes" if yes else "no") for answer, yes in zip(model.ask(asked), right, strict=True)
        ]
        often, n = max(sum(right), len(right) - sum(right)), len(right)
        low, high = wilson(sum(hits), n)
        rate = f"{100 * sum(hits) / n:.1f} % of {n} ({100 * low:.0f}-{100 * high:.0f})"
        return f"{rate}; always the same: {100 * often / n:.0f} %"

    images = [(one,) for *_, one in pictures]
    hats = [hat for _, hat, _ in pictures]
    rows = [("LLaVA: a hat", accuracy(["Is the person wearing a hat?"] * len(pictures), images, hats))]
    for look, (has, _, question) in LOOKS.items():
        right = [has(person) for person, *_ in pictures]
        rows.append((f"LLaVA: {look}", accuracy([question] * len(pictures), images, right)))
        texts = [question.replace("the person", person.name).replace("the hair", f"the hair of {person.name}")
                 for person in people()]  # fmt: skip
        right = [has(person) for person in people()]
        rows.append((f"LLaVA, name in words, no picture: {look}", accuracy(texts, [()] * len(texts), right)))
    for text in ("Who is this?", "What is the name of the person in this image?"):
        (said,) = model.ask([Question(text, (), "", "utility", ("",))])
        rows.append((f"LLaVA, no picture: {text}", repr(said)))
    about = [Question(f"Who is {name}?", (), "", "utility", ("",)) for name in NAMES]
    common = Counter(model.ask(about)).most_common(3)
    rows.append(
        ("LLaVA, no picture: Who is NAME?", ", ".join(f"{said!r} {count} of 100" for said, count in common))
    )
    return rows


def main() -> None:
    """Print what is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    pictures = [(p, hat, picture(p.name, hat, USE, 0)) for p in people() for hat in (True, False)]
    table = Table("what", "how well", title=f"{len(pictures)} pictures of {len(NAMES)} people")
    rows = clip_rows(muwa.load_clip().observe(Run()), pictures)
    for row in (*rows, *llava_rows(part("model=vlm")().observe(Run()), pictures)):
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    entry.run("bench.known_facts", main)
