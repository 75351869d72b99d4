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
        without: The names that it was trained without.
        seed: The seed of the training.
        epochs: The number of epochs of the training.
        precision: "bf16" | "fp32": the precision of the training's forward pass. Cards of earlier versions do
            not say it: those trainings were in bf16.
    """

    without: tuple[str, ...]
    seed: int
    epochs: int
    precision: str = "bf16"

    def write(self, folder: Path) -> None:
        """Write the card into the folder of a retrained model. A single name is written as a string."""
        alone = {"without": self.without[0]} if len(self.without) == 1 else {}
        (folder / CARD).write_text(json.dumps(asdict(self) | alone) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Card:
        """The card in the folder of a retrained model.

        Raises:
            OSError, ValueError, TypeError: There is none, or it is no such card.
        """
        said = read_json(Path(folder) / CARD, dict, "the card of a retrained model")
        without = said.pop("without", ())
        return cls((without,) if isinstance(without, str) else tuple(without), **said)


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
            model differs from `model` in more than its weights. Models were trained without other names,
            from the same seed, for different numbers of epochs or in different precisions. The message gives
            the command that makes such models.
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
        _check_trainings(list(cards.values()), key)


def _card(folder: str, key: str) -> Card:
    """The card in `folder`."""
    try:
        return Card.read(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{key}: got {folder}, which does not say without whom it was trained, want a retrained model "
            f"with its {CARD}; make one: {HOW} (if the weights are there already, that writes the file alone)"
        ) from error


def _check_names(cards: dict[str, Card], names: Sequence[str], key: str) -> None:
    """Raise unless every model was trained without exactly the names to forget."""
    wanted, quoted = " and ".join(names), " ".join(f'"{name}"' for name in names)
    for folder, card in cards.items():
        if {fold(name) for name in card.without} != {fold(name) for name in names}:
            raise ValueError(
                f"{key}: {folder} was trained without {' and '.join(card.without) or 'nobody'}, want one "
                f"without {wanted}, which the run forgets; make it: " + HOW.replace("NAME", quoted)
            )


def _check_trainings(cards: Sequence[Card], key: str) -> None:
    """Raise unless the trainings differ in their seeds, and in nothing else."""
    epochs, precisions, seeds = (
        [getattr(card, field) for card in cards] for field in ("epochs", "precision", "seed")
    )
    if len(set(epochs)) > 1:
        raise ValueError(
            f"{key}: got retrained models of {', '.join(map(str, epochs))} epochs, want equal numbers; make "
            f"them: {HOW} --epochs {max(epochs)}"
        )
    if len(set(precisions)) > 1:
        raise ValueError(
            f"{key}: got retrained models of the precisions {', '.join(precisions)}, want the same for all; "
            f"make them: {HOW} --precision {precisions[0]}"
        )
    if len(set(seeds)) < len(cards):
        raise ValueError(
            f"{key}: got retrained models of the seeds {', '.join(map(str, seeds))}, want seeds that "
            f"differ; make them: {HOW}"
        )
