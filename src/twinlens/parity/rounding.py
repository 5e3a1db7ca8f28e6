"""Is a difference rounding? Scales measured on the step itself, no tolerance set by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens import bits
from twinlens.ops.attention import UNREACHED
from twinlens.sites import axes

WIDE = 3.0
"""Rows beyond WIDE · u · (|W||x| and its like) are no rounding. Measured on honest pairs: see docs/rounding.md."""
TIGHT = 3.0
"""Rows within TIGHT · (this step's own error against float64) need no further look."""


@dataclass(frozen=True)
class Ratio:
    """An error against both scales: the largest over rows and over columns; and entries masked by one side only."""

    wide: float
    tight: float
    support: int = 0
    measured: bool = False
    """Whether the wide scale, too, is what the step was seen to err."""

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it."""
        return self.support == 0 and (self.wide <= WIDE or self.tight <= TIGHT)

    @property
    def is_loose(self) -> bool:
        """Whether only a scale holds it that may be many times what the step errs."""
        return not (self.is_close or self.measured)

    @property
    def is_close(self) -> bool:
        """Whether it is as close as the step's own rounding."""
        return self.support == 0 and self.tight <= TIGHT


def masked(site: str, tensor: Tensor) -> Tensor | None:
    """Where scores say that a query may not look; None for other sites."""
    return tensor < UNREACHED if axes(site)[-1] == "s" and site.endswith("scores") else None


def unmasked(site: str, tensor: Tensor) -> Tensor:
    """With 0 where scores say that a query may not look."""
    hidden = masked(site, tensor)
    return tensor if hidden is None else tensor.masked_fill(hidden, 0.0)


def difference(site: str, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """x - y, in float64; 0 where one side masks scores: `support` counts what only one does."""
    x, y = same_width(x, y)
    d = x.to(dtype) - y.to(dtype)
    mx, my = masked(site, x), masked(site, y)
    return d if mx is None or my is None else d.masked_fill(mx | my, 0.0)


def support(site: str, x: Tensor, y: Tensor, mask: Tensor) -> int:
    """How many entries of real tokens only one side masks."""
    mx, my = masked(site, x), masked(site, y)
    return 0 if mx is None or my is None else int(by_rows(site, mx ^ my, mask).sum())


def same_width(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary tables of half and of full width over their common columns."""
    width = min(x.shape[-1], y.shape[-1])
    return x[..., :width], y[..., :width]


def equal(site: str, x: Tensor, y: Tensor, mask: Tensor) -> bool:
    """Bit for bit over real rows, masked entries of scores alike whatever number says so; a NaN equals itself."""
    x, y = same_width(x, y)
    if x.dtype != y.dtype:
        return False
    if bits.equal(x, y):
        return True
    x, y = by_rows(site, x, mask), by_rows(site, y, mask)
    mx, my = masked(site, x), masked(site, y)
    if mx is not None and my is not None:
        return torch.equal(mx, my) and torch.equal(x.masked_fill(mx, 0), y.masked_fill(my, 0))
    return torch.equal(x, y)


def by_rows(site: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """The rows of real tokens as a matrix; rows that padding masks decide nothing."""
    names = axes(site)
    if names[:2] == ("b", "h"):
        tensor = tensor.transpose(1, 2)
    if names[0] != "b":
        return tensor.reshape(-1, tensor.shape[-1])
    if bool(mask.all()):
        return tensor.reshape(-1, tensor.shape[-1])
    if tensor.shape[0] != mask.shape[0]:
        tensor = tensor.expand(mask.shape[0], *tensor.shape[1:])
    return tensor[mask.bool()].reshape(-1, tensor.shape[-1])
