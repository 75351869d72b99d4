"""How well the scores of layers tell which layer keeps most, from runs that searched more layers than usual.

    python launch.py -m experiment=ten_identities method=slug_whitened layer_search.candidates=null name=gains
    python -m bench.layer_scores outputs/gains/DATE/TIME

searches every layer for ten people: 7 minutes a person. For many people, only the first layer by each score:

    python launch.py -m task.identity=A,B,... layer_search._target_=bench.layer_scores.FirstByEachScore
    python -m bench.layer_scores --firsts FOLDER

What a layer keeps is the largest kept margin of its feasible steps (`kept_margin` of results.json). Where a
search judges by outputs (model=sd, model=vlm), it is the largest change of the kept rate. A layer without a
feasible step ranks last.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import spearmanr

from bench import entry
from bench.common import show
from muwa.json_files import read_json
from muwa.layer_search.bisection import ParetoBisect
from muwa.layer_search.choice import Acceptance
from muwa.layer_search.pareto import ScoredLayers
from muwa.types.search import Layer

SCORES = {
    "gain": 1,
    "importance": 1,
    "alignment": -1,
}  # score -> whether a higher one is better (1) or a lower
TOWERS = (("vision",), ("text",), ("vision", "text"))
COLUMNS = ["towers", "score", "rank", "its first", "best of its first 3", "best of all", "best found"]
NOTHING = -1.0  # stands for what a layer without a feasible step keeps: below that of any step


@dataclass(frozen=True)
class FirstByEachScore(ParetoBisect):
    """A search of at most three layers: the first by gain, by importance and by low alignment."""

    def needs_retain_gradient(self, *, whitened: bool) -> bool:
        """Yes: alignment is one of the scores."""
        return True

    def layers_to_search(self, scored: ScoredLayers, acceptance: Acceptance) -> list[Layer]:
        """The first layer by each score. With `candidates`, which is not used, the runs stay comparable."""
        layers = [layer for layer in scored.layers[""].values() if layer.tower in self.towers]
        names = {
            max(layers, key=lambda layer: sign * (getattr(scored.scores[layer.name], score) or 0)).name
            for score, sign in SCORES.items()
        }
        return [layer for layer in layers if layer.name in names]


def kept(record: Mapping[str, Any]) -> dict[str, float]:
    """Layer -> what it keeps: the best of its feasible steps, for every layer that was searched."""
    best = {row["layer"]: NOTHING for row in record["trace"]}
    before = record["search"][0]["before"]["kept"]
    for row in record["trace"]:
        if row["feasible"]:
            change = row.get("kept_margin", row["kept"] - before)
            best[row["layer"]] = max(best[row["layer"]], change)
    return best


def ranked(record: Mapping[str, Any], score: str, towers: Sequence[str]) -> list[dict[str, Any]]:
    """The scores of the searched layers of some towers, the first by one score first."""
    searched = {row["layer"] for row in record["trace"]}
    rows = [row for row in record["scores"] if row["layer"] in searched and row["tower"] in towers]
    if any(row["alignment"] is None for row in rows):
        raise ValueError(
            f"{record['folder']}: its layers have no alignment, want runs with "
            "layer_search.candidates=null or layer_search._target_=bench.layer_scores.FirstByEachScore"
        )
    return sorted(rows, key=lambda row: -SCORES[score] * (row[score] or 0))


def measured(record: Mapping[str, Any], score: str, towers: Sequence[str]) -> dict[str, float]:
    """How one score ranks the layers of some towers, for one name.

    Returns:
        "rank": Spearman's correlation of the score with what is kept. "first", "three": what the first layer
        by the score keeps, and the best of its first three. "best": the best of all layers.

    Raises:
        ValueError: The run searched fewer than two layers of these towers.
    """
    margins = kept(record)
    rows = ranked(record, score, towers)
    if len(rows) < 2:
        raise ValueError(
            f"{record['folder']}: {len(rows)} layers of the {' and '.join(towers)} tower were searched, want "
            "two or more in every run of the sweep"
        )
    found = [margins[row["layer"]] for row in rows]
    rank = spearmanr([SCORES[score] * (row[score] or 0) for row in rows], found).statistic
    return {"rank": float(rank), "first": found[0], "three": max(found[:3]), "best": max(found)}


def all_layers(records: Sequence[Mapping[str, Any]]) -> None:
    """Print how each score ranks the layers of runs that searched all of them."""
    there = {row["tower"] for record in records for row in record["trace"]}
    table = []
    for towers in (towers for towers in TOWERS if there >= set(towers)):
        for score in SCORES:
            runs = [measured(record, score, towers) for record in records]
            means = {key: mean(run[key] for run in runs) for key in runs[0]}
            hits = sum(run["three"] == run["best"] for run in runs)
            table.append(
                [" + ".join(towers), score, f"{means['rank']:+.2f}"]
                + [f"{means[key]:.4f}" for key in ("first", "three", "best")]
                + [f"{hits}/{len(runs)}"]
            )
    title = f"{len(records)} names: rank correlation of a score with what is kept, and what is kept"
    show(title, COLUMNS, table, [])


def firsts(records: Sequence[Mapping[str, Any]]) -> None:
    """Print what the first layer by each score keeps, in runs that searched these layers only.

    The mean is over the names for which the first layer by every score has a feasible step.
    """
    found = {}
    for score in SCORES:
        rows = [(ranked(record, score, ("vision", "text"))[0]["layer"], kept(record)) for record in records]
        found[score] = [(layer, margins[layer]) for layer, margins in rows]
    feasible = [i for i in range(len(records)) if all(one[i][1] > NOTHING for one in found.values())]
    table = []
    for score, one in found.items():
        margins = [one[i][1] for i in feasible]
        differences = [found["gain"][i][1] - one[i][1] for i in feasible]
        error = 1.96 * stdev(differences) / sqrt(len(feasible))
        best = sum(one[i][1] == max(other[i][1] for other in found.values()) for i in range(len(records)))
        row = [score, str(len({layer for layer, _ in one})), f"{sum(m > NOTHING for _, m in one)}/{len(one)}"]
        row += [f"{mean(margins):.4f}", f"{min(margins):.4f}", f"{mean(differences):+.4f} ± {error:.4f}"]
        table.append([*row, f"{best}/{len(one)}"])
    columns = ["score", "layers", "feasible", "its first keeps", "at worst", "gain's keeps more by", "best"]
    notes = [f"Means over the {len(feasible)} names for which each of the three layers has a feasible step."]
    show(f"{len(records)} names: what the first layer by each score keeps", columns, table, notes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="the folder of a sweep")
    parser.add_argument("--firsts", action="store_true", help="the runs searched FirstByEachScore")
    args = parser.parse_args()
    records = [
        {"folder": path.parent, **read_json(path, dict, "the results of a run")}
        for path in sorted(args.sweep.glob("*/results.json"))
    ]
    if not records:
        raise ValueError(f"{args.sweep}: no RUN/results.json in it; give the folder of a sweep")
    (firsts if args.firsts else all_layers)(records)


if __name__ == "__main__":
    entry.run("bench.layer_scores", main)
