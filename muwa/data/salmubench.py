"""Read SALMUBench: images of invented people with captions that tie facts to them, in CLIP's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muwa.data.hub_tables import image_bytes, read, shards, text_of
from muwa.json_files import read_json
from muwa.types.data import Pairs
from muwa.types.short import short_repr

SPLITS = ("forget", "holdout_association", "holdout_identity", "retain_synth")
IDENTITIES, CAPTIONS, FRAGILE = (
    "identities_metadata.json",
    "sensitive_set_captions_metadata.json",
    "fragile_set_ids.json",
)


@dataclass(frozen=True)
class Associations:
    """The rows of one split.

    Attributes:
        pairs: Images with their captions; a key is the file name of the image.
        who: The id of the person whom each pair is about; "" if it is about none.
        where: Where each row stands, for messages.
    """

    pairs: Pairs
    who: tuple[str, ...]
    where: tuple[str, ...]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.who)

    def select(self, indices: list[int]) -> Associations:
        """The rows at `indices`, in that order."""
        return Associations(
            self.pairs.select(indices),
            tuple(self.who[i] for i in indices),
            tuple(self.where[i] for i in indices),
        )


@dataclass(frozen=True)
class SalmuBench:
    """What a download of SALMUBench holds.

    Attributes:
        splits: `SPLITS` -> its rows.
        names: Id of a person -> the name.
        values: (Id, field) -> the value, as text: ("17", "city") -> "Oslo".
        fields: File name of an image -> the field that its caption is about.
        fragile: File names of the fragile set, a part of retain_synth.
    """

    splits: Mapping[str, Associations]
    names: Mapping[str, str]
    values: Mapping[tuple[str, str], str]
    fields: Mapping[str, str]
    fragile: frozenset[str]

    def fact(self, split: str, row: int) -> tuple[str, str] | None:
        """(Name, value) of the fact that a caption is about; None if the files do not give both."""
        rows = self.splits[split]
        who = rows.who[row]
        value = self.values.get((who, self.fields.get(rows.pairs.keys[row], "")))
        return (self.names[who], value) if value and who in self.names else None


def salmubench(folder: Path, *, limit: int | None, setting: str) -> SalmuBench:
    """SALMUBench (arXiv 2603.26316): `data/<split>-*.parquet` and three JSON files beside `data`.

    The columns image, text, identity_id and file_name are read. In retain_synth the identity may be empty.

    Args:
        limit: At most so many rows per split, spread evenly; None reads all.
        setting: The setting that gave the folder, for messages.

    Raises:
        FileNotFoundError, ValueError: A file, column or field is missing. Says where.
    """
    identities = _object(folder / IDENTITIES, setting)
    captions = _object(folder / CAPTIONS, setting)
    fragile = _json(folder / FRAGILE, setting)
    if not isinstance(fragile, list):
        raise ValueError(f"{folder / FRAGILE}: want a list of file names, got a {type(fragile).__name__}")
    for who, person in identities.items():
        text_of(person, "name", f"{folder / IDENTITIES}: {who}")
    return SalmuBench(
        {split: _split(folder, split, limit, setting) for split in SPLITS},
        {who: person["name"] for who, person in identities.items()},
        {(who, field): str(value) for who, person in identities.items() for field, value in person.items()
         if isinstance(value, str | int | float)},
        {file: str(about["data_field"]) for file, about in captions.items() if about.get("data_field")},
        frozenset(map(str, fragile)),
    )  # fmt: skip


def _split(folder: Path, split: str, limit: int | None, setting: str) -> Associations:
    files = shards(folder, f"data/{split}-*.parquet", setting)
    rows = read(files, ("image", "text", "identity_id", "file_name"), limit=limit)
    if not rows:
        raise ValueError(f"{files[0]}: no rows in it")
    who = []
    for where, row in rows:
        if row["identity_id"] is None and split != "retain_synth":
            raise ValueError(f"{where}: identity_id is empty; want the person whom the caption is about")
        who.append("" if row["identity_id"] is None else str(row["identity_id"]))
    pairs = Pairs(
        tuple(text_of(row, "file_name", where) for where, row in rows),
        tuple(image_bytes(row["image"], where) for where, row in rows),
        tuple(text_of(row, "text", where) for where, row in rows),
    )
    return Associations(pairs, tuple(who), tuple(where for where, _ in rows))


def _json(path: Path, setting: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{setting}: no {path}; want a download of SALMUBench, with data/ beside it")
    return read_json(path, object, "a file of SALMUBench")


def _object(path: Path, setting: str) -> dict[str, dict[str, Any]]:
    found = _json(path, setting)
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise ValueError(f"{path}: want an object of objects by id, got a {type(found).__name__}")
    return found
