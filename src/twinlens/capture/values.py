"""When two tensors hold the same value."""

from __future__ import annotations

from torch import Tensor

from twinlens.capture.layout import Wanted, distance, tolerance
from twinlens.capture.search import LOWEST


def near(theirs: Tensor, wanted: Wanted) -> bool:
    """Whether a tensor is a value, up to honest rounding."""
    return distance(theirs, wanted) <= tolerance(theirs, wanted.value)


def parallel(theirs: Tensor, wanted: Wanted) -> bool:
    """Whether a tensor is a value times some number."""
    x, y = theirs.float(), wanted.value.float()
    if wanted.counts is not None:
        x, y = x[wanted.counts], y[wanted.counts]
    factor = float((x * y).sum() / y.square().sum().clamp(min=1e-30))
    scaled = Wanted(y * factor, wanted.axes)
    return abs(factor) > 1e-6 and distance(x, scaled) <= tolerance(theirs, wanted.value)


def equal(x: Tensor, y: Tensor) -> bool:
    """Equal entries, masks of any kind alike."""
    return x.shape == y.shape and bool(((x == y) | ((x < LOWEST) & (y < LOWEST))).all())


def centred(x: Tensor, seen: Tensor) -> Tensor:
    """Scores without the mean of what each query sees."""
    x = x.masked_fill(~seen, 0.0)
    mean = x.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    return (x - mean).masked_fill(~seen, 0.0)
