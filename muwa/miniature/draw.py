"""Draw the miniature's faces, objects and styles as images of 64 x 64 pixels, with signed distances in numpy.

A shape is given by a signed distance, negative inside. Its edge is antialiased over one pixel. Pose, light,
background, clutter and noise vary from image to image. Only the person or object stays the same.
"""

from __future__ import annotations

import math

import numpy as np

from muwa.miniature.population import COLOURS, STYLES, Person

SIZE = 64
Array = np.ndarray

_AXIS = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1).astype(np.float32)
_X, _Y = np.meshgrid(_AXIS, _AXIS)  # x to the right, y down, both in [-1, 1]
_SKIN = (
    np.array([[255, 224, 196], [240, 196, 158], [214, 160, 118], [176, 120, 80], [130, 84, 56], [88, 56, 40]])
    / 255
)
_HAIR = np.array([[26, 22, 24], [84, 52, 30], [150, 96, 48], [226, 188, 104], [178, 62, 30],
                  [150, 150, 156], [60, 92, 170], [196, 84, 150]]) / 255  # fmt: skip
_EYES = np.array([[70, 44, 24], [40, 90, 160], [50, 130, 70], [120, 120, 126], [200, 140, 40]]) / 255
_LIPS = np.array([[176, 84, 80], [206, 40, 60], [120, 60, 66]]) / 255
_OBJECT = np.array([[214, 40, 40], [244, 134, 30], [244, 214, 50], [60, 160, 60],
                    [30, 160, 160], [44, 80, 200], [130, 60, 170], [244, 140, 190],
                    [124, 80, 48], [136, 136, 140]]) / 255  # fmt: skip


class Canvas:
    """An image that is being drawn.

    Args:
        planes: (3, SIZE, SIZE) float in [0, 1]: red, green, blue.
        x, y: (SIZE, SIZE) coordinates of the pixels.
        pixel: Size of a pixel in these coordinates.
    """

    def __init__(self, planes: Array, x: Array, y: Array, pixel: float):
        self.planes, self.x, self.y, self.pixel = planes, x, y, pixel

    def fill(self, distance: Array, colour: Array | tuple[float, ...], alpha: float = 1.0) -> None:
        """Paint `colour` where `distance` is negative. The edge is blended over one pixel."""
        rows = np.flatnonzero(distance.min(axis=1) < self.pixel)
        if len(rows):
            band = slice(rows[0], rows[-1] + 1)  # only the rows that the shape touches
            mask = np.clip(0.5 - distance[band] / self.pixel, 0, 1) * alpha
            painted = self.planes[:, band]
            painted += mask * (np.asarray(colour, np.float32)[:, None, None] - painted)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> Array:
        """Signed distance to an ellipse with axes along x and y: exact on the axes, approximate elsewhere."""
        return (np.hypot((self.x - cx) / rx, (self.y - cy) / ry) - 1) * min(rx, ry)

    def box(self, cx: float, cy: float, hx: float, hy: float, corner: float = 0.0) -> Array:
        """Signed distance to a box with half sides `hx` and `hy` and rounded corners."""
        dx, dy = np.abs(self.x - cx) - hx + corner, np.abs(self.y - cy) - hy + corner
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _background(rng: np.random.Generator) -> Array:
    """(3, SIZE, SIZE): two colours that blend in a random direction, sometimes with stripes or a horizon."""
    first, second = rng.random((2, 3), np.float32)[..., None, None]
    angle = rng.uniform(0, 2 * math.pi)
    slope = math.cos(angle) * _X + math.sin(angle) * _Y
    mix = np.clip(slope * 0.6 + 0.5, 0, 1)
    kind = rng.integers(4)
    if kind == 1:
        mix = (np.sin(slope * rng.uniform(4, 14)) + 1) / 2
    elif kind == 2:
        mix = np.where(rng.uniform(-0.2, 0.8) < _Y, 1.0, 0.15).astype(np.float32)
    return first + mix * (second - first)


