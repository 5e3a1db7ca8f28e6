"""From token ids and positions to vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import FACTOR, integer, number, order
from twinlens.ops.base import Op, scaled
from twinlens.shapes import Float, Int


@dataclass(frozen=True)
class Embed(Op):
    """Token embedding times a factor: sqrt(d) in Gemma (Gemma report, section 2).

    The factor is rounded to the dtype of the table, as the released Gemma code does
    (huggingface/transformers#29402); `constant="exact"` multiplies by the unrounded one.
    """

    factor: float = number(1.0, parameter="embed.scale", within=FACTOR)
    constant: str = order("rounded", "exact")

    def __call__(self, tokens: Int[Tensor, "b p"], W: Float[Tensor, "v d"]) -> Float[Tensor, "b p d"]:
        x = F.embedding(tokens, W)
        if isinstance(self.factor, float) and self.factor == 1.0:
            return x
        factor = torch.as_tensor(self.factor, device=x.device)
        return x * (factor.to(x.dtype) if self.constant == "rounded" else self.factor)

    def parts(self, entries: int, tokens: Tensor, W: Tensor) -> Iterator[tuple[Op, tuple[Any, ...], dict[str, Any]]]:
        ids, places = tokens.unique(return_inverse=True)
        yield self, (places,), {"W": F.embedding(ids, W)}

    def folded(self, weight: Tensor) -> Tensor:
        return weight if self.factor == 1.0 else self.factor * weight


@dataclass(frozen=True)
class PositionEmbed(Op):
    """Learned positions; OPT reads its table two rows further on (`offset` 2)."""

    offset: int = integer(0, parameter="pos_embed.offset")

    def table_rows(self, count: int) -> int:
        return count + self.offset

    def __call__(self, positions: Int[Tensor, "b p"], W: Float[Tensor, "n d"]) -> Float[Tensor, "b p d"]:
        return F.embedding((positions + self.offset).clamp(0, len(W) - 1), W)


@dataclass(frozen=True)
class Branch(Op):
    """What a block adds to the residual stream: factor · y (Granite's residual_multiplier)."""

    factor: float = number(1.0, parameter="residual.scale", within=FACTOR, natural=(0.0, 1.0))

    def __call__(self, y: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        return scaled(y, self.factor)


@dataclass(frozen=True)
class Add(Op):
    """The residual stream: x + factor · y, and so on for what else is added; with one read, a copy.

    `association`: (x + y) + z, or x + (y + z).
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    factor: float = number(1.0, parameter="residual.scale", within=FACTOR)
    association: str = order("left", "right")

    def __call__(self, x: Float[Tensor, "*shape"], *added: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        terms = [x, *(scaled(y, self.factor) for y in added)]
        return reduce(torch.add, terms if self.association == "left" else reversed(terms))

    def magnitude(self, x: Tensor, *added: Tensor) -> Tensor:
        return x.abs() + sum((self.factor * y).abs() for y in added)
