"""Clean pairs of our own: a tiny model of one family against itself with one part computed in another way."""

from __future__ import annotations

import copy
import functools
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
from bench.calibration import shuffled
from bench.calibration.kept import DTYPES, SHAPES, is_clean, moved, told
from twinlens.museum.hands import during
from twinlens.museum.tiny import ALL, EAGER_ONLY
from twinlens.report.table import Table

_matmul, _torch_softmax = torch.matmul, F.softmax


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


def _infinite(x: Tensor, dim: int = -1, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Scores that are not looked at are -inf, and a row that looks at nothing gives nothing."""
    unseen = x <= torch.finfo(x.dtype).min / 2
    return _torch_softmax(x.masked_fill(unseen, -torch.inf), dim, dtype=dtype).nan_to_num(0.0)


def _rounded(to: torch.dtype | None) -> Callable[[Any], None]:
    """Factors of the scores in a precision; None is the model's."""

    def change(model: Any) -> None:
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), float):
                module.scaling = float(torch.tensor(module.scaling, dtype=to or model.dtype))

    return change


def _garbage(model: Any) -> None:
    """Padding is embedded as large numbers."""
    forward, masks = model.forward, list[Tensor | None]()

    def noted(*args: Any, **kwargs: Any) -> Any:
        masks[:] = [kwargs.get("attention_mask")]
        return forward(*args, **kwargs)

    def spoiled(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        if masks[0] is None or masks[0].shape != out.shape[:2]:
            return out
        garbage = 50.0 * (torch.arange(out.shape[-1]) % 7 - 3).to(out.dtype)
        return torch.where(masks[0].bool()[..., None], out, garbage)

    model.forward = functools.wraps(forward)(noted)
    model.get_input_embeddings().register_forward_hook(spoiled)


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
    "-inf for the least number": lambda model: during(model, F, softmax=_infinite),
    "factors in float32": _rounded(torch.float32),
    "factors in the model's dtype": _rounded(None),
    "garbage in padding": _garbage,
    "heads in another order": shuffled.heads,
    "experts in another order": shuffled.experts,
}
PADDED = ("-inf for the least number", "garbage in padding")
"""What shows with padding only."""


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


@functools.cache
def _is_there(way: str, family: str) -> bool:
    """Whether a family has what is put in another order."""
    change = WAYS[way]
    return change not in (shuffled.heads, shuffled.experts) or shuffled.has(change, ALL[family]())


def pairs(seeds: range) -> Iterator[Pair]:
    """All of them, seed by seed."""
    for seed in seeds:
        for family in ALL:
            for dtype in DTYPES:
                for number, way in enumerate(WAYS):
                    if (way == "sdpa" and family in EAGER_ONLY) or not _is_there(way, family):
                        continue
                    turn = TURNS[(seed + number + len(dtype)) % len(TURNS)]  # each way sees each in turn
                    shape = "padded" if way in PADDED else turn
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
