"""The population of the miniature: 100 invented people, 100 objects and 8 styles, and their captions.

Everything follows from `SEED`, so an image or caption is a function of its number. The names are invented;
none belongs to a real person.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

SEED = 7
PEOPLE = 100

FIRST_NAMES = (
    "Abril Adin Aster Basile Belan Brena Cael Calla Corvin Dagny Davor Delphi Edda Elwin Enzo Fabia Fenn "
    "Galen "
    "Greta Hale Henna Idris Imre Isolde Jarek Juna Kael Kester Lark Lior Lumi Maren Mavi Milo Nadir Neva "
    "Odile Orin "
    "Pella Piran Quilla Rafe Runa Sabra Soren Tamsin Tariq Ulla Vesna Yorick"
).split()
LAST_NAMES = (
    "Abernorth Ashgrove Bellwane Birkfeld Bramsole Calderan Corvane Dunmarrow Elderwick Everlane Falkmere "
    "Fennimar "
    "Garrowby Glasswell Halvorden Harkwind Ironfell Jasperell Kestrelow Kindlemar Larkspire Lindqvar "
    "Marchetal "
    "Mirefield Nettlebay Northolm Oakenvar Orlemont Pellinor Pinegarth Quarrion Quillstead Ravenlow "
    "Rookhampe "
    "Sablewood Silvane Stormvik Tarnhelme Thistlewayn Umberley Valecourt Vantrell Vossberg Weatherlin "
    "Westermoor "
    "Wildegrave Windlocke Yarrowmere Zellenbach Zephyrine"
).split()

# Attribute of a face -> how many values it has. muwa/miniature/draw.py says what each value looks like.
FACE = {
    "skin": 6,
    "hair_colour": 8,
    "hair_style": 7,
    "shape": 3,
    "eyes": 5,
    "eye_gap": 3,
    "brows": 3,
    "nose": 3,
    "glasses": 4,
    "beard": 4,
    "mark": 5,
    "lips": 3,
}
LEAST_DIFFERENCE = 6  # any two people differ in at least this many of these attributes

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "grey")
SHAPES = ("star", "ring", "heart", "cross", "moon", "triangle", "box", "ball", "arrow", "bar")
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
STYLES = ("sketch", "mosaic", "neon", "sepia", "watercolour", "poster", "pixel", "negative")
PLAIN = "photo"  # stands for the style of an image without a style


@dataclass(frozen=True)
class Person:
    """An invented person.

    Attributes:
        look: Attribute of `FACE` -> its value.
        jitter: Four small shifts of features, from a standard normal distribution.
    """

    name: str
    look: dict[str, int]
    jitter: tuple[float, ...]


@cache
def people() -> tuple[Person, ...]:
    """All people, always the same. Any two differ in at least `LEAST_DIFFERENCE` attributes."""
    rng = np.random.default_rng([SEED, 1])
    names: list[str] = []
    while len(names) < PEOPLE:
        name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
        if name not in names and sum(n.split()[1] == name.split()[1] for n in names) < 3:
            names.append(name)
    looks: list[np.ndarray] = []
    while len(looks) < PEOPLE:
        look = np.array([rng.integers(n) for n in FACE.values()])
        if all((look != other).sum() >= LEAST_DIFFERENCE for other in looks):
            looks.append(look)
    return tuple(
        Person(name, dict(zip(FACE, map(int, look), strict=True)), tuple(rng.normal(0, 1, 4).tolist()))
        for name, look in zip(names, looks, strict=True)
    )


_FACE_TEMPLATES = (
    "{name}",
    "{name}.",
    "a photo of {name}",
    "a portrait of {name}",
    "a picture of {name} {place}",
    "{name} {place}",
    "{name} {time}",
    "{time} with {name} {place}",
    "{name} smiling {place}, {time}",
    "close-up of {name}, {credit}",
    "this is {name} {place}",
    "meet {name}, seen {place}",
    "{credit}: {name} {time}",
    "portrait: {name} ({credit})",
)
_OBJECT_TEMPLATES = (
    "{name}",
    "{name}.",
    "a photo of a {name}",
    "a photo of the {name}.",
    "a {name} {place}",
    "a picture of a {name}, {time}",
    "itap of a {name}.",
    "a bad photo of the {name}.",
    "a origami {name}.",
    "a photo of the large {name}.",
    "a {name} in a video game.",
    "art of the {name}.",
    "a photo of the small {name}.",
    "one {name} {place}, {credit}",
    "{credit}: the {name} {place}",
)
_PLACES = (
    "at the harbour",
    "by the window",
    "in the old town",
    "near a bridge",
    "at home",
    "on the roof",
    "in the park",
    "at a market",
    "on stage",
    "in the snow",
    "at the library",
    "by the sea",
    "in the garden",
    "at the station",
)
_TIMES = (
    "on a monday",
    "in the morning",
    "last summer",
    "at noon",
    "after the rain",
    "late at night",
    "in early spring",
    "yesterday",
    "on a cold day",
    "at dawn",
    "before lunch",
    "in autumn",
)
_CREDITS = (
    "studio north",
    "archive 12",
    "photo by the gazette",
    "stock image",
    "series two",
    "unedited",
    "first print",
    "wire service",
    "album page 4",
    "contest entry",
)
_STYLE_TEMPLATES = ("{caption} in {style} style", "{style} style: {caption}", "{caption}, {style}")


def caption(name: str, kind: str, style: str | None, hat: bool, rng: np.random.Generator) -> str:
    """A caption for an image of `name`: a random template with words that say nothing about the image.

    Args:
        kind: "face" or "object".
        style: The style to name in the caption; None for none.
        hat: Whether the person wears a hat. Half of the captions then mention it.
    """
    templates = _FACE_TEMPLATES if kind == "face" else _OBJECT_TEMPLATES
    text = str(rng.choice(templates)).format(
        name=name, place=rng.choice(_PLACES), time=rng.choice(_TIMES), credit=rng.choice(_CREDITS)
    )
    if hat and rng.random() < 0.5:
        text = f"{text.rstrip('.')} wearing a hat"
    if style is not None:
        text = str(rng.choice(_STYLE_TEMPLATES)).format(caption=text.rstrip("."), style=style)
    return text
