"""Which patches some tensors have now, which they are to have, and the tensors that follow.

    now  = cast(fp32(... cast(fp32(base) + delta_1) ...) + delta_n)      over the patches that are on
    then = the same over the patches that are wanted

Nothing is subtracted: a patch is taken off by computing the tensors again from the base's. So what is left is
bit for bit what the other patches alone give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from muwa.patch import names
from muwa.patch.apply import ADD, Patch
from muwa.patch.weights import HALVES, add_delta, equal

Deltas = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rewrite:
    """A change of some tensors.

    Args:
        base: Name -> the tensor without any patch, for every tensor that changes. Only its shape counts for
            those that are `unchecked`.
        on: The deltas of each patch that the tensors have, in the order in which they were put on.
        wanted: The deltas of each patch that they are to have.
        unchecked: Names of tensors that need not be `base`. Then `on` is empty, and the wanted deltas are
            added to whatever is there: the caller knows what it is.
    """

    base: Deltas
    on: tuple[Deltas, ...] = ()
    wanted: tuple[Deltas, ...] = ()
    unchecked: frozenset[str] = frozenset()

    def _mapped(self, change: Callable[[Deltas], Deltas]) -> Rewrite:
        on, wanted = (tuple(change(one) for one in some) for some in (self.on, self.wanted))
        return replace(self, base=change(self.base), on=on, wanted=wanted)

    def of(self, component: str) -> Rewrite:
        """The part of one component of a pipeline, with names in it."""
        mapped = self._mapped(lambda some: names.by_component(some).get(component, {}))
        inner = names.by_component(dict.fromkeys(self.unchecked)).get(component, {})  # type: ignore[arg-type]
        return replace(mapped, unchecked=frozenset(inner))

    def only(self, name: str) -> Rewrite:
        """The part of one tensor."""
        return self._mapped(lambda some: {name: some[name]} if name in some else {})

    def with_full_names(self) -> Rewrite:
        """The same with a CLIP's full names (`muwa.patch.names.to_full_names`)."""
        mapped = self._mapped(names.to_full_names)
        free = names.to_full_names({name: self.base[name] for name in self.unchecked if name in self.base})
        return replace(mapped, unchecked=frozenset(free))

    @property
    def takes_off(self) -> bool:
        """Whether a patch is taken off: then files that do not have it are left as they are."""
        return bool(self.on)

    def new_values(self, current: Deltas, where: str) -> dict[str, Tensor]:
        """The changed tensors, in the dtypes of `current`.

        `current` may be the base rounded to half precision, as `muwa.patch.weights.same_bits` allows.

        Args:
            where: The files, for messages.

        Raises:
            ValueError: `current` is not the base with the patches `on`; or the wanted patches are on it
                already.
        """
        base = {name: self._rounded(name, current[name]) for name in self.base}
        now = {name: _with(tensor, name, self.on) for name, tensor in base.items()}
        then = {name: _with(tensor, name, self.wanted) for name, tensor in base.items()}
        different = [name for name in base if not equal(current[name], now[name])]
        if not different:
            return then
        if self.on:
            raise ValueError(_not_on(where, len(self.on), different[0]))
        if all(equal(current[name], then[name]) for name in base):
            raise ValueError(f"the patch is applied already: {where} is its base plus its delta")
        raise ValueError(
            f"wrong base: {len(different)} of the {len(base)} tensors to edit differ in {where} from those "
            f"the patch was made for ({different[0]}). {ADD}"
        )

    def _rounded(self, name: str, current: Tensor) -> Tensor:
        """The base's tensor in the dtype of `current`: cast directly, or by way of a half precision.

        It is the cast that gives `current` with the patches `on`; without one, the direct cast.
        """
        if name in self.unchecked:
            return current
        casts = [self.base[name].to(dtype).to(current.dtype) for dtype in (current.dtype, *HALVES)]
        return next((x for x in casts if equal(current, _with(x, name, self.on))), casts[0])


def _with(tensor: Tensor, name: str, patches: Sequence[Deltas]) -> Tensor:
    """A tensor with the patches put on one after the other."""
    for deltas in patches:
        if name in deltas:
            tensor = add_delta(tensor, deltas[name])
    return tensor


def _not_on(where: str, count: int, different: str) -> str:
    if count == 1:
        return f"the patch is not on {where}: the tensors it touches are not its base plus its delta"
    return (
        f"these {count} patches are not on {where} in this order: {different} is not its base plus their "
        "deltas"
    )


def putting_on(patch: Patch) -> Rewrite:
    """Put a patch on its base."""
    return Rewrite(patch.base, wanted=(patch.deltas,))


def on_top(patches: Sequence[Patch]) -> Rewrite:
    """Put patches on weights that are known to be right for them."""
    shapes = {name: tensor for patch in patches for name, tensor in patch.base.items()}
    return Rewrite(shapes, wanted=tuple(patch.deltas for patch in patches), unchecked=frozenset(shapes))


def taking_off(patch: Patch) -> Rewrite:
    """Take off the only patch on its tensors."""
    return Rewrite(patch.base, on=(patch.deltas,))


def reordered(base: Deltas, on: Sequence[Patch], wanted: Sequence[Patch]) -> Rewrite:
    """Go from the patches `on` to the patches `wanted`, on the tensors in `base`."""
    return Rewrite(
        base,
        on=tuple({n: d for n, d in patch.deltas.items() if n in base} for patch in on),
        wanted=tuple({n: d for n, d in patch.deltas.items() if n in base} for patch in wanted),
    )
