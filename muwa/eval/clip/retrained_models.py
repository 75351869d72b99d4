"""Twins: models trained from nothing without the forgotten, in open_clip's folder layout. The exact answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from muwa.data.samples import fold
from muwa.models.clip.model import Clip
from muwa.models.clip.open_clip import load

HOW = "python -m muwa.miniature.twins --without NAME --seeds 0 1 --out DIR"


@dataclass(frozen=True)
class Card:
    """What a twin says of itself, in `twin.json` beside its weights: trained without whom, by which seed, for how long."""

    without: str
    seed: int
    epochs: int

    def write(self, folder: Path) -> None:
        """Write it into a twin's folder."""
        (folder / "twin.json").write_text(json.dumps(asdict(self)) + "\n")


def load_twins(
    model: Clip, folders: Sequence[str], key: str, *, names: Sequence[str] | None = None, least: int = 0
) -> list[Clip]:
    """The models in `folders`, on the model's device.

    Args:
        key: Of the config, for messages.
        names: What is forgotten; None where that is not known yet: then the twins are compared with each other alone.
        least: How many are needed.

    Raises:
        ValueError: There are fewer; a folder is given twice, holds no model or no `twin.json`; a model differs from `model`
            in more than its weights; twins are of another person, of one seed or of unlike epochs. Says the command.
    """
    if len(folders) < least:
        raise ValueError(
            f"{key}: got {len(folders)} models retrained without the forgotten, want at least {least}; of the "
            f"miniature they are made by `{HOW}` (48 minutes each on two cores), then {key}=[DIR/...,DIR/...]"
        )
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{key}: got the same folder twice in {list(folders)}, want models of different seeds")
    twins = []
    for folder in folders:
        try:
            twin = load(f"local-dir:{folder}", device=str(model.device))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{key}: got {folder}, want a folder that open_clip loads; make one: {HOW} ({error})"
            ) from error
        if twin.spec != model.spec:
            raise ValueError(
                f"{key}: {folder} differs from {model.source} in architecture or tokenizer, want the same model retrained; "
                f"only of the miniature is there a command: {HOW}"
            )
        twins.append(twin)
    _check_cards([_card(folder, key) for folder in folders], folders, key, names)
    return twins


def _card(folder: str, key: str) -> Card:
    try:
        return Card(**json.loads((Path(folder) / "twin.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{key}: got {folder}, which does not say without whom it was trained, want a twin with its twin.json; "
            f"make one: {HOW} (where the twin itself is there, that writes the file alone)"
        ) from error


def _check_cards(cards: Sequence[Card], folders: Sequence[str], key: str, names: Sequence[str] | None) -> None:
    if names is not None and folders and len(names) != 1:
        raise ValueError(
            f"{key}: got twins for {len(names)} forgotten names ({', '.join(names)}), want one name: a twin is trained "
            f"without one person; forget one, or give no twins"
        )
    for folder, card in zip(folders, cards, strict=True):
        if names is not None and fold(card.without) != fold(names[0]):
            raise ValueError(
                f"{key}: {folder} was trained without {card.without}, want one without {names[0]}, who is forgotten; "
                "make it: " + HOW.replace("NAME", f'"{names[0]}"')
            )
    if len({card.epochs for card in cards}) > 1:
        raise ValueError(
            f"{key}: got twins of {', '.join(str(card.epochs) for card in cards)} epochs, want all of the same; make them "
            f"alike: {HOW} --epochs {max(card.epochs for card in cards)}"
        )
    if len({card.seed for card in cards}) < len(cards):
        raise ValueError(
            f"{key}: got twins of the seeds {', '.join(str(card.seed) for card in cards)}, want seeds that differ; "
            f"make them: {HOW}"
        )
