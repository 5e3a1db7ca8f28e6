"""Mixtures of experts: which experts a token is given to, with which weights, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import FACTOR, choice, integer, number, order, precision
from twinlens.ops.base import Op, cast, scaled
from twinlens.ops.mlp import ACTIVATION_NAMES, act_size, activated
from twinlens.ops.project import multiply, product_size
from twinlens.shapes import Float, Int

_ENTERS = "mlp.router.hook_weights"
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}


@dataclass(frozen=True)
class RouterLogits(Op):
    """W x + b, one entry for each expert; computed and stored in `dtype` (None: as it comes in)."""

    dtype: torch.dtype | None = precision(None, torch.float32, torch.bfloat16, parameter="router.dtype", enters=_ENTERS)

    def __call__(
        self, x: Float[Tensor, "b p d"], W: Float[Tensor, "x d"], b: Float[Tensor, " x"] | None = None
    ) -> Float[Tensor, "b p x"]:
        return F.linear(cast(x, self.dtype), cast(W, self.dtype), None if b is None else cast(b, self.dtype))

    def magnitude(self, x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        return product_size(x, W, b)


@dataclass(frozen=True)
class Select(Op):
    """The experts of a token: those with the largest scores, of the best groups where there are groups.

    Scores are softmax or sigmoid of the logits, or the logits, and a bias that only choosing knows of (DeepSeek-V3,
    report, section 2.1.2). A group counts by its two best (same, equation 16).
    """

    chooses: ClassVar[bool] = True
    weight_axes: ClassVar[Mapping[str, str]] = {"b": "x"}
    kept: ClassVar[tuple[str, ...]] = ("b",)
    weight_parameters: ClassVar[Mapping[str, tuple[str, str]]] = {"b": ("router.bias", _ENTERS)}

    top_k: int = integer(parameter="router.top_k", enters=_ENTERS)
    score: str = choice(*SCORES, parameter="router.score", tied=True, enters=_ENTERS)
    groups: int = integer(1, parameter="router.groups", enters=_ENTERS)
    top_groups: int = integer(1, parameter="router.groups", enters=_ENTERS)
    dtype: torch.dtype | None = precision(torch.float32, None, torch.bfloat16, parameter="router.dtype", enters=_ENTERS)
    listed: str = order("sorted", "unsorted")

    def __call__(self, logits: Float[Tensor, "b p x"], b: Float[Tensor, " x"] | None = None) -> Int[Tensor, "b p t"]:
        return self._scored(logits, b).topk(self.top_k, dim=-1, sorted=self.listed == "sorted").indices

    def compared(self, value: Int[Tensor, "b p t"], logits: Tensor, b: Tensor | None = None) -> Float[Tensor, "b p x"]:
        """Scores of the chosen, the largest first, then zeros: one that is chosen for its equal changes nothing."""
        scores = self.replace(groups=1)._scored(logits, b)
        best = scores.gather(-1, value).sort(-1, descending=True).values
        return F.pad(best, (0, scores.shape[-1] - best.shape[-1]))

    def magnitude(self, logits: Tensor, b: Tensor | None = None) -> Tensor:
        size = score_size(self.score, logits)
        return self.replace(score="none", groups=1).compared(self(logits, b), size if b is None else size + b.abs())

    def _scored(self, logits: Tensor, b: Tensor | None) -> Tensor:
        scores = SCORES[self.score](cast(logits, self.dtype))
        scores = scores if b is None else scores + b
        if self.groups == 1:
            return scores
        grouped = scores.unflatten(-1, (self.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.top_groups, dim=-1, sorted=False).indices
        seen = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=logits.device).scatter(-1, best, True)
        return grouped.masked_fill(~seen.unsqueeze(-1), float("-inf")).flatten(-2)


@dataclass(frozen=True)
class RouterWeights(Op):
    """scale · the scores of the chosen experts, which are made to sum to one with `norm="sum"`.

    `over="chosen"`: the score is a softmax over these alone. Computed in `dtype`, stored in `out` (None: as the logits
    come in).
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    score: str = choice(*SCORES, parameter="router.score", tied=True)
    over: str = choice("all", "chosen", parameter="router.score")
    norm: str = choice("none", "sum", parameter="router.norm")
    scale: float = number(1.0, parameter="router.scale", within=FACTOR)
    dtype: torch.dtype | None = precision(torch.float32, None, torch.bfloat16, parameter="router.dtype", enters=_ENTERS)
    out: torch.dtype | None = precision(None, torch.float32, parameter="router.dtype", enters=_ENTERS)

    def __call__(self, logits: Float[Tensor, "b p x"], chosen: Int[Tensor, "b p t"]) -> Float[Tensor, "b p t"]:
        x = cast(logits, self.dtype)
        if self.over == "chosen":
            weights = SCORES[self.score](x.gather(-1, chosen))
        else:
            weights = SCORES[self.score](x).gather(-1, chosen)
        if self.norm == "sum":
            weights = weights / weights.sum(-1, keepdim=True)
        return scaled(weights, self.scale).to(logits.dtype if self.out is None else self.out)

    def magnitude(self, logits: Tensor, chosen: Tensor) -> Tensor:
        x = logits.gather(-1, chosen) if self.over == "chosen" else logits
        scores, own = SCORES[self.score](x), score_size(self.score, x)
        if self.over == "all":
            scores, own = scores.gather(-1, chosen), own.gather(-1, chosen)
        if self.norm == "sum":
            total = scores.sum(-1, keepdim=True).abs().clamp_min(1e-300)
            own = (own + scores.abs() * (own.sum(-1, keepdim=True) / total)) / total
        return own * abs(float(self.scale)) + self(logits, chosen).abs()


