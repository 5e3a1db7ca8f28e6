"""What code may do to a tensor on its way from one step to the next, which no declared model does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.fields import size
from twinlens.ops.base import Op
from twinlens.shapes import Float


@dataclass(frozen=True)
class Scaled(Op):
    """x times a number, or each index of an axis times one of its own; `axis` counts from 0."""

    factors: tuple[float, ...] = size()
    axis: int = size(0)

    def rows_alone(self) -> tuple[bool, ...]:
        return (len(self.factors) == 1 or self.axis != 1,)

    def __call__(self, x: Float[Tensor, "b p *rest"]) -> Float[Tensor, "b p *rest"]:
        if len(self.factors) == 1:
            return x * self.factors[0]
        each = torch.tensor(self.factors, dtype=torch.float64, device=x.device)
        each = each.to(torch.promote_types(x.dtype, torch.float32)).view(-1, *[1] * (x.ndim - 1 - self.axis))
        return (x * each).to(x.dtype)


@dataclass(frozen=True)
class Clipped(Op):
    """min(max(x, -bound), bound): `clip_qkv` of OLMo and DBRX, the clamps of half precision."""

    bound: float = size()

    def __call__(self, x: Float[Tensor, "b p *rest"]) -> Float[Tensor, "b p *rest"]:
        return x.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Rounded(Op):
    """x in a lower precision and back; by its name, since it is what the operation does, not how it is computed."""

    to: str = size()

    def __call__(self, x: Float[Tensor, "b p *rest"]) -> Float[Tensor, "b p *rest"]:
        return x.to(getattr(torch, self.to)).to(x.dtype)


@dataclass(frozen=True)
class Taken(Op):
    """Each index of an axis holds what stood at another one."""

    index: tuple[int, ...] = size()
    axis: int = size()

    def rows_alone(self) -> tuple[bool, ...]:
        return (self.axis != 1,)

    def __call__(self, x: Float[Tensor, "b p *rest"]) -> Float[Tensor, "b p *rest"]:
        return x.index_select(self.axis, torch.tensor(self.index, device=x.device))
