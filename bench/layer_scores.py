"""How well the scores of layers tell which layer keeps most, from runs that searched every layer.

    python launch.py -m experiment=ten_identities method=slug_whitened layer_search.candidates=null name=gains
    python -m bench.layer_scores outputs/gains/DATE/TIME

What a layer keeps is the largest kept margin of its feasible steps (`kept_margin` of results.json). A layer
without a feasible step ranks last.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import spearmanr

from bench import entry
from bench.common import show
from muwa.json_files import read_json

SCORES = {
    "gain": 1,
    "importance": 1,
    "alignment": -1,
}  # score -> whether a higher one is better (1) or a lower
TOWERS = (("vision",), ("text",), ("vision", "text"))
COLUMNS = ["towers", "score", "rank", "its first", "best of its first 3", "best of all", "best found"]
NOTHING = -1.0  # stands for the kept margin of a layer without a feasible step: below any margin of a step


def kept(record: Mapping[str, Any]) -> dict[str, float]:
    """Layer -> the largest kept margin of its feasible steps, for every layer that was searched."""
    best = {row["layer"]: NOTHING for row in record["trace"]}
    for row in record["trace"]:
        if row["feasible"]:
            best[row["layer"]] = max(best[row["layer"]], row["kept_margin"])
    return best


def measured(record: Mapping[str, Any], score: str, towers: Sequence[str]) -> dict[str, float]:
    """How one score ranks the layers of some towers, for one name.

    Returns:
        "rank": Spearman's correlation of the score with what is kept. "first", "three": the kept margin of
        the first layer by the score, and the best of its first three. "best": the best of all layers.

    Raises:
        ValueError: The run searched fewer than two layers of these towers.
    """
    margins = kept(record)
    rows = [row for row in record["scores"] if row["layer"] in margins and row["tower"] in towers]
    if len(rows) < 2:
        raise ValueError(
            f"{record['folder']}: {len(rows)} layers of the {' and '.join(towers)} tower were searched, want "
            "two or more in every run of the sweep"
        )
    rows.sort(key=lambda row: -SCORES[score] * row[score])
    found = [margins[row["layer"]] for row in rows]
    rank = spearmanr([SCORES[score] * row[score] for row in rows], found).statistic
    return {"rank": float(rank), "first": found[0], "three": max(found[:3]), "best": max(found)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="the folder of a sweep")
    folder: Path = parser.parse_args().sweep
    records = [
        {"folder": path.parent, **read_json(path, dict, "the results of a run")}
        for path in sorted(folder.glob("*/results.json"))
    ]
    if not records:
        raise ValueError(f"{folder}: no RUN/results.json in it; give the folder of a sweep")
    table = []
    for towers in TOWERS:
        for score in SCORES:
            runs = [measured(record, score, towers) for record in records]
            means = {key: mean(run[key] for run in runs) for key in runs[0]}
            hits = sum(run["three"] == run["best"] for run in runs)
            table.append(
                [" + ".join(towers), score, f"{means['rank']:+.2f}"]
                + [f"{means[key]:.4f}" for key in ("first", "three", "best")]
                + [f"{hits}/{len(runs)}"]
            )
    title = f"{len(records)} names: rank correlation with the kept margin, and the kept margins"
    show(title, COLUMNS, table, [])


if __name__ == "__main__":
    entry.run("bench.layer_scores", main)
