"""Models retrained from scratch without the target, the exact answer, in folders of open_clip's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from muwa.data.samples import fold
from muwa.json_files import read_json
from muwa.models.clip.model import Clip
from muwa.models.clip.open_clip import load

HOW = "python -m muwa.miniature.retrained --without NAME --seeds 0 1 --out DIR"
CARD = "twin.json"  # next to the weights; the name is that of earlier versions, whose folders stay valid


@dataclass(frozen=True)
class Card:
    """How a retrained model was trained, as its folder says it next to the weights.

    Args:
        without: The name that it was trained without.
        seed: The seed of the training.
        epochs: The number of epochs of the training.
    """

    without: str
    seed: int
    epochs: int

    def write(self, folder: Path) -> None:
        """Write the card into the folder of a retrained model."""
        (folder / CARD).write_text(json.dumps(asdict(self)) + "\n")


def load_retrained(model: Clip, folders: Sequence[str]) -> list[Clip]:
    """The models in `folders`, on the device of `model`.

    Raises:
        ValueError, FileNotFoundError: open_clip cannot load a folder.
    """
    device = str(model.device)
    return [load(f"local-dir:{folder}", None, device=device, seed=0) for folder in folders]


def check_retrained(
    model: Clip, folders: Sequence[str], names: Sequence[str], key: str, *, least: int = 0
) -> None:
    """Raise if the models in `folders` cannot serve as `model` retrained without the target.

    Args:
        names: The names to forget.
        key: The setting, for messages.
        least: How many retrained models are needed.

    Raises:
        ValueError: There are fewer than `least`. A folder is given twice, or holds no model or no card. A
            model differs from `model` in more than its weights. Models were trained without another name,
            from the same seed, or for different numbers of epochs. The message gives the command that makes
            such models.
    """
    if len(folders) < least:
        raise ValueError(
            f"{key}: got {len(folders)} models retrained without the target, want at least {least}; for "
            f"the miniature make them by `{HOW}` (48 minutes each on two cores), then {key}=[DIR/...,DIR/...]"
        )
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError(
            f"{key}: got the same folder twice in {list(folders)}, want models of different seeds"
        )
    for folder in folders:
        try:
            (retrained,) = load_retrained(model, [folder])
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{key}: got {folder}, want a folder that open_clip loads; make one: {HOW} ({error})"
            ) from error
        if retrained.spec != model.spec:
            raise ValueError(
                f"{key}: {folder} differs from {model.source} in architecture or tokenizer, want the same "
                f"model retrained; only for the miniature is there a command: {HOW}"
            )
    cards = {folder: _card(folder, key) for folder in folders}
    if cards:
        _check_names(cards, names, key)
        _check_seeds(list(cards.values()), key)


def _card(folder: str, key: str) -> Card:
    """The card in `folder`."""
    try:
        return Card(**read_json(Path(folder) / CARD, dict, "the card of a retrained model"))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{key}: got {folder}, which does not say without whom it was trained, want a retrained model "
            f"with its {CARD}; make one: {HOW} (if the weights are there already, that writes the file alone)"
        ) from error


def _check_names(cards: dict[str, Card], names: Sequence[str], key: str) -> None:
    """Raise unless every model was trained without the one name to forget."""
    if len(names) != 1:
        raise ValueError(
            f"{key}: got retrained models for {len(names)} names to forget ({', '.join(names)}), want one "
            "name: each is trained without one name; forget one, or give no retrained models"
        )
    for folder, card in cards.items():
        if fold(card.without) != fold(names[0]):
            raise ValueError(
                f"{key}: {folder} was trained without {card.without}, want one without {names[0]}, the "
                "name to forget; make it: " + HOW.replace("NAME", f'"{names[0]}"')
            )


def _check_seeds(cards: Sequence[Card], key: str) -> None:
    """Raise unless the models were trained for the same number of epochs, from different seeds."""
    epochs, seeds = ([getattr(card, field) for card in cards] for field in ("epochs", "seed"))
    if len(set(epochs)) > 1:
        raise ValueError(
            f"{key}: got retrained models of {', '.join(map(str, epochs))} epochs, want equal numbers; make "
            f"them: {HOW} --epochs {max(epochs)}"
        )
    if len(set(seeds)) < len(cards):
        raise ValueError(
            f"{key}: got retrained models of the seeds {', '.join(map(str, seeds))}, want seeds that "
            f"differ; make them: {HOW}"
        )