def score_size(score: str, logits: Tensor) -> Tensor:
    """What one unit of roundoff in a score is multiplied by: a logit that is off by u |x| is so inside an exp."""
    if score == "none":
        return logits.abs()
    largest = logits.abs().amax(-1, keepdim=True)
    return SCORES[score](logits) * (2.0 + logits.abs() + (largest if score == "softmax" else 0.0))


@dataclass(frozen=True)
class Experts(Op):
    """Σ over a token's experts: weight · (V h + c), h = act(gate) · (up + shift), gate and up of U x + a.

    With `limit` gate is cut above it and up on both sides (gpt-oss). U [x, 2m, d] holds gates and ups as `layout` says,
    V [x, d, m]. `kernel`: expert by expert, as torch's grouped product, or row by row.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, True, True)
    weight_axes: ClassVar[Mapping[str, str]] = {"U": "x o d", "V": "x d i", "a": "x o", "c": "x d"}

    act: str = choice(*ACTIVATION_NAMES, parameter="mlp.act")
    slope: float = number(1.0, parameter="mlp.act", within=FACTOR)
    """Of the argument of the sigmoid in silu (1.702 in gpt-oss)."""
    shift: float = number(0.0, parameter="mlp.shift", signed=True, within=(-16.0, 16.0), natural=(0.0, 1.0))
    limit: float | None = number(None, parameter="mlp.limit", off=True, power=-2.0, within=FACTOR)
    layout: str = choice("gate_up", "up_gate", "interleaved", "interleaved_up_gate", parameter="mlp.gate_order")
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
            y = F.linear(rows[at], U[e], None if a is None else a[e])
            gate, up = self._parts(y)
            gate_size, up_size = self._parts(product_size(rows[at], U[e], None if a is None else a[e]))
            active = act_size(self.act, gate)
            steep = 2.0 * gate.abs() if self.act == "relu2" else 1.2
            h = active * (2 * (up + self.shift).abs() + up_size) + steep * gate_size * (up + self.shift).abs()
            out = product_size(h, V[e], None if c is None else c[e])
            total.index_add_(0, at, out * weights.flatten(0, 1)[at, slot, None].abs() * 2)
        return total.view(x.shape)


@dataclass(frozen=True)
class WithShared(Op):
    """What the chosen experts give and, times `factor`, what those give that all tokens share."""

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    factor: float = number(1.0, parameter="experts.shared", signed=True, within=(-16.0, 16.0), natural=(0.0, 1.0))

    def __call__(self, chosen: Float[Tensor, "b p d"], shared: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        return chosen + scaled(shared, self.factor)

    def magnitude(self, chosen: Tensor, shared: Tensor) -> Tensor:
        return chosen.abs() + (self.factor * shared).abs()


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
        y = product(op.hidden(product(x[at], U, a, e)), V, c, e) * weights[at, slot, None]
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

    y = product(op.hidden(product(x[order // chosen.shape[1]], U, a)), V, c)
    y = (y * weights.reshape(-1)[order].unsqueeze(-1))[order.argsort()]
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

    y = product(op.hidden(product(x.repeat_interleave(chosen.shape[1], 0), U, a)), V, c)
    return (y * weights.reshape(-1, 1)).view(len(x), chosen.shape[1], -1).sum(1).to(x.dtype)


_KERNELS = {"loop": _loop, "grouped": _grouped, "rows": _rows}
