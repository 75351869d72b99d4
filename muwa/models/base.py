"""What a model family offers to the rest of muwa. `Clip`, `Diffusion` and `Vlm` are the families of muwa.

Family-independent code (pipeline, report, sweep, SLUG) uses only what is declared here. A method for one
family says so in `check`. docs/extending.md shows how to add a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from torch import Tensor

from muwa.types.example import Example

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.edit import Edit
    from muwa.types.request import Request


class Weighted(Protocol):
    """The weights that the deltas of an edit are added to. A patch is bound to them."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """All weights by name; a superset of the deltas' names."""

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 (hex) of all these weights."""


class Observer(Protocol):
    """The outputs of one model, each computed once. Metrics and layer searches look at them.

    Attributes:
        family: How messages call the models that give such outputs: "a CLIP (model=clip, clip_vit_b32, ...)".
        search: How messages call the layer search for such outputs: "layer_search=pareto_bisect".
        run: The services of the run; its cache stores the outputs.
    """

    family: ClassVar[str]
    search: ClassVar[str]
    run: Run

    @property
    def model(self) -> Any:
        """The model whose outputs these are."""

    def examples(self, edited: Any, task: Task) -> tuple[Example, ...]:
        """A few prompts or questions, each with the outputs of both models, for the report.

        Args:
            edited: The observer of the edited model.
        """


class Editable(Protocol):
    """A model that is never changed in place; `edited` returns a new one.

    Attributes:
        source: Where the weights came from, for messages: a name, a file or a folder.
        requests: The requests that the loaded weights carry, by the record beside them
            (`muwa.patch.ledger.requests_on`); none for original weights.
        place: The file or folder of this machine that the weights were read from; None for random weights and
            for a hub id.
    """

    source: str
    requests: tuple[Request, ...]
    place: Path | None

    @property
    def unedited(self) -> Self:
        """The same model with the weights that it was loaded with.

        Where the weights carry requests and their originals are known, it has the originals.
        """

    @property
    def observer(self) -> type[Observer]:
        """The kind of observer that `observe` makes; a class attribute of the model."""

    @property
    def clips(self) -> Mapping[str, Clip]:
        """Encoder name -> CLIP; a plain CLIP has the single key "". Gradients are computed on these CLIPs.

        A text-to-image pipeline has one entry per text encoder. A vision-language model has one entry, for
        its vision tower.
        """

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that the model's outputs depend on."""

    def edited(self, edit: Edit) -> Self:
        """A new model with the deltas of `edit` added to its weights."""

    def patch_base(self, edit: Edit) -> Weighted:
        """The weights that a patch of `edit` is bound to. Call it on the unedited model."""

    def observe(self, run: Run) -> Observer:
        """The observer of this model, of type `observer`. It uses the cache and progress bars of `run`."""

    def about(self) -> Mapping[str, object]:
        """Provenance in plain values; at least "source" and "fingerprint"."""


def check_observer(where: str, wanted: type[Observer] | None, model: Editable) -> None:
    """Raise if a method, a search or a metric does not support this model.

    Args:
        where: The setting, for the message: "method=ga", "eval.canvas".
        wanted: The kind of observer that the setting needs; None if it fits all models.

    Raises:
        ValueError: The model has another kind of observer.
    """
    if wanted is not None and model.observer is not wanted:
        raise ValueError(f"{where}: got {model.observer.family} ({model.source}), want {wanted.family}")
