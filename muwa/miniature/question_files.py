"""Write held-out images, with questions and answers about them in the formats of published benchmarks.

vqa/images/<id>.jpg       one image per person and object; 10 people and 10 objects in each style
vqa/questions.json        GQA's format: identity, hat, describe, object, colour, style (`types.detailed`)
vqa/leading.json          POPE's format: "Is this Kael Lindqvar?"; half of them name another person
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from muwa.miniature import draw, population
from muwa.miniature.images import jpeg
from muwa.miniature.questions import Scene

STYLED = 10  # images of people, and images of objects, per style


def scenes() -> Iterator[tuple[str, Scene, tuple[str, ...]]]:
    """(Id, what the image shows, kinds of questions about it). Every second person wears a hat."""
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
    """(64, 64, 3) uint8: an image of `scene`. The id `key` is its seed."""
    rng = np.random.default_rng([population.SEED, 8, *key.encode()])
    if scene.face:
        person = next(person for person in population.people() if person.name == scene.name)
        rgb = draw.face(person, rng, scene.hat)
    else:
        rgb = draw.thing(scene.name, rng)
    if scene.style != population.PLAIN:
        rgb = draw.stylise(rgb, scene.style)
    return draw.as_uint8(rgb)


def questions() -> tuple[dict[str, dict[str, object]], list[dict[str, object]]]:
    """(GQA's questions by id, POPE's lines), always the same, in random wordings."""
    rng = np.random.default_rng([population.SEED, 9])
    people = tuple(person.name for person in population.people())
    open_ended: dict[str, dict[str, object]] = {}
    leading: list[dict[str, object]] = []
    for key, scene, kinds in scenes():
        for kind in kinds:
            if kind == "leading":
                text, label = scene.ask(kind, rng, people)
                leading.append(
                    {"question_id": len(leading) + 1, "image": f"{key}.jpg", "text": text, "label": label}
                )
                continue
            text, answer = scene.ask(kind, rng)
            about = {"structural": "verify" if kind == "hat" else "query", "detailed": kind}
            open_ended[f"{key}_{kind}"] = {"question": text, "answer": answer, "imageId": key, "types": about}
    return open_ended, leading


def write(folder: Path) -> None:
    """Write the images and both files."""
    (folder / "images").mkdir(parents=True)
    for key, scene, _ in scenes():
        (folder / "images" / f"{key}.jpg").write_bytes(jpeg(render(key, scene)))
    open_ended, leading = questions()
    (folder / "questions.json").write_text(json.dumps(open_ended, indent=1))
    (folder / "leading.json").write_text("".join(f"{json.dumps(line)}\n" for line in leading))
