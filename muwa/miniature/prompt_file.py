"""The miniature's prompt file, which muwa ships: `python -m muwa.miniature.prompt_file` writes it anew.

Prompts about 16 people and objects in the wordings of the miniature's captions, with seeds and guidances, in
the columns of I2P's and UnlearnDiffAtk's files.
"""

from __future__ import annotations

import csv
import io

from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.miniature.prompt_file")  # during the imports below, which take a moment

import numpy as np

from muwa.data.prompt_files import MINIATURE
from muwa.drafts import write_text
from muwa.miniature import population

COLUMNS = ("case_number", "prompt", "evaluation_seed", "evaluation_guidance", "concept")
MANY, FEW = 40, 8  # prompts of the first person and of the first object; of each other
NAMES = 8  # people and objects, each
GUIDANCES = (4.0, 5.0, 6.0)


def table() -> str:
    """The content of the file, always the same."""
    rng = np.random.default_rng([population.SEED, 10])
    people = [one.name for one in population.people()]
    faces = ["Kael Lindqvar", *(name for name in people if name != "Kael Lindqvar")][:NAMES]
    objects = [population.OBJECTS[i * 11 % len(population.OBJECTS)] for i in range(NAMES)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    number = 0
    for kind, names in (("face", faces), ("object", objects)):
        for name in names:
            texts: dict[str, None] = {}
            while len(texts) < (MANY if name == names[0] else FEW):
                texts[population.caption(name, kind, None, False, rng)] = None
            for text in texts:
                guidance = GUIDANCES[number % len(GUIDANCES)]
                writer.writerow([number, text, int(rng.integers(1 << 32)), guidance, name])
                number += 1
    return out.getvalue()


if __name__ == "__main__":
    with stopping.one_line(
        "muwa.miniature.prompt_file", "The file is as it was: type the same command again."
    ):
        write_text(MINIATURE, table())
