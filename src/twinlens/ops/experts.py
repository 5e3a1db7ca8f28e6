"""Mixtures of experts: what those that a token is given to give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import FACTOR, choice, number, order
from twinlens.ops.base import Op, is_of_16_bits, scaled
from twinlens.ops.mlp import ACTIVATION_NAMES, act_size, activated
from twinlens.ops.project import multiply, product_size
from twinlens.shapes import Float, Int


@dataclass(frozen=True)
class Experts(Op):
    """Σ over a token's experts: weight · (V h + c), h = act(gate) · (up + shift), gate and up of U x + a.

    With `limit` gate is cut above it and up on both sides (gpt-oss). U [x, 2m, d] holds gates and ups as `layout` says,
    V [x, d, m]. `weighed="input"`: the weight is on what an expert reads (Llama 4, as released), not on what it gives.
    `kernel`: expert by expert, as torch's grouped product, or row by row.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, True, True)
    weight_axes: ClassVar[Mapping[str, str]] = {"U": "x o d", "V": "x d i", "a": "x o", "c": "x d"}
    weight_parameters: ClassVar[Mapping[str, tuple[str, str]]] = dict.fromkeys("ac", ("bias", "mlp.hook_out"))

    act: str = choice(*ACTIVATION_NAMES, parameter="mlp.act")
    slope: float = number(1.0, parameter="mlp.alpha", within=FACTOR)
    """Of the argument of the sigmoid in silu (1.702 in gpt-oss)."""
    shift: float = number(0.0, parameter="mlp.shift", signed=True, within=(-16.0, 16.0), natural=(0.0, 1.0))
    limit: float | None = number(None, parameter="mlp.limit", off=True, power=-2.0, within=FACTOR)
    layout: str = choice("gate_up", "up_gate", "interleaved", "interleaved_up_gate", parameter="mlp.gate_order")
    weighed: str = choice("output", "input", parameter="router.apply")
    formula: str = order("plain", "kernel")
    product: str = order("linear", "matmul")
    kernel: str = order("loop", "grouped", "rows")

    def __call__(
        self,
        x: Float[Tensor, "b p d"],
        chosen: Int[Tensor, "b p t"],
        weights: Float[Tensor, "b p t"],
        U: Float[Tensor, "x f d"],
        V: Float[Tensor, "x d m"],
        a: Float[Tensor, "x f"] | None = None,
        c: Float[Tensor, "x d"] | None = None,
    ) -> Float[Tensor, "b p d"]:
        if x.is_meta:
            return torch.empty_like(x)  # data decide what is run
        flat = (x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1))
        return _KERNELS[self.kernel](self, *flat, U, V, a, c).view(x.shape)

    def hidden(self, both: Tensor) -> Tensor:
        """What the second product reads, of what the first one gave."""
        gate, up = self._parts(both)
        if self.limit is not None:
            gate, up = torch.minimum(gate, _like(gate, self.limit)), up.clamp(-self.limit, self.limit)
        plain = isinstance(self.slope, float) and self.slope == 1.0
        active = activated(self.act, self.formula, gate) if plain else gate * torch.sigmoid(gate * self.slope)
        if isinstance(self.shift, float) and self.shift == 0.0:
            return active * up
        return (up + self.shift) * active

    def factors(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What an expert's input is multiplied by, and what its output."""
        return (None, weights) if self.weighed == "output" else (weights, None)

    def _parts(self, both: Tensor) -> tuple[Tensor, Tensor]:
        apart = self.layout.startswith("interleaved")
        first, second = (both[..., 0::2], both[..., 1::2]) if apart else both.chunk(2, dim=-1)
        return (second, first) if self.layout.endswith("up_gate") else (first, second)

    def magnitude(
        self, x: Tensor, chosen: Tensor, weights: Tensor, U: Tensor, V: Tensor, a: Tensor | None = None,
        c: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        rows, total = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for e, at, slot in _hit(chosen.flatten(0, 1), len(U)):
            before, after = self.factors(weights.flatten(0, 1)[at, slot, None])
            read = _times(rows[at], before)
            y = F.linear(read, U[e], None if a is None else a[e])
            gate, up = self._parts(y)
            gate_size, up_size = self._parts(product_size(read, U[e], None if a is None else a[e]))
            active = act_size(self.act, gate)
            steep = 2.0 * gate.abs() if self.act == "relu2" else 1.2
            other = (up + self.shift).abs()
            out = self._carried((2 * active * other, active * up_size, steep * gate_size * other), active * other, V[e])
            out = out if c is None else out + 2 * c[e].abs()
            total.index_add_(0, at, _times(out, None if after is None else after.abs()))
        return total.view(x.shape)

    @staticmethod
    def _carried(sizes: tuple[Tensor, ...], h: Tensor, V: Tensor) -> Tensor:
        """What roundings of the second product's input come to, and its own.

        In 16 bits the input is stored, and what is lost of one entry has nothing to do with what is lost of another.
        """
        if not is_of_16_bits():
            return 2 * product_size(sum(sizes, torch.zeros_like(h)), V, None)
        lost = torch.stack(sizes).square().sum(0)
        return (F.linear(lost, V.square()) + product_size(h, V, None).square()).sqrt()


@dataclass(frozen=True)
class WithShared(Op):
    """What the chosen experts give and, times `factor`, what those give that all tokens share."""

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    factor: float = number(1.0, parameter="experts.shared", signed=True, within=(-16.0, 16.0), natural=(0.0, 1.0))

    def __call__(self, chosen: Float[Tensor, "b p d"], shared: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        return chosen + scaled(shared, self.factor)

    def magnitude(self, chosen: Tensor, shared: Tensor) -> Tensor:
        return chosen.abs() + (self.factor * shared).abs()


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _like(x: Tensor, value: float) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _hit(chosen: Int[Tensor, "n t"], experts: int) -> list[tuple[int, Tensor, Tensor]]:
    """Each expert that some row chose: which rows, and as which of their experts."""
    found = list[tuple[int, Tensor, Tensor]]()
    for e in range(experts):
        slot, at = torch.where((chosen == e).T)
        if len(at):
            found.append((e, at, slot))
    return found


def _loop(
    op: Experts, x: Tensor, chosen: Tensor, weights: Tensor, U: Tensor, V: Tensor, a: Tensor | None, c: Tensor | None
) -> Tensor:
    def product(x: Tensor, W: Tensor, b: Tensor | None, e: int) -> Tensor:
        return multiply(x, W[e], None if b is None else b[e], op.product, 0, False)

    total = torch.zeros_like(x)
    for e, at, slot in _hit(chosen, len(U)):
        before, after = op.factors(weights[at, slot, None])
        y = _times(product(op.hidden(product(_times(x[at], before), U, a, e)), V, c, e), after)
        total = total.index_add(0, at, y.to(total.dtype))
    return total


def _grouped(
    op: Experts, x: Tensor, chosen: Tensor, weights: Tensor, U: Tensor, V: Tensor, a: Tensor | None, c: Tensor | None
) -> Tensor:
    """Rows sorted by expert, one product for all of them; a row's experts are summed at the end."""
    ids, order = chosen.reshape(-1).sort()
    counts = torch.histc(ids.float(), bins=len(U), min=0, max=len(U) - 1)
    ends = counts.cumsum(0).to(torch.int32)

    def product(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        y = F.grouped_mm(x.to(W.dtype), W.mT, offs=ends)
        return y if b is None else y + b[ids]

    before, after = op.factors(weights.reshape(-1)[order].unsqueeze(-1))
    y = product(op.hidden(product(_times(x[order // chosen.shape[1]], before), U, a)), V, c)
    y = _times(y, after)[order.argsort()]
    return y.view(len(x), chosen.shape[1], -1).sum(1).to(x.dtype)


def _rows(
    op: Experts, x: Tensor, chosen: Tensor, weights: Tensor, U: Tensor, V: Tensor, a: Tensor | None, c: Tensor | None
) -> Tensor:
    """Each row with its own experts' matrices."""
    ids = chosen.reshape(-1)

    def product(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        if op.product == "matmul":
            y = torch.bmm(x.unsqueeze(1), W.mT[ids]).squeeze(1)
        else:
            y = torch.bmm(W[ids], x.unsqueeze(-1)).squeeze(-1)
        return y if b is None else y + b[ids]

    before, after = op.factors(weights.reshape(-1, 1))
    y = product(op.hidden(product(_times(x.repeat_interleave(chosen.shape[1], 0), before), U, a)), V, c)
    return _times(y, after).view(len(x), chosen.shape[1], -1).sum(1).to(x.dtype)


_KERNELS = {"loop": _loop, "grouped": _grouped, "rows": _rows}
