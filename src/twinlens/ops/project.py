"""Products with a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import FACTOR, choice, number, order, precision, size
from twinlens.ops.base import LARGE, Op, cast, in_rows, is_of_16_bits
from twinlens.shapes import Float


@dataclass(frozen=True)
class Project(Op):
    """y = W x + b, W [out, in].

    `heads` cuts the result into [heads, width]; with `from_heads` the input comes so and is read
    flat. `product`: torch's linear; a bare product and then the bias; a product with the transposed
    weight and the bias within it (GPT-2's Conv1D); einsum over head-shaped weights as
    TransformerLens writes it; head by head; a sum of two halves of the inner axis (tensor
    parallel); in float64.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True,)

    heads: int = size(0)
    from_heads: bool = size(False)
    product: str = order("linear", "matmul", "addmm", "einsum", "einsum_heads", "split", "float64")

    def __call__(
        self,
        x: Float[Tensor, "b p *i"],
        W: Float[Tensor, "o i"],
        b: Float[Tensor, " o"] | None = None,
    ) -> Float[Tensor, "b p *o"]:
        heads = x.shape[2] if self.from_heads else self.heads
        y = multiply(x.flatten(2), W, b, self.product, heads, self.from_heads)
        return y.unflatten(-1, (self.heads, -1)) if self.heads else y

    def parts(
        self, entries: int, x: Tensor, W: Tensor, b: Tensor | None = None
    ) -> Iterator[tuple[Op, tuple[Any, ...], dict[str, Any]]]:
        width = len(W) // self.heads if self.heads else 1
        for weights in in_rows(max(entries // W[:width].numel(), 1) * width, W, b):
            yield self.replace(heads=len(weights["W"]) // width if self.heads else 0), (x,), weights

    def magnitude(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        y = product_size(x.flatten(2), W, b)
        return y.unflatten(-1, (self.heads, -1)) if self.heads else y


@dataclass(frozen=True)
class Part(Op):
    """Queries, keys or values of a fused product, cut into heads.

    `layout`: all queries, then all keys, then all values; in another order; or `interleaved`: for each key/value head
    its query heads, then its key, then its value (GPT-NeoX, Falcon).
    """

    cuts: ClassVar[bool] = True

    which: str = size("q")
    heads: int = size(0)
    kv_heads: int = size(0)
    """As many as query heads where it is 0."""
    layout: str = choice(
        "qkv",
        "kqv",
        "vqk",
        "qvk",
        "kvq",
        "vkq",
        "interleaved",
        parameter="qkv.order",
        tied=True,
        enters="attn.hook_q",
    )

    def __call__(self, x: Float[Tensor, "b p f"]) -> Float[Tensor, "b p h e"]:
        kv = self.kv_heads or self.heads
        if self.layout == "interleaved":
            groups = x.unflatten(-1, (kv, self.heads // kv + 2, -1))
            if self.which == "q":
                return groups[..., :-2, :].flatten(2, 3)
            return groups[..., -2 if self.which == "k" else -1, :]
        counts = [self.heads if part == "q" else kv for part in self.layout]
        width = x.shape[-1] // sum(counts)
        part = x.split([n * width for n in counts], dim=-1)[self.layout.index(self.which)]
        return part.unflatten(-1, (-1, width))


@dataclass(frozen=True)
class Span(Op):
    """The entries of a row from `start` up to `stop`."""

    cuts: ClassVar[bool] = True

    start: int = size()
    stop: int = size()

    def __call__(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows m"]:
        return x[..., self.start : self.stop]


@dataclass(frozen=True)
class SharedKey(Op):
    """What stands in a latent from `start` on: the part of a key that is rotated, one for all heads."""

    cuts: ClassVar[bool] = True

    start: int = size()

    def __call__(self, latent: Float[Tensor, "b p n"]) -> Float[Tensor, "b p j z"]:
        return latent[..., self.start :].unsqueeze(2)


@dataclass(frozen=True)
class LatentKey(Op):
    """A key of latent attention: a head's own `plain` entries, then those that all heads share (DeepSeek-V2, report,
    section 2.1.3). `held`, whether head by head, as transformers does, or slot by slot: products read the memory in
    another order.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    plain: int = size()
    held: str = order("heads", "slots")

    def __call__(self, own: Float[Tensor, "b s k y"], shared: Float[Tensor, "b s j z"]) -> Float[Tensor, "b s k e"]:
        parts = own[..., : self.plain], shared.expand(-1, -1, own.shape[2], -1)
        if self.held == "slots":
            return torch.cat(parts, dim=-1)
        return torch.cat([part.transpose(1, 2) for part in parts], dim=-1).transpose(1, 2)


@dataclass(frozen=True)
class Half(Op):
    """The gate or the other half of a fused product of a gated MLP: one after the other, or entry by entry."""

    cuts: ClassVar[bool] = True

    which: str = size("gate")
    layout: str = choice(
        "gate_up", "up_gate", "interleaved", parameter="mlp.gate_order", tied=True, enters="mlp.hook_pre"
    )

    def __call__(self, x: Float[Tensor, "b p f"]) -> Float[Tensor, "b p m"]:
        if self.layout == "interleaved":
            return x[..., self.which == "up" :: 2]
        first, second = x.chunk(2, dim=-1)
        return first if self.layout.startswith(self.which) else second


@dataclass(frozen=True)
class Unembed(Op):
    """Logits: factor · W x + b, then cap · tanh(· / cap) (Gemma 2 report, section 2)."""

    softcap: float | None = number(None, parameter="unembed.softcap", off=True, power=-2.0, within=FACTOR)
    factor: float = number(1.0, parameter="unembed.scale", within=FACTOR)
    dtype: torch.dtype | None = precision(None, torch.bfloat16, torch.float32, parameter="unembed.dtype")
    product: str = order("linear", "matmul", "split", "float64")
    scaling: str = order("divide", "multiply")
    factored: str = order("multiply", "divide")

    def __call__(
        self,
        x: Float[Tensor, "b p d"],
        W: Float[Tensor, "v d"],
        b: Float[Tensor, " v"] | None = None,
    ) -> Float[Tensor, "b p v"]:
        bias = None if b is None else cast(b, self.dtype)
        return self.finished(multiply(cast(x, self.dtype), cast(W, self.dtype), bias, self.product, 0, False))

    def bare(self) -> Unembed:
        return self.replace(softcap=None, factor=1.0)

    def finished(self, value: Tensor) -> Tensor:
        if not (isinstance(self.factor, float) and self.factor == 1.0):
            value = value * self.factor if self.factored == "multiply" else value / (1.0 / self.factor)
        return soft_cap(value, self.softcap, self.scaling)

    def parts(
        self, entries: int, x: Tensor, W: Tensor, b: Tensor | None = None
    ) -> Iterator[tuple[Op, tuple[Any, ...], dict[str, Any]]]:
        for weights in in_rows(max(entries // W.shape[1], 1), W, b):
            yield self, (x,), weights

    def undone(self, value: Tensor) -> Tensor:
        if self.softcap is not None:
            value = torch.atanh(value / self.softcap) * self.softcap
        return value / self.factor

    def magnitude(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return self.finished_magnitude(self.bare()(x, W, b), product_size(x, W, b))

    def finished_magnitude(self, value: Tensor, magnitude: Tensor) -> Tensor:
        magnitude = magnitude * abs(float(self.factor))
        return magnitude if self.softcap is None else magnitude + self.finished(value).abs()


def soft_cap(x: Tensor, cap: float | None, scaling: str = "divide") -> Tensor:
    """cap · tanh(x / cap); None leaves x alone."""
    if cap is None:
        return x
    return torch.tanh(x / cap if scaling == "divide" else x * (1.0 / cap)) * cap


_STORED = 8
"""Of 16 bits: parts of a sum that are stored before they are added, at most, as where a product is split."""


def summed(squares: Tensor, terms: Tensor | int) -> Tensor:
    """What one unit of roundoff in a sum is multiplied by: √(n Σ tᵢ²), which is at least Σ |tᵢ|.

    The two are equal where all terms are alike. Where one is far larger, each of the n - 1 additions after it rounds
    at its size, and n roundings add up as √n (Higham and Mary 2019). What is stored in 16 bits is summed in 32.
    """
    if is_of_16_bits():
        terms = terms.clamp(max=_STORED) if isinstance(terms, Tensor) else min(terms, _STORED)
    return (squares * terms).sqrt()


def product_size(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """What one unit of roundoff in W x + b is multiplied by."""
    y = summed(F.linear(x.square(), W.square()), W.shape[1])
    return y if b is None else y + b.abs()


def multiply(x: Tensor, W: Tensor, b: Tensor | None, how: str, heads: int, from_heads: bool) -> Tensor:
    """x Wᵀ + b in one of several evaluation orders."""
    if how == "linear":
        return F.linear(x, W, b)
    if how == "addmm":
        flat = x.reshape(-1, x.shape[-1])
        y = torch.addmm(b, flat, W.T) if b is not None else flat @ W.T
        return y.view(*x.shape[:-1], -1)
    return _plus(_PRODUCTS[how](x, W, heads, from_heads), b)


def _plus(y: Tensor, b: Tensor | None) -> Tensor:
    return y if b is None else y + b


def _matmul(x: Tensor, W: Tensor, heads: int, from_heads: bool) -> Tensor:
    return torch.matmul(x, W.T)


def _einsum(x: Tensor, W: Tensor, heads: int, from_heads: bool) -> Tensor:
    """The weight head by head, as TransformerLens holds it: [h, d, e] going in, [h, e, d] out."""
    if not heads:
        return torch.einsum("bpi,oi->bpo", x, W)
    if from_heads:
        by_head = W.T.unflatten(0, (heads, -1)).contiguous()
        return torch.einsum("bphe,hed->bpd", x.unflatten(-1, (heads, -1)), by_head)
    by_head = W.unflatten(0, (heads, -1)).transpose(1, 2).contiguous()
    return torch.einsum("bpd,hde->bphe", x, by_head).flatten(2)


def _einsum_heads(x: Tensor, W: Tensor, heads: int, from_heads: bool) -> Tensor:
    """Each head's own product, summed over heads at the end where heads come in."""
    if not heads:
        return _matmul(x, W, heads, from_heads)
    if from_heads:
        by_head = W.T.unflatten(0, (heads, -1))
        return (x.unflatten(-1, (heads, -1)).unsqueeze(-2) @ by_head).squeeze(-2).sum(2)
    return torch.stack([x @ w.T for w in W.unflatten(0, (heads, -1))], dim=2).flatten(2)


def _split(x: Tensor, W: Tensor, heads: int, from_heads: bool) -> Tensor:
    half = x.shape[-1] // 2
    return F.linear(x[..., :half], W[:, :half]) + F.linear(x[..., half:], W[:, half:])


def _float64(x: Tensor, W: Tensor, heads: int, from_heads: bool) -> Tensor:
    wide = x.double()
    return torch.cat([F.linear(wide, w.double()).to(x.dtype) for w in W.split(max(LARGE // W.shape[1], 1))], dim=-1)


_PRODUCTS = {
    "matmul": _matmul,
    "einsum": _einsum,
    "einsum_heads": _einsum_heads,
    "split": _split,
    "float64": _float64,
}
