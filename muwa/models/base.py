"""What a model family offers to the rest of muwa. `Clip`, `Diffusion` and `Vlm` are such families; docs/extending.md adds one.

The pipeline, the methods, the report and the sweep ask a model for what is declared here and never which family it is.
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
    """The tensors that the deltas of an edit are added to: what a patch is bound to."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Name of a delta -> the tensor it is added to; tensors that no delta touches may be among them."""

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of all weights that the patch is bound to."""


class Observer(Protocol):
    """What metrics and layer searches look at: the outputs of one model, each computed once.

    Attributes:
        family: The models that give such outputs, for messages: "a CLIP (model=clip, clip_vit_b32, ...)".
        search: The layer search that looks at such outputs, for messages: "layer_search=pareto_bisect".
    """

    family: ClassVar[str]
    search: ClassVar[str]
    run: Run

    @property
    def model(self) -> Any:
        """The model whose outputs these are."""

    def examples(self, edited: Any, task: Task) -> tuple[Example, ...]:
        """A few prompts or questions with the outputs of this model and of `edited`, the same kind of observer."""


class Editable(Protocol):
    """A model whose weights can be edited without touching it.

    Attributes:
        observer: The kind of observer that `observe` makes.
        source: Where the weights came from, for messages.
        clips: Encoder -> the CLIP that gradients are taken on. The encoder of a CLIP itself is "". A pipeline has one
            entry a text encoder, a vision-language model one for its vision tower.
    """

    observer: ClassVar[type[Observer]]
    source: str

    @property
    def clips(self) -> Mapping[str, Clip]:
        """See the class."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what the model gives."""

    def edited(self, edit: Edit) -> Self:
        """The model after `edit`. This one stays as it is."""

    def patch_base(self, edit: Edit) -> Weighted:
        """The weights that a patch of `edit` is bound to; this is the unedited model."""

    def observe(self, run: Run) -> Any:
        """The observer of this model, with the cache and the progress bars of `run`."""

    def about(self) -> Mapping[str, object]:
        """Provenance: at least "source" and "fingerprint", in plain values."""


def check_observer(where: str, wanted: type[Observer], model: Editable) -> None:
    """Raise if a method, a search or a metric cannot look at what this model gives.

    Args:
        where: The setting, for the message: "method=ga", "eval.canvas".
        wanted: The kind of observer that it looks at.

    Raises:
        ValueError: The model gives another kind of output.
    """
    if model.observer is not wanted:
        raise ValueError(f"{where}: got {model.observer.family} ({model.source}), want {wanted.family}")
