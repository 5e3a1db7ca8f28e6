"""Log-probabilities, which are all that a server shows of its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import precision
from twinlens.ops.base import Op, cast
from twinlens.shapes import Float, Int


@dataclass(frozen=True)
class _LogProbs(Op):
    """log softmax of the logits, at some ids of each position; an id below 0 is none, and has 0."""

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    dtype: torch.dtype | None = precision(torch.float32, None, torch.bfloat16, parameter="unembed.dtype")

    def _at(self, logits: Tensor, ids: Tensor) -> Tensor:
        values = F.log_softmax(cast(logits, self.dtype), dim=-1).gather(-1, ids.clamp_min(0))
        return values.masked_fill(ids < 0, 0.0)

    def _size(self, logits: Tensor, ids: Tensor) -> Tensor:
        """x - log Σ exp x: both terms are rounded."""
        x = logits.gather(-1, ids.clamp_min(0)).abs() + logits.logsumexp(-1, keepdim=True).abs()
        return x.masked_fill(ids < 0, 0.0)


@dataclass(frozen=True)
class ChosenLogProb(_LogProbs):
    """That of the token which follows."""

    def __call__(self, logits: Float[Tensor, "b p v"], following: Int[Tensor, "b p"]) -> Float[Tensor, "b p 1"]:
        return self._at(logits, following[..., None])

    def magnitude(self, logits: Tensor, following: Tensor) -> Tensor:
        return self._size(logits, following[..., None])


@dataclass(frozen=True)
class TopLogProbs(_LogProbs):
    """Those of some tokens, of the n best as one side has them."""

    def __call__(self, logits: Float[Tensor, "b p v"], ids: Int[Tensor, "b p t"]) -> Float[Tensor, "b p t"]:
        return self._at(logits, ids)

    def magnitude(self, logits: Tensor, ids: Tensor) -> Tensor:
        return self._size(logits, ids)
