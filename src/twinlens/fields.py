"""Fields that say of what kind they are.

An operation is a frozen dataclass. Each field that may be wrong in an implementation carries a
`Kind`, so that estimating, trying, reporting and mending need no other description of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Kind:
    """What a field is, said once, where the field is declared.

    `name`: *number* has a derivative; *integer* is read from the support of what differs, then
    tried; *choice* changes meaning; *dtype* is the precision of a computation; *order* changes bits
    only; *size* is geometry that weights already fix and that is never a hypothesis.
    `parameter`: the word under which a cause is reported.
    `off`: the field may be None, which switches the operation's part off.
    `power`: a number's smooth coordinate is value ** power; for a cap that is value ** -2, which is
    smooth at off (0) as cap · tanh(s / cap) = s - s³ / (3 cap²) + …. Power 0 stands for
    the logarithm.
    `enters`: the site within the block where a cause is reported, if not the step's own.
    `signed`: a number that may be negative; others are not.
    `within`: what a model may have; a fit that ends elsewhere found nothing.
    `read`: where it is off, a number is not estimated but read off the entries.
    `multiple`: what an integer is a multiple of.
    `shown_by`: in words, what a prompt must have that the field acts on.
    `natural`: values that implementations take for one another, tried as if they were a choice.
    `tied`: steps of one layer that have this field have one value of it (cos and sin, queries and
    keys).
    """

    name: Literal["number", "integer", "choice", "dtype", "order", "size"]
    parameter: str = ""
    off: bool = False
    power: float = 1.0
    alternatives: tuple[Any, ...] = ()
    enters: str | None = None
    tied: bool = False
    signed: bool = False
    within: tuple[float, float] = (0.0, math.inf)
    natural: tuple[float, ...] = ()
    read: bool = False
    multiple: int = 1
    shown_by: str = ""

    def allows(self, value: float) -> bool:
        """Whether a model may have this value."""
        return self.within[0] <= value <= self.within[1]


FACTOR = (1e-3, 1e6)
"""What a factor, a divisor or a cap of a model lies within."""


def _field(kind: Kind, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind})


def number(
    default: Any = MISSING,
    *,
    parameter: str,
    off: bool = False,
    power: float = 1.0,
    tied: bool = False,
    signed: bool = False,
    within: tuple[float, float] = (0.0, math.inf),
    natural: tuple[float, ...] = (),
    read: bool = False,
) -> Any:
    """A real constant of the formula; as a 0-dim tensor it has a derivative."""
    kind = Kind(
        "number", parameter, off=off, power=power, tied=tied, signed=signed, within=within, natural=natural, read=read
    )
    return _field(kind, default)


def integer(
    default: Any = MISSING,
    *,
    parameter: str,
    off: bool = False,
    tied: bool = False,
    multiple: int = 1,
    shown_by: str = "",
    enters: str | None = None,
) -> Any:
    """A count or an offset: no derivative."""
    kind = Kind("integer", parameter, off=off, tied=tied, multiple=multiple, shown_by=shown_by, enters=enters)
    return _field(kind, default)


def choice(
    default: Any, *others: Any, parameter: str, enters: str | None = None, tied: bool = False, shown_by: str = ""
) -> Any:
    """One of several meanings."""
    kind = Kind("choice", parameter, alternatives=(default, *others), enters=enters, tied=tied, shown_by=shown_by)
    return _field(kind, default)


def order(default: Any, *others: Any) -> Any:
    """One of several ways to compute the same: the first is the plain, differentiable formula."""
    return _field(Kind("order", "order", alternatives=(default, *others)), default)


def precision(
    default: torch.dtype | None, *others: torch.dtype | None, parameter: str, tied: bool = False,
    enters: str | None = None,
) -> Any:  # fmt: skip
    """The dtype of a computation; None is that of what comes in."""
    return _field(Kind("dtype", parameter, alternatives=(default, *others), tied=tied, enters=enters), default)


def size(default: Any = MISSING) -> Any:
    """Geometry that the weights fix."""
    return _field(Kind("size"), default)


def kinds(op: Any) -> Iterator[tuple[str, Kind, Any]]:
    """Each field of an operation: its name, its kind, its value."""
    for f in dataclasses.fields(op):
        yield f.name, f.metadata["kind"], getattr(op, f.name)


def kind_of(op: Any, name: str) -> Kind:
    """The kind of one field. Raises KeyError with the fields that there are."""
    for f in dataclasses.fields(op):
        if f.name == name:
            return f.metadata["kind"]
    known = [f.name for f in dataclasses.fields(op)]
    raise KeyError(f"{type(op).__name__} has no field {name!r}; it has {known}")


def to_smooth(kind: Kind, value: float | None) -> float:
    """A number in the coordinate in which it is smooth; off is 0."""
    if value is None:
        return 0.0
    return math.log(float(value)) if kind.power == 0.0 else float(value) ** kind.power


def from_smooth(kind: Kind, coordinate: Any) -> Any:
    """The number again; the coordinate may be a 0-dim tensor."""
    if kind.power == 0.0:
        return coordinate.exp() if isinstance(coordinate, torch.Tensor) else math.exp(coordinate)
    return coordinate if kind.power == 1.0 else coordinate ** (1.0 / kind.power)
