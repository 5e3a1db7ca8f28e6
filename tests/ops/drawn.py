"""An operation with its tensors, and how they are drawn."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from twinlens.fields import kinds
from twinlens.ops import Op

SIZES = {"b": 2, "p": 5, "s": 5, "h": 4, "k": 2, "e": 6, "d": 12, "m": 10, "v": 11, "f": 48,
         "x": 5, "t": 2, "y": 9, "n": 14, "j": 1, "z": 3, "D": 16, "F": 16, "M": 8, "u": 3}  # fmt: skip
INTEGERS = ("tokens", "positions", "mask", "slots")


@dataclass(frozen=True, repr=False)
class Case:
    """An operation, its reads as (axes, tensor), its weights."""

    op: Op
    reads: tuple[tuple[str, Tensor], ...]
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, op: Op | None = None) -> Tensor:
        op = op or self.op
        written = op(*(t for _, t in self.reads), **self.weights)
        if not op.chooses:
            return written
        exact = self.to(torch.float64)
        return op.exact().compared(written, *(t for _, t in exact.reads), **exact.weights)

    def __repr__(self) -> str:
        return f"Case({self.op!r})"

    def to(self, dtype: torch.dtype) -> Case:
        """The same with tensors of another dtype."""
        return dataclasses.replace(
            self,
            reads=tuple((a, t.to(dtype) if t.is_floating_point() else t) for a, t in self.reads),
            weights={name: t.to(dtype) for name, t in self.weights.items()},
        )

    def magnitude(self) -> Tensor:
        exact = self.to(torch.float64)
        return exact.op.exact().magnitude(*(t for _, t in exact.reads), **exact.weights)


class Drawer:
    """Tensors of one seed and one size."""

    def __init__(self, seed: int, size: float) -> None:
        self.generator, self.size = torch.Generator().manual_seed(seed), size

    def normal(self, axes: str) -> Tensor:
        shape = [SIZES[a] for a in axes.split()]
        return self.size * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def whole(self, axes: str, below: int) -> Tensor:
        return torch.randint(below, [SIZES[a] for a in axes.split()], generator=self.generator)


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


MOST = 96
"""Combinations of one operation's alternatives that are tried at most, spread evenly over all of them."""


def each(op: Op, *names: str) -> Iterator[Op]:
    """The operation with alternatives of its fields of these kinds: all combinations, or `MOST` of them."""
    options = {name: kind.alternatives for name, kind, _ in kinds(op) if kind.name in names}
    count = math.prod(map(len, options.values()))
    stride = 1 if count <= MOST else next(n for n in itertools.count(int(0.618 * count)) if math.gcd(n, count) == 1)
    for at in range(min(count, MOST)):
        number, chosen = at * stride % count, dict[str, Any]()
        for name, alternatives in options.items():
            number, which = divmod(number, len(alternatives))
            chosen[name] = alternatives[which]
        yield op.replace(**chosen)
