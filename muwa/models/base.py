"""What a model family offers to the rest of muwa. `Clip`, `Diffusion` and `Vlm` are such families.

The pipeline, the methods, the report and the sweep use only what is declared here; they never ask which
family a model belongs to. docs/extending.md shows how to add a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from torch import Tensor

from muwa.types.example import Example

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.edit import Edit


class Weighted(Protocol):
    """The tensors that the deltas of an edit are added to. A patch is bound to them."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Name of a delta -> the tensor that it is added to. Other tensors may be among them."""

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of all weights that the patch is bound to."""


class Observer(Protocol):
    """The outputs of one model, each computed once. Metrics and layer searches look at them.

    Attributes:
        family: The models that give such outputs, for messages: "a CLIP (model=clip, clip_vit_b32, ...)".
        search: The layer search that looks at such outputs, for messages: "layer_search=pareto_bisect".
        run: Its cache stores the outputs.
    """

    family: ClassVar[str]
    search: ClassVar[str]
    run: Run

    @property
    def model(self) -> Any:
        """The model whose outputs these are."""

    def examples(self, edited: Any, task: Task) -> tuple[Example, ...]:
        """A few prompts or questions, each with the outputs of this model and of `edited`.

        Args:
            edited: The observer of the edited model.
        """


class Editable(Protocol):
    """An immutable model: an edit gives a new one.

    Attributes:
        source: Where the weights came from, for messages.
    """

    source: str

    @property
    def observer(self) -> type[Observer]:
        """The kind of observer that `observe` makes; a class attribute of the model."""

    @property
    def clips(self) -> Mapping[str, Clip]:
        """Encoder -> the CLIP that gradients are taken on.

        The encoder of a CLIP is "". A pipeline has one entry for each text encoder, a vision-language model
        one for its vision tower.
        """

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the model's outputs depend on."""

    def edited(self, edit: Edit) -> Self:
        """The model after `edit`. This model does not change."""

    def patch_base(self, edit: Edit) -> Weighted:
        """The weights that a patch of `edit` is bound to. Call it on the unedited model."""

    def observe(self, run: Run) -> Any:
        """The observer of this model, which uses the cache and the progress bars of `run`."""

    def about(self) -> Mapping[str, object]:
        """Provenance in plain values; at least "source" and "fingerprint"."""


def check_observer(where: str, wanted: type[Observer], model: Editable) -> None:
    """Raise if a method, a search or a metric does not support the outputs of this model.

    Args:
        where: The setting, for the message: "method=ga", "eval.canvas".
        wanted: The kind of observer that it supports.

    Raises:
        ValueError: The model has another kind of observer.
    """
    if model.observer is not wanted:
        raise ValueError(f"{where}: got {model.observer.family} ({model.source}), want {wanted.family}")
