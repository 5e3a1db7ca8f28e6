"""What all operations share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from twinlens.fields import kinds

REGISTRY: dict[str, type[Op]] = {}
LARGE = 1 << 26
"""Entries of a weight beyond which it is widened part by part, each time anew: half a gigabyte in float64."""
_of_16_bits = ContextVar("of_16_bits", default=False)


@dataclass(frozen=True)
class Op:
    """An operation: its fields are its semantic parameters; calling it computes.

    Calling takes the tensors of the sites that a step reads, in order, then weights by name.
    `by_row` says for each read whether row `p` of the output needs row `p` of it only.
    `removable` is the parameter under which leaving the step out is reported; such a step maps its
    first read to a tensor of the same shape. `absorbs` names the operations before this one that
    its `fused` kernel computes as well: their sites are then hidden. `cuts` says that it takes a part of what it
    reads, as a view; `takes_mask` that it may read one more site, a mask in the place of its own; `chooses` that it
    writes places, not values, which are compared by what stands there (`compared`).
    `weight_axes` are those of weights that are no matrix [out, in] and no bias, by the axes of sites; `o` and `i` are
    fixed by the weights alone. `kept` are weights that stay in the precision in which they are stored, whatever the
    model's. `weight_parameters` say under which parameter, and where in the block, one is reported that is told apart.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True,)
    removable: ClassVar[str | None] = None
    absorbs: ClassVar[tuple[str, ...]] = ()
    cuts: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = False
    weight_axes: ClassVar[Mapping[str, str]] = {}
    kept: ClassVar[tuple[str, ...]] = ()
    weight_parameters: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init_subclass__(cls) -> None:
        REGISTRY[cls.__name__] = cls

    def __call__(self, *reads: Any, **weights: Any) -> Tensor:
        raise NotImplementedError

    def magnitude(self, *reads: Any, **weights: Any) -> Tensor:
        """Entry by entry, what one unit of roundoff inside this step is multiplied by, in float64.

        For y = W x + b it is √n times the root of Σ (W x)², term by term, and |b| (`project.summed`): at least
        |W| |x| + |b| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.5). The default, the magnitude
        of the result, is that of a step of a few multiplications.
        """
        return self(*reads, **weights).abs()

    def rows_alone(self) -> tuple[bool, ...]:
        """`by_row`, with the fields as they are; false of each read, where rows of the output need one another."""
        return self.by_row

    @classmethod
    def does_without(cls, argument: str) -> bool:
        """Whether a weight may be absent."""
        return inspect.signature(cls.__call__).parameters[argument].default is None

    def parts(self, entries: int, *reads: Any, **weights: Any) -> Iterator[tuple[Op, tuple[Any, ...], dict[str, Any]]]:
        """The same in parts, joined along the third axis of what is written, each with at most so many entries of a
        weight, so that none is ever there whole in a wider dtype. The default is all at once.
        """
        yield self, reads, weights

    def bare(self) -> Op | None:
        """The product alone, where the rest is done to each entry of it (`finished`). None where there is no rest."""
        return None

    def finished(self, value: Tensor) -> Tensor:
        """What the rest makes of the bare product."""
        return value

    def finished_magnitude(self, value: Tensor, magnitude: Tensor) -> Tensor:
        """`magnitude`, of the bare product and its own."""
        return magnitude

    def compared(self, value: Tensor, *reads: Any, **weights: Any) -> Tensor:
        """What tells how far a written value is from another: of a choice, what was chosen, whatever its order."""
        return value

    def thresholds(self) -> tuple[float, ...]:
        """Positions beyond which it computes otherwise: a prompt that ends before does not tell of it."""
        return ()

    def likely(self) -> Mapping[str, tuple[Any, ...]]:
        """By field, what an implementation gives it that does something else in the place of another field's part."""
        return {}

    def along(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Those axes of what it writes along which a weight of one axis goes, merged."""
        return axes

    def table_rows(self, count: int) -> int:
        """How long a table is that `count` ids are looked up in."""
        return count

    def folded(self, weight: Tensor) -> Tensor:
        """The constant that code may hold in the place of the checkpoint's weight, with a field taken in already."""
        return weight

    def unfolded(self, constant: Tensor) -> Tensor:
        """The checkpoint's weight of such a constant, in float32."""
        return constant.float()

    def undone(self, value: Tensor) -> Tensor:
        """What the weights alone gave, of what the step wrote; not finite where that cannot be told."""
        return value

    @property
    def scales_rows(self) -> bool:
        """Whether it multiplies all entries of a position by one number."""
        return False

    def fused(self) -> Callable[..., Tensor] | None:
        """The kernel that also computes the steps which `absorbs` names, or None."""
        return None

    def fuses(self, ops: tuple[Op, ...]) -> bool:
        """Whether the kernel can compute these operations, as they are."""
        return True

    def precomputed(self, length: int) -> tuple[Tensor, ...]:
        """Tensors that an implementation may have made once for all calls up to `length` tokens."""
        return ()

    def exact(self) -> Self:
        """The same meaning in float64 by the plain formula.

        It is the oracle, and what derivatives are taken of.
        """
        fields = dict[str, Any]()
        for name, kind, value in kinds(self):
            if kind.name == "dtype" or isinstance(value, torch.dtype):  # what a result is stored in rounds it, too
                fields[name] = torch.float64
            elif kind.name == "order":
                fields[name] = kind.alternatives[0]
        return self.replace(**fields)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@contextmanager
def of_16_bits() -> Generator[None]:
    """Within this, the unit of roundoff of `magnitude` is that of 16 bits: of what is stored, not of what is summed."""
    token = _of_16_bits.set(True)
    try:
        yield
    finally:
        _of_16_bits.reset(token)


def is_of_16_bits() -> bool:
    """Whether `magnitude` is asked within `of_16_bits`."""
    return _of_16_bits.get()


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x` times a number that is not 1; a tensor in its place, of which there may be a derivative, always counts."""
    return x if isinstance(factor, float) and factor == 1.0 else x * factor


def in_rows(count: int, W: Tensor, b: Tensor | None) -> Iterator[dict[str, Any]]:
    """A weight and its bias in blocks of rows."""
    for at in range(0, len(W), count):
        yield {"W": W[at : at + count]} | ({} if b is None else {"b": b[at : at + count]})


def cast(x: Tensor, to: torch.dtype | None) -> Tensor:
    """`x` in a precision, where one is given."""
    return x if to is None else x.to(to)
