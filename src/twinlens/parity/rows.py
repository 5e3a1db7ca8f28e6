"""Positions on which a step is run again, and the rounding that is put into one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from twinlens.sites import axes
from twinlens.spec import Step


class Rows:
    """Positions on which a step is examined, all of them or a few."""

    def __init__(self, positions: Tensor | None, length: int) -> None:
        self.positions = None if positions is None or len(positions) == length else positions
        self.share = 1.0 if self.positions is None else len(self.positions) / max(length, 1)

    def of(self, site: str, tensor: Tensor) -> Tensor:
        """These rows of a site's tensor."""
        name = site.removeprefix("candidate:")
        if self.positions is None or "p" not in axes(name):
            return tensor
        return tensor.index_select(axes(name).index("p"), self.positions)


class Noise:
    """Random rounding after every inner step: how far it is from there to the target."""

    def __init__(self, sizes: Mapping[str, Tensor], seed: int) -> None:
        """`sizes`: by site, entry by entry, what one rounding is there."""
        self.sizes = sizes
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, step: Step, value: Tensor) -> Tensor:
        """The value as one more rounding might have left it; a choice is made and not rounded."""
        if step.op.chooses:
            return value
        draw = torch.randn(value.shape, generator=self.generator, dtype=torch.float64).to(value.device)
        return value + self.sizes[step.writes] * draw
