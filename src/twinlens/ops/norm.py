"""Root mean square norm and layer norm, in two steps: normalise, then weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import choice, number, order, precision, size
from twinlens.ops.base import Op, cast
from twinlens.shapes import Float


@dataclass(frozen=True)
class Normalize(Op):
    """x / sqrt(mean(x²) + eps) over the last axis (Zhang and Sennrich 2019).

    `kind="layer"` subtracts the mean first (Ba et al. 2016).
    `dtype` is that of the computation, `out` that of the result (None: as the input).
    `eps_place="outside"` is x / (sqrt(mean(x²)) + eps); `variance="unbiased"` divides the sum of squares by d - 1
    (Bessel's correction, torch's default for `std` and `var`). Where heads come in, `over="head"` takes each by itself
    (Qwen 3), `"whole"` all of them together (OLMo 2).
    """

    removable: ClassVar[str | None] = "norm.missing"

    eps: float = number(parameter="norm.eps", within=(0.0, 0.2))
    kind: str = choice("rms", "layer", parameter="norm.kind")
    eps_place: str = choice("inside", "outside", parameter="norm.eps_place")
    variance: str = choice("biased", "unbiased", parameter="norm.variance")
    dtype: torch.dtype | None = precision(torch.float32, None, torch.bfloat16, parameter="norm.dtype")
    out: torch.dtype | None = precision(None, torch.float32, parameter="norm.dtype")
    over: str = choice("head", "whole", parameter="norm.width")
    division: str = order("rsqrt", "sqrt")

    def __call__(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return self._normalized(x.flatten(2)).view(x.shape) if self._is_whole(x) else self._normalized(x)

    def _is_whole(self, x: Tensor) -> bool:
        return self.over == "whole" and x.ndim > 3

    def _normalized(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        h = cast(x, self.dtype)
        if self.kind == "layer":
            h = h - h.mean(-1, keepdim=True)
        mean_square = self._mean(h.pow(2))
        if self.eps_place == "outside":
            y = h / (mean_square.sqrt() + self.eps)
        elif self.division == "rsqrt":
            y = h * torch.rsqrt(mean_square + self.eps)
        else:
            y = h / (mean_square + self.eps).sqrt()
        return y.to(x.dtype if self.out is None else self.out)

    @property
    def scales_rows(self) -> bool:
        return self.kind == "rms" and self.over == "head"

    def magnitude(self, x: Tensor) -> Tensor:
        return self._size(x.flatten(2)).view(x.shape) if self._is_whole(x) else self._size(x)

    def _size(self, x: Tensor) -> Tensor:
        layer = self.kind == "layer"
        entries = x.abs() + (x.abs().mean(-1, keepdim=True) if layer else 0.0)
        centred = x - x.mean(-1, keepdim=True) if layer else x
        mean_square = self._mean(centred.pow(2))
        outside = self.eps_place == "outside"
        root = mean_square.sqrt() + self.eps if outside else (mean_square + self.eps).sqrt()
        return entries / root + self._normalized(x).abs()

    def _mean(self, squares: Tensor) -> Tensor:
        mean, count = squares.mean(-1, keepdim=True), squares.shape[-1]
        return mean if self.variance == "biased" else mean * (count / max(count - 1, 1))


@dataclass(frozen=True)
class NormWeight(Op):
    """(offset + w) · x + b. Gemma stores w about 0 and uses 1 + w (`offset` 1).

    `dtype` is that of the product (None: as it comes in), `sum_dtype` that of offset + w (None: the
    product's); the result has the dtype of the weight, or `out`.
    `kernel="fused"` is torch's own norm, which hides the normalised tensor.
    """

    absorbs: ClassVar[tuple[str, ...]] = ("Normalize",)
    removable: ClassVar[str | None] = "norm.missing"

    offset: float = number(0.0, parameter="norm.offset", signed=True, within=(-16.0, 16.0), natural=(0.0, 1.0))
    dtype: torch.dtype | None = precision(None, torch.float32, parameter="norm.dtype")
    sum_dtype: torch.dtype | None = precision(None, torch.bfloat16, parameter="norm.dtype")
    out: torch.dtype | None = size(None)
    flat: bool = size(False)
    """A weight for all heads together, where heads come in (OLMo 2), not one that all of them share."""
    kernel: str = order("plain", "fused")

    def __call__(
        self,
        x: Float[Tensor, "*rows d"],
        w: Float[Tensor, " w"],
        b: Float[Tensor, " w"] | None = None,
    ) -> Float[Tensor, "*rows d"]:
        w, b = self._as_read(x, w), None if b is None else self._as_read(x, b)
        weight = cast(w, self.dtype)
        if not (isinstance(self.offset, float) and self.offset == 0.0):
            weight = cast(self.offset + cast(weight, self.sum_dtype), self.dtype)
        y = cast(x, self.dtype) * weight
        return (y if b is None else y + cast(b, self.dtype)).to(w.dtype if self.out is None else self.out)

    def magnitude(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        w, b = self._as_read(x, w), None if b is None else self._as_read(x, b)
        y = (x * w).abs() + (self.offset * x).abs()
        return y if b is None else y + b.abs()

    def folded(self, weight: Tensor) -> Tensor:
        return weight if self.offset == 0.0 else self.offset + weight

    def unfolded(self, constant: Tensor) -> Tensor:
        return constant.float() - self.offset

    def along(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        return axes if self.flat else axes[-1:]

    def _as_read(self, x: Tensor, w: Tensor) -> Tensor:
        return w.view(x.shape[-2:]) if self.flat else w

    def fused(self) -> Callable[..., Tensor] | None:
        return self._kernel if self.kernel == "fused" else None

    def fuses(self, ops: tuple[Op, ...]) -> bool:
        """torch's kernels have eps inside the root, and the mean of all squares of the last axis."""
        plain = ("inside", "biased", "head")
        return all(isinstance(n, Normalize) and (n.eps_place, n.variance, n.over) == plain for n in ops)

    def _kernel(self, ops: tuple[Op, ...], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        (normalize,) = ops
        assert isinstance(normalize, Normalize)
        stored, wide = x.dtype, self.sum_dtype or self.dtype or w.dtype
        if self.offset != 0.0:  # a sum in another dtype: the kernel is given everything in that one
            x, w, b = x.to(wide), w.to(wide) + self.offset, None if b is None else b.to(wide)
        if normalize.kind == "layer":
            return F.layer_norm(x, (x.shape[-1],), w, b, float(normalize.eps)).to(stored)
        y = F.rms_norm(x, (x.shape[-1],), w, float(normalize.eps))
        return (y if b is None else y + b).to(stored)
