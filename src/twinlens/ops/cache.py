"""Keys and values that earlier calls left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from twinlens.fields import order, precision
from twinlens.ops.base import Op, cast
from twinlens.shapes import Float


@dataclass(frozen=True)
class Append(Op):
    """What earlier calls left, with this call's own behind it: the keys or values that the call reads, by slot.

    `dtype` is that in which a cache keeps them (None: as they come in); `held`, whether head by head, as transformers
    does, or slot by slot: products read the memory in another order.
    """

    by_row: ClassVar[tuple[bool, ...]] = (False, False)

    dtype: torch.dtype | None = precision(
        None, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, parameter="cache.dtype"
    )
    held: str = order("heads", "slots")

    def __call__(self, past: Float[Tensor, "b u *e"], new: Float[Tensor, "b p *e"]) -> Float[Tensor, "b s *e"]:
        if self.held == "slots" or new.ndim == 3:
            both = torch.cat((past.to(new.dtype), new), dim=1)
        else:
            both = torch.cat((past.to(new.dtype).transpose(1, 2), new.transpose(1, 2)), dim=2).transpose(1, 2)
        return cast(both, self.dtype).to(new.dtype)
