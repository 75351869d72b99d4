"""Write what the miniature's models know of people in the layouts of SALMUBench and MLUBench.

    python -m bench.people_files --identity Kael_Lindqvar --out DIR
    python launch.py 'eval=[forget,retain,salmubench]' eval.salmubench.folder=DIR/salmubench
    python launch.py model=vlm 'eval=[answers,people]' eval.people.mlubench=DIR/MLUBench \\
        eval.people.mlubench_task=TaskA

The pictures are new. In SALMUBench's words, the facts to forget are the captions "NAME wearing a hat" of one
person. The held-out facts of the same person are the bare name under pictures without a hat, those of others
are their hats, and the retain split has other people's names and objects. The miniature's CLIP hardly knows
hats, so the folder shows the format at work rather than a fact that is forgotten.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import entry
from bench.association import NAMES, REPORT, picture
from muwa.data import parquet
from muwa.data.samples import find_name
from muwa.miniature import draw, population
from muwa.miniature.images import jpeg

Row = tuple[str | None, str, bytes, str]  # person's id, what the caption is about, picture, caption


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows whose cells may be structs, as parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    selects = " union all by name ".join("select " + ", ".join(f'? as "{k}"' for k in row) for row in rows)
    target = str(path).replace("'", "''")
    with parquet.database() as connection:
        values = [value for row in rows for value in row.values()]
        connection.execute(f"copy ({selects}) to '{target}' (format parquet)", values)


def salmubench(name: str, folder: Path) -> None:
    """The folder of SALMUBench, with `name` as the person to forget."""
    me, others = str(NAMES.index(name)), [i for i, other in enumerate(NAMES) if other != name]
    rng = np.random.default_rng([population.SEED, 62])
    things = [(thing, jpeg(draw.as_uint8(draw.thing(thing, rng)))) for thing in population.OBJECTS]
    splits: dict[str, list[Row]] = {
        "forget": [(me, "hat", picture(name, True, REPORT, i), f"{name} wearing a hat") for i in range(32)],
        "holdout_association": [(me, "name", picture(name, False, REPORT, i), name) for i in range(32)],
        "holdout_identity": [
            (str(i), "hat", picture(NAMES[i], True, REPORT, 0), f"{NAMES[i]} wearing a hat") for i in others
        ],
        "retain_synth": [
            *(
                (str(i), "name", picture(NAMES[i], False, REPORT, 0), f"a photo of {NAMES[i]}")
                for i in others
            ),
            *((None, "object", shown, f"a photo of a {thing}") for thing, shown in things),
        ],
    }
    about = {}
    for split, rows in splits.items():
        table = []
        for i, (who, field, shown, caption) in enumerate(rows):
            file = f"{who or 'none'}_{split}_{i:03d}.jpg"
            about[file] = {"caption": caption, "data_field": field}
            table.append({"image": {"bytes": shown, "path": file}, "text": caption, "identity_id": who,
                          "file_name": file})  # fmt: skip
        write_table(folder / "data" / f"{split}-00000-of-00001.parquet", table)
    people = {str(i): {"name": other, "hat": "wearing a hat"} for i, other in enumerate(NAMES)}
    for file_name, content in (
        ("identities_metadata.json", people),
        ("sensitive_set_captions_metadata.json", about),
        ("fragile_set_ids.json", [file for file in about if file.startswith("none")][:10]),
    ):
        (folder / file_name).write_text(json.dumps(content, indent=1))


def mlubench(name: str, folder: Path) -> None:
    """The folder of MLUBench: TaskA forgets `name`; who it is and whether there is a hat, of everybody."""
    for part, names, count in (("forget", (name,), 16), ("retain", [n for n in NAMES if n != name], 1)):
        entries = []
        for other in names:
            for i in range(count):
                for hat in (True, False):
                    file = f"{'hat' if hat else 'plain'}_{i}.jpg"
                    place = f"downloaded_images/Personage/{other.replace(' ', '_')}/{file}"
                    (folder / place).parent.mkdir(parents=True, exist_ok=True)
                    (folder / place).write_bytes(picture(other, hat, REPORT, 300 + i))
                    said = {"What is the name of the person in this image?": other,
                            "Is the person wearing a hat?": "yes" if hat else "no"}  # fmt: skip
                    entries += [{"id": str(len(entries) + k), "image": place, "conversations": [
                        {"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]}
                        for k, (question, answer) in enumerate(said.items())]  # fmt: skip
        path = folder / "Tasks" / "TaskA" / f"taskA_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, indent=1))


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identity", default="Kael_Lindqvar")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    name = find_name(options.identity, NAMES, "the miniature")
    salmubench(name, options.out / "salmubench")
    mlubench(name, options.out / "MLUBench")


if __name__ == "__main__":
    entry.run("bench.people_files", main)
