"""Scores, pattern, and what the heads read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import FACTOR, choice, integer, number, order, precision, size
from twinlens.ops.base import Op
from twinlens.ops.project import soft_cap, summed
from twinlens.shapes import Bool, Float, Int

_NEAREST = {"causal": 0, "strict": 1, "ahead": -1}
"""How far behind a query is the last key that it sees."""
UNREACHED = -5e3
"""No score of a model comes near; implementations mask with -1e4, -1e9, the smallest finite number or -inf."""


@dataclass(frozen=True)
class Scores(Op):
    """cap · tanh(q kᵀ / (scale · cap)), with `masked` where a query may not look (None: the smallest finite number).

    `scale` is the divisor (Vaswani et al. 2017, section 3.2.1), `softcap` the cap of Gemma 2
    (report, section 2), `window` the number of keys up to and including its own that a query sees
    (None: all), `chunk` the length of the chunks beyond which none sees: query i sees key j where i // chunk is
    j // chunk (Llama 4). A mask that is off by one is `causal="strict"` (a query does not see its own key) or
    `"ahead"` (it sees the next one). A mask that is `given` says where a query may look in the place of all these.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, False, False, True)
    takes_mask: ClassVar[bool] = True

    scale: float = number(parameter="attn.scale", within=FACTOR)
    softcap: float | None = number(None, parameter="attn.softcap", off=True, power=-2.0, within=FACTOR)
    window: int | None = integer(None, parameter="attn.window", off=True, shown_by="a prompt longer than the window")
    chunk: int | None = integer(None, parameter="attn.chunk", off=True, shown_by="a prompt longer than a chunk")
    causal: str = choice("causal", "none", "strict", "ahead", parameter="attn.mask")
    padding: str = choice("masked", "ignored", parameter="attn.mask", shown_by="padding on the left")
    masked: float | None = number(
        None, parameter="attn.mask", off=True, signed=True, read=True, within=(UNREACHED, math.inf)
    )
    kv_map: str = choice("repeat", "tile", "first", parameter="attn.kv_map", tied=True)
    scaling: str = order("multiply", "divide", "query", "both")
    product: str = order("matmul", "einsum", "split", "float64")

    def thresholds(self) -> tuple[float, ...]:
        return tuple(n for n in (self.window, self.chunk) if n is not None)

    def likely(self) -> Mapping[str, tuple[float, ...]]:
        """A mask that is multiplied, not added; and one that is capped with the scores."""
        return {"masked": (0.0,) if self.softcap is None else (0.0, -self.softcap)}

    def __call__(
        self,
        q: Float[Tensor, "b p h e"],
        k: Float[Tensor, "b s k e"],
        mask: Int[Tensor, "b t"],
        slots: Int[Tensor, " p"],
        given: Bool[Tensor, "b 1 p s"] | None = None,
    ) -> Float[Tensor, "b h p s"]:
        k = for_each_query_head(k, q.shape[2], self.kv_map)
        if self.scaling in ("query", "both"):
            q = q * (self.scale ** (-1 if self.scaling == "query" else -0.5))
        if self.scaling == "both":
            k = k * self.scale**-0.5
        s = _PRODUCTS[self.product](q.transpose(1, 2), k.transpose(1, 2))
        if self.scaling == "multiply":
            s = s * (1.0 / self.scale)
        elif self.scaling == "divide":
            s = s / self.scale
        s = soft_cap(s, self.softcap)
        lowest = torch.finfo(s.dtype).min if self.masked is None else self.masked
        return s.masked_fill(~(self.allowed(mask, slots, k.shape[1]) if given is None else given), lowest)

    def allowed(
        self, mask: Int[Tensor, "b t"], slots: Int[Tensor, " p"], count: int | None = None
    ) -> Bool[Tensor, "b 1 p s"]:
        """Where a query may look: at the last `count` of the slots, all by default."""
        first = 0 if count is None else mask.shape[1] - count
        keys = torch.arange(first, mask.shape[1], device=mask.device)
        behind = slots[:, None] - keys[None, :]
        see = torch.ones_like(behind, dtype=torch.bool) if self.causal == "none" else behind >= _NEAREST[self.causal]
        if self.window is not None:
            see = see & (behind < self.window)
        if self.chunk is not None:
            see = see & (slots[:, None] // self.chunk == keys[None, :] // self.chunk)
        see, real = see[None, None], mask[:, first:].bool()[:, None, None, :]
        return see & real if self.padding == "masked" else see.expand(len(mask), -1, -1, -1)

    def precomputed(self, length: int) -> tuple[Tensor, ...]:
        """The mask of a prompt without padding."""
        return (self.allowed(torch.ones(1, length), torch.arange(length))[0, 0],)

    def magnitude(self, q: Tensor, k: Tensor, mask: Tensor, slots: Tensor, given: Tensor | None = None) -> Tensor:
        k = for_each_query_head(k, q.shape[2], self.kv_map)
        squares = torch.matmul(q.square().transpose(1, 2), k.square().permute(0, 2, 3, 1))
        size = summed(squares, q.shape[-1]) / abs(float(self.scale))
        allowed = self.allowed(mask, slots, k.shape[1]) if given is None else given
        return size.masked_fill(~allowed, 0.0 if self.masked is None else abs(float(self.masked)))


@dataclass(frozen=True)
class Softmax(Op):
    """The pattern: softmax over keys.

    Computed in `dtype` (None: as the scores come in), stored as they come in. `sinks`: each head has one more key,
    whose score is a weight and whose value is nothing (gpt-oss). The largest score is subtracted inside, or before.
    """

    weight_axes: ClassVar[Mapping[str, str]] = {"S": "h"}
    weight_parameters: ClassVar[Mapping[str, tuple[str, str]]] = {"S": ("attn.sinks", "attn.hook_pattern")}

    dtype: torch.dtype | None = precision(torch.float32, None, torch.bfloat16, parameter="attn.softmax_dtype")
    sinks: bool = size(False)
    largest: str = order("inside", "before")

    def __call__(self, s: Float[Tensor, "b h p s"], S: Float[Tensor, " h"] | None = None) -> Float[Tensor, "b h p s"]:
        x = s if S is None else torch.cat((s, S.view(1, -1, 1, 1).expand(len(s), -1, s.shape[2], -1)), dim=-1)
        if self.largest == "before":
            x = x - x.max(dim=-1, keepdim=True).values
        return F.softmax(x, dim=-1, dtype=self.dtype)[..., : s.shape[-1]].to(s.dtype)

    def magnitude(self, s: Tensor, S: Tensor | None = None) -> Tensor:
        # exp of a score that is off by u |s| is off by u |s| of itself, in the term and in the sum
        seen = s > UNREACHED
        largest = s.abs().masked_fill(~seen, 0.0).amax(-1, keepdim=True)
        return self(s, S) * (2.0 + s.abs().masked_fill(~seen, 0.0) + largest)


@dataclass(frozen=True)
class Mix(Op):
    """What each head reads: pattern · v.

    `kernel="sdpa"` is torch's fused attention, which hides scores and pattern; with `sharing="broadcast"` it is given
    one key/value head for all queries as it is, with `"folded"` the queries that share a head as rows of one, where
    each of them is a single row under a mask (transformers, `pack_gqa`).
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, False)
    absorbs: ClassVar[tuple[str, ...]] = ("Scores", "Softmax")

    kv_map: str = choice("repeat", "tile", "first", parameter="attn.kv_map", tied=True)
    product: str = order("matmul", "einsum", "split", "float64")
    kernel: str = order("plain", "sdpa")
    sharing: str = order("expand", "broadcast", "folded")

    def __call__(self, pattern: Float[Tensor, "b h p s"], v: Float[Tensor, "b s k e"]) -> Float[Tensor, "b p h e"]:
        v = for_each_query_head(v, pattern.shape[1], self.kv_map)
        z = _PRODUCTS[self.product](pattern, v.transpose(1, 2).transpose(2, 3))
        return z.transpose(1, 2)

    def magnitude(self, pattern: Tensor, v: Tensor) -> Tensor:
        keys = (pattern != 0).sum(-1).transpose(1, 2).unsqueeze(-1)  # what is nothing rounds nothing
        return summed(self.exact()(pattern.square(), v.square()), keys)

    def fused(self) -> Callable[..., Tensor] | None:
        return self._sdpa if self.kernel == "sdpa" else None

    def fuses(self, ops: tuple[Op, ...]) -> bool:
        """torch's sdpa has no soft cap, no sinks, and no number of ours for what is masked."""
        scores, softmax = ops
        plain = isinstance(scores, Scores) and scores.softcap is None and scores.masked is None
        return plain and isinstance(softmax, Softmax) and not softmax.sinks

    def _sdpa(self, ops: tuple[Op, ...], q: Tensor, k: Tensor, mask: Tensor, slots: Tensor, v: Tensor) -> Tensor:
        scores = ops[0]
        assert isinstance(scores, Scores)
        near = all(n is None or k.shape[1] < n for n in (scores.window, scores.chunk))
        plain = scores.causal == "causal" and near and q.shape[1] == k.shape[1] and bool(mask.all())
        how: dict[str, Any] = {"is_causal": True}
        if not plain:
            see = scores.allowed(mask, slots, k.shape[1])
            how = {} if near and bool(see.all()) else {"attn_mask": _finite(see, mask, slots, q)}
        scale = 1.0 / float(scores.scale)
        if scores.scaling == "query":
            q, scale = q * scale, 1.0
        b, p, h, e = q.shape
        if self.sharing == "folded" and p == 1 and "attn_mask" in how and self.kv_map == "repeat":
            q = q.reshape(b, k.shape[2], h // k.shape[2], e).transpose(1, 2)
        elif self.sharing != "broadcast" or k.shape[2] > 1:
            k, v = (for_each_query_head(t, h, self.kv_map) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        z = F.scaled_dot_product_attention(q, k, v, scale=scale, **how).transpose(1, 2)
        return z.transpose(1, 2).reshape(b, p, h, -1) if z.shape[1] != p else z


def _finite(see: Tensor, mask: Tensor, slots: Tensor, q: Tensor) -> Tensor:
    """A mask by the smallest finite number where a real query sees no key: as in the plain rows, it reads all alike."""
    blind = ~see.any(-1) & mask[:, None, slots].bool()
    lowest = torch.finfo(q.dtype).min
    return torch.zeros_like(see, dtype=q.dtype).masked_fill(~see, lowest) if bool(blind.any()) else see


def for_each_query_head(x: Float[Tensor, "b s k e"], heads: int, kv_map: str) -> Float[Tensor, "b s h e"]:
    """Keys or values for every query head: each repeated, all of them tiled, or the first only."""
    groups = heads // x.shape[2]
    if groups == 1 and kv_map != "first":
        return x
    b, s, k, e = x.shape
    first = x.transpose(1, 2)
    if kv_map == "repeat":
        return first[:, :, None].expand(b, k, groups, s, e).reshape(b, heads, s, e).transpose(1, 2)
    if kv_map == "tile":
        return first.repeat(1, groups, 1, 1).transpose(1, 2)
    return first[:, :1].expand(b, heads, s, e).transpose(1, 2)


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y.transpose(2, 3))


def _einsum(x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("bhpe,bhse->bhps", x, y)


def _split(x: Tensor, y: Tensor) -> Tensor:
    half = math.ceil(x.shape[-1] / 2)
    return _matmul(x[..., :half], y[..., :half]) + _matmul(x[..., half:], y[..., half:])


def _float64(x: Tensor, y: Tensor) -> Tensor:
    return _matmul(x.double(), y.double()).to(x.dtype)


_PRODUCTS = {"matmul": _matmul, "einsum": _einsum, "split": _split, "float64": _float64}
