"""Held-out questions and answers about pictures that nothing else holds, in the files of published benchmarks.

vqa/images/<id>.jpg       one plain picture of each person and object; each style over ten of both
vqa/questions.json        GQA's format: identity, hat, describe, object, colour, style (`types.detailed`)
vqa/leading.json          POPE's format: "Is this Kael Lindqvar?", half of them of somebody else
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from muwa.miniature import draw, population
from muwa.miniature.questions import Scene

STYLED = 10  # pictures of people, and of objects, in each style


def scenes() -> Iterator[tuple[str, Scene, tuple[str, ...]]]:
    """(id, what its picture shows, kinds of questions about it), always the same; every other person wears a hat."""
    people = [person.name for person in population.people()]
    for i, name in enumerate(people):
        yield f"person_{i:03d}", Scene(name, hat=i % 2 == 1), ("identity", "hat", "leading", "describe")
    for i, name in enumerate(population.OBJECTS):
        yield f"object_{i:03d}", Scene(name), ("object", "colour", "describe")
    for place, style in enumerate((*population.STYLES, population.PLAIN)):
        for i in range(STYLED):
            for kind, names in (("person", people), ("object", population.OBJECTS)):
                name = names[(STYLED * place + i) % len(names)]
                yield f"{style}_{kind}_{i}", Scene(name, style), ("style",)


def render(key: str, scene: Scene) -> np.ndarray:
    """(64, 64, 3) uint8: the picture of `scene`, by the seed of its `key`."""
    rng = np.random.default_rng([population.SEED, 8, *key.encode()])
    if scene.face:
        person = next(person for person in population.people() if person.name == scene.name)
        rgb = draw.face(person, rng, scene.hat)
    else:
        rgb = draw.thing(scene.name, rng)
    if scene.style != population.PLAIN:
        rgb = draw.stylise(rgb, scene.style)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def questions() -> tuple[dict[str, dict[str, object]], list[dict[str, object]]]:
    """(GQA's questions by id, POPE's lines): each kind in wordings chosen by one seed."""
    rng = np.random.default_rng([population.SEED, 9])
    people = tuple(person.name for person in population.people())
    open_ended: dict[str, dict[str, object]] = {}
    leading: list[dict[str, object]] = []
    for key, scene, kinds in scenes():
        for kind in kinds:
            if kind == "leading":
                text, label = scene.ask(kind, rng, people)
                leading.append({"question_id": len(leading) + 1, "image": f"{key}.jpg", "text": text, "label": label})
                continue
            text, answer = scene.ask(kind, rng)
            about = {"structural": "verify" if kind == "hat" else "query", "detailed": kind}
            open_ended[f"{key}_{kind}"] = {"question": text, "answer": answer, "imageId": key, "types": about}
    return open_ended, leading


def write(folder: Path, encode: Callable[[np.ndarray], bytes]) -> None:
    """Write pictures and both files.

    Args:
        encode: A picture (64, 64, 3) uint8 to the bytes of a jpg.
    """
    (folder / "images").mkdir(parents=True)
    for key, scene, _ in scenes():
        (folder / "images" / f"{key}.jpg").write_bytes(encode(render(key, scene)))
    open_ended, leading = questions()
    (folder / "questions.json").write_text(json.dumps(open_ended, indent=1))
    (folder / "leading.json").write_text("".join(f"{json.dumps(line)}\n" for line in leading))
