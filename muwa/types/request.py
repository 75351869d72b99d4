"""A request to forget that was met: a patch that weights carry."""

from __future__ import annotations

from dataclasses import dataclass

from muwa.types.edit import Move


@dataclass(frozen=True)
class Request:
    """What is known of one patch on a model, without the patch itself.

    Args:
        sha256: SHA-256 (hex) of the patch file; "" for an edit that was never a file.
        base_fingerprint: The fingerprint of the weights that the patch was made on.
        origin: The same fingerprint without the patches that these weights carried. It is `base_fingerprint`
            if there were none, and "" if it is not known.
        made_on: SHA-256 of the patches that these weights carried.
        task: The kind of what was forgotten: "identity", "object", "style", "class", "prompts"; "" if it is
            not known.
        names: What was forgotten.
        method: The module of the method; "" if it is not known.
        moves: The layers and steps of the edit.
        tensors: The names of the edited tensors in the patch.
        when: When the patch was put on the weights (UTC, ISO 8601); "" if it is not known.
    """

    sha256: str
    base_fingerprint: str
    origin: str
    made_on: tuple[str, ...]
    task: str
    names: tuple[str, ...]
    method: str
    moves: tuple[Move, ...]
    tensors: tuple[str, ...]
    when: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """The edited layers, each once."""
        return tuple(dict.fromkeys(move.layer for move in self.moves))

    @property
    def title(self) -> str:
        """What was forgotten, and the patch, for messages: "Kael Lindqvar (patch 1f0c2a3b4d5e)"."""
        return f"{', '.join(self.names) or 'nothing'} (patch {self.sha256[:12]})"
