"""Clean pairs of our own: a tiny model of one family against itself with one part computed in another way."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import twinlens
from bench.calibration.kept import DTYPES, SHAPES, is_clean, moved, told
from tests.parity.faults import during
from tests.tiny import ALL, EAGER_ONLY
from twinlens.report.table import Table

_matmul = torch.matmul


def _halves(x: Tensor, y: Tensor) -> Tensor:
    """A product as the sum of two."""
    half = x.shape[-1] // 2
    if half == 0 or y.ndim < 2:
        return _matmul(x, y)
    return _matmul(x[..., :half], y[..., :half, :]) + _matmul(x[..., half:], y[..., half:, :])


def products(dot: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], None]:
    """Every product with a weight by another function of x and Wᵀ."""

    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        y = dot(x, self.weight.mT)
        return y if self.bias is None else y + self.bias

    def conv(self: Any, x: Tensor) -> Tensor:
        return dot(x, self.weight) + self.bias

    def change(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.forward = MethodType(linear, module)
            elif isinstance(module, Conv1D):
                module.forward = MethodType(conv, module)

    return change


def _softmax(x: Tensor, dim: int = -1, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """In float32 inside, as torch's is: in half precision scores of tens are off by parts of 1: no rounding."""
    wide = x.float()
    e = (wide - wide.amax(dim, keepdim=True)).exp()
    return (e / e.sum(dim, keepdim=True)).to(dtype or x.dtype)


def _all(model: Any) -> None:
    for change in (WAYS["products in two parts"], WAYS["norms by division"], WAYS["softmax by exp and sum"]):
        change(model)


WAYS: dict[str, Callable[[Any], None]] = {
    "sdpa": lambda model: model.set_attn_implementation("sdpa"),
    "products in two parts": products(_halves),
    "products in float64": products(lambda x, w: _matmul(x.double(), w.double()).to(x.dtype)),
    "attention in two parts": lambda model: during(model, torch, matmul=_halves),
    "norms by division": lambda model: during(model, torch, rsqrt=lambda x: 1.0 / x.sqrt()),
    "softmax by exp and sum": lambda model: during(model, F, softmax=_softmax),
    "all of these": _all,
}


TURNS = ("plain", "padded", "one row", "long")


@dataclass(frozen=True)
class Pair:
    """Which pair it is."""

    family: str
    seed: int
    dtype: str
    way: str
    shape: str

    def run(self) -> dict[str, Any]:
        """What is said of it."""
        model: Any = ALL[self.family](self.seed, dtype=DTYPES[self.dtype])
        other = copy.deepcopy(model)
        WAYS[self.way](other)
        tokens, mask = SHAPES[self.shape](model, self.seed)
        start = time.perf_counter()
        report = twinlens.compare(model, other, tokens=tokens, mask=mask)
        return told(report) | {"moved": moved(report), "seconds": round(time.perf_counter() - start, 2)}


def pairs(seeds: range) -> Iterator[Pair]:
    """All of them, seed by seed."""
    for seed in seeds:
        for family in ALL:
            for dtype in DTYPES:
                for number, way in enumerate(WAYS):
                    if way == "sdpa" and family in EAGER_ONLY:
                        continue
                    shape = TURNS[(seed + number + len(dtype)) % len(TURNS)]  # each way sees each in turn
                    yield Pair(family, seed, dtype, way, shape)


def table(found: dict[Pair, dict[str, Any]]) -> Table:
    """By the part that is computed in another way, and dtype."""
    rows = list[tuple[str, ...]]()
    for way in WAYS:
        cells = [way]
        for dtype in DTYPES:
            these = [said for pair, said in found.items() if (pair.way, pair.dtype) == (way, dtype)]
            verdicts = Counter("wrong" if not is_clean(s) else s["verdict"] for s in these)
            cells.append(", ".join(f"{n} {v}" for v, n in sorted(verdicts.items())))
        rows.append(tuple(cells))
    return Table("Clean pairs", ("computed in another way", *DTYPES), tuple(rows))