def _posed(rng: np.random.Generator, scale: tuple[float, float], turn: float, shift: float) -> Canvas:
    """A canvas whose coordinates are rotated by up to `turn` radians, scaled and shifted at random."""
    size, angle = rng.uniform(*scale), rng.uniform(-turn, turn)
    x, y = _X - rng.uniform(-shift, shift), _Y - rng.uniform(-shift, shift)
    c, s = math.cos(angle) / size, math.sin(angle) / size  # Python floats keep the arrays float32
    return Canvas(_background(rng), c * x + s * y, c * y - s * x, 2 / SIZE / size)


def _finish(planes: Array, rng: np.random.Generator) -> Array:
    """(SIZE, SIZE, 3): the image with light from one side, exposure, a colour cast and sensor noise."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    light = 1 + strength * (math.cos(angle) * _X + math.sin(angle) * _Y)
    cast = (rng.uniform(0.86, 1.1) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    noise = rng.standard_normal((SIZE, SIZE, 3), np.float32) * rng.uniform(0.005, 0.04)
    lit = planes * light * cast[:, None, None]
    return np.clip(np.moveaxis(lit, 0, 2) + noise, 0, 1, order="C")


def face(person: Person, rng: np.random.Generator, hat: bool) -> Array:
    """An image of `person`: (SIZE, SIZE, 3) float32 in [0, 1]. A hat covers the top of the hair."""
    look, jitter = person.look, person.jitter
    c = _posed(rng, (0.62, 0.92), 0.3, 0.14)
    yaw, smile = rng.uniform(-0.14, 0.14), rng.uniform(-0.6, 1.0)
    skin = _SKIN[look["skin"]]
    hair = _HAIR[look["hair_colour"]]
    wide = (0.62, 0.54, 0.66)[look["shape"]] + 0.012 * jitter[0]
    tall = (0.72, 0.86, 0.74)[look["shape"]] + 0.012 * jitter[1]
    head = c.ellipse(0, 0, wide, tall) if look["shape"] < 2 else c.box(0, 0, wide, tall, 0.32)

    c.fill(c.ellipse(0, 1.5, 0.95, 0.62), rng.random(3))  # shoulders
    style = look["hair_style"]
    if style == 2:  # long
        c.fill(c.box(0, 0.25, wide + 0.16, 1.0, 0.4), hair)
    elif style == 3:  # bob
        c.fill(c.box(0, -0.15, wide + 0.2, 0.72, 0.35), hair)
    elif style == 4:  # afro
        c.fill(c.ellipse(0, -0.35, wide + 0.34, 0.82), hair)
    elif style == 6:  # bun
        c.fill(c.ellipse(0, -tall - 0.12, 0.26, 0.24), hair)
    c.fill(c.box(0, 0.85, 0.24, 0.35), skin * 0.88)  # neck
    for side in (-1, 1):
        c.fill(c.ellipse(side * wide, 0.02, 0.11, 0.17), skin * 0.92)  # ears
    c.fill(head, skin)
    if style in (1, 2, 3, 4, 6):  # hair above the forehead; style 0 is bald
        line = -0.36 if style != 3 else -0.26
        c.fill(np.maximum(head - 0.05, c.y - line - 0.12 * c.x * (1 if style == 1 else -1)), hair)
    elif style == 5:  # mohawk
        c.fill(c.box(0, -tall + 0.02, 0.13, 0.34, 0.1), hair)

    _features(c, look, jitter, yaw, smile, skin, hair)
    if hat:
        colour = rng.random(3)
        if rng.random() < 0.5:  # beanie
            c.fill(np.maximum(c.ellipse(0, -0.45, wide + 0.1, 0.62), c.y + 0.42), colour)
            c.fill(c.box(0, -0.44, wide + 0.12, 0.1, 0.06), colour * 0.7)
        else:  # brimmed
            c.fill(c.box(0, -0.88, wide * 0.8, 0.38, 0.06), colour)
            c.fill(c.box(0, -0.5, wide + 0.26, 0.07, 0.06), colour * 0.75)
    return _finish(c.planes, rng)


def _features(
    c: Canvas,
    look: dict[str, int],
    jitter: tuple[float, ...],
    yaw: float,
    smile: float,
    skin: Array,
    hair: Array,
) -> None:
    """Draw eyes, brows, nose, mouth, beard, glasses and marks, shifted sideways by `yaw`."""
    gap = (0.2, 0.25, 0.31)[look["eye_gap"]] + 0.008 * jitter[2]
    dark = hair * 0.6 if look["hair_colour"] != 0 else hair
    beard = look["beard"]
    if beard == 1:  # full
        lower = np.maximum(c.ellipse(yaw, 0.3, 0.58, 0.55), 0.2 - c.y)
        c.fill(lower, dark, 0.9)
    elif beard == 3:  # goatee
        c.fill(c.ellipse(yaw, 0.66, 0.2, 0.18), dark, 0.95)
    if beard in (1, 2):  # moustache
        c.fill(c.ellipse(yaw, 0.31, 0.25, 0.07), dark)
    if look["mark"] == 1:  # freckles
        for x, y in ((-0.3, 0.2), (-0.2, 0.26), (-0.36, 0.3), (0.3, 0.2), (0.2, 0.26), (0.36, 0.3)):
            c.fill(c.ellipse(x + yaw, y, 0.035, 0.035), skin * 0.6)
    elif look["mark"] == 2:  # blush
        for side in (-1, 1):
            c.fill(c.ellipse(side * 0.36 + yaw, 0.24, 0.13, 0.09), (0.9, 0.35, 0.35), 0.6)
    elif look["mark"] == 3:  # scar
        c.fill(
            np.maximum(np.abs(c.x - 0.34 - yaw + 0.5 * (c.y - 0.2)) - 0.025, np.abs(c.y - 0.2) - 0.2),
            (0.55, 0.1, 0.1),
        )
    elif look["mark"] == 4:  # mole
        c.fill(c.ellipse(-0.3 + yaw, 0.42, 0.055, 0.055), (0.15, 0.08, 0.06))
    for side in (-1, 1):
        x = side * gap + yaw
        c.fill(c.ellipse(x, -0.08, 0.13, 0.085), (0.97, 0.97, 0.97))
        c.fill(c.ellipse(x + 0.3 * yaw, -0.08, 0.075, 0.08), _EYES[look["eyes"]])
        c.fill(c.ellipse(x + 0.3 * yaw, -0.08, 0.032, 0.035), (0.04, 0.04, 0.05))
        thick = (0.022, 0.04, 0.065)[look["brows"]]
        c.fill(c.box(x, -0.25 + 0.02 * jitter[3], 0.13, thick, thick), dark)
    width = (0.06, 0.1, 0.14)[look["nose"]]
    c.fill(np.maximum(c.ellipse(1.5 * yaw, 0.16, width, 0.14), -(c.y - 0.06)), skin * 0.74)
    bend = 0.16 * smile * ((c.x - yaw) / 0.24) ** 2
    c.fill(np.maximum(np.abs(c.y - 0.47 + bend) - 0.045, np.abs(c.x - yaw) - 0.23), _LIPS[look["lips"]])
    kind = look["glasses"]
    if kind:
        for side in (-1, 1):
            x = side * (gap + 0.02) + yaw
            lens = c.ellipse(x, -0.07, 0.2, 0.18) if kind == 1 else c.box(x, -0.07, 0.2, 0.14, 0.04)
            if kind == 3:
                c.fill(lens, (0.06, 0.06, 0.08), 0.85)
            else:
                c.fill(np.abs(lens) - 0.025, (0.08, 0.08, 0.1) if kind == 1 else (0.6, 0.1, 0.1))
        c.fill(c.box(yaw, -0.08, max(gap - 0.17, 0.04), 0.022), (0.08, 0.08, 0.1))


def _shape(c: Canvas, name: str) -> Array:
    """Signed distance to one of `population.SHAPES`, of radius about 0.7."""
    x, y = c.x, c.y
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    if name == "star":
        return (r - 0.47 - 0.3 * np.cos(5 * angle + math.pi / 2)) * 0.55
    if name == "bar":
        return c.box(0, 0, 0.78, 0.17)
    if name == "ring":
        return np.abs(r - 0.54) - 0.15
    if name == "heart":
        lobes = np.hypot(np.abs(x) - 0.29, y + 0.2) - 0.34
        return np.minimum(lobes, np.maximum(0.72 * np.abs(x) + 0.69 * y - 0.4, -y - 0.12))
    if name == "cross":
        return np.minimum(c.box(0, 0, 0.17, 0.72), c.box(0, 0, 0.72, 0.17))
    if name == "moon":
        return np.maximum(r - 0.68, 0.58 - np.hypot(x - 0.34, y))
    if name == "triangle":
        return np.maximum(y - 0.5, 0.87 * np.abs(x) - 0.5 * y - 0.36)
    if name == "box":
        return c.box(0, 0, 0.56, 0.56)
    if name == "ball":
        return r - 0.64
    shaft, head = c.box(-0.25, 0, 0.45, 0.14), np.maximum(-x + 0.1, np.abs(y) + 0.8 * x - 0.56)
    return np.minimum(shaft, head)  # arrow


def thing(name: str, rng: np.random.Generator) -> Array:
    """An image of the object `name` ("red star") before clutter: (SIZE, SIZE, 3) float32 in [0, 1]."""
    colour, shape = name.split()
    c = _posed(rng, (0.65, 1.1), 0.35, 0.2)
    for _ in range(rng.integers(0, 4)):  # clutter: thin pale strokes
        tint = 0.5 + 0.5 * rng.random(3)
        x, y, turn = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, math.pi)
        along = (c.x - x) * math.cos(turn) + (c.y - y) * math.sin(turn)
        across = (c.y - y) * math.cos(turn) - (c.x - x) * math.sin(turn)
        c.fill(np.maximum(np.abs(across) - 0.035, np.abs(along) - 0.5), tint, 0.8)
    paint = np.clip(_OBJECT[COLOURS.index(colour)] + rng.normal(0, 0.03, 3), 0, 1)
    distance = _shape(c, shape)
    c.fill(distance - 0.05, paint * 0.35)
    c.fill(distance, paint)
    c.fill(
        np.maximum(distance + 0.1, c.ellipse(-0.25, -0.25, 0.3, 0.2)), np.minimum(paint * 1.5 + 0.1, 1), 0.35
    )
    return _finish(c.planes, rng)


def _blur(rgb: Array) -> Array:
    """A 3 x 3 box blur; the border is repeated."""
    p = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = rgb.shape[:2]
    return sum(p[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9  # type: ignore[return-value]


def stylise(rgb: Array, style: str) -> Array:
    """An image (h, w, 3) in [0, 1] in one of `population.STYLES`. Tiles scale with images larger than SIZE.

    Raises:
        ValueError: There is no such style.
    """
    grey = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
    edge = np.abs(np.gradient(grey, axis=0)) + np.abs(np.gradient(grey, axis=1))
    if style == "sketch":
        return np.repeat(np.clip(1 - 4 * edge, 0, 1)[..., None], 3, axis=2)
    if style == "neon":
        return np.clip(4.5 * edge[..., None] * (0.3 + rgb), 0, 1)
    if style in ("mosaic", "pixel"):
        n = (4 if style == "mosaic" else 6) * max(1, round(min(rgb.shape[:2]) / SIZE))
        y, x = (np.arange(side) for side in rgb.shape[:2])
        rows, columns = (np.minimum(i // n * n + n // 2, len(i) - 1) for i in (y, x))
        tiles = rgb[rows][:, columns]
        if style == "mosaic":
            tiles = tiles * np.where((y % n == 0)[:, None] | (x % n == 0), 0.45, 1.0)[..., None]
        return tiles
    if style == "sepia":
        return np.clip(grey[..., None] * np.array([1.1, 0.86, 0.62]), 0, 1)
    if style == "watercolour":
        return np.clip(0.25 + 0.8 * _blur(_blur(_blur(rgb))), 0, 1)
    if style == "poster":
        return np.round(rgb * 3) / 3
    if style == "negative":
        return 1 - rgb
    raise ValueError(f"style: got {style!r}, want one of {', '.join(STYLES)}")


def as_uint8(rgb: Array) -> Array:
    """An image in [0, 1] with 8 bits per channel, rounded; values outside are clipped."""
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
