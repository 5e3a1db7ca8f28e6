"""Routers: which experts a token is given to, and with which weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import FACTOR, choice, integer, number, order, precision
from twinlens.ops.base import Op, cast, scaled
from twinlens.ops.project import product_size
from twinlens.shapes import Bool, Float, Int

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
    report, section 2.1.2). A group counts by its two best together (DeepSeek-V3's released code, `noaux_tc`), or by
    its best alone (DeepSeek-V2, report, section 2.2.2: `group_limited_greedy`). Experts of other groups are out, or
    stay with a score of 0, which is no less than a biased score may be.
    """

    chooses: ClassVar[bool] = True
    weight_axes: ClassVar[Mapping[str, str]] = {"b": "x"}
    kept: ClassVar[tuple[str, ...]] = ("b",)
    weight_parameters: ClassVar[Mapping[str, tuple[str, str]]] = {"b": ("router.bias", _ENTERS)}

    top_k: int = integer(parameter="router.top_k", enters=_ENTERS)
    score: str = choice(*SCORES, parameter="router.score", tied=True, enters=_ENTERS)
    groups: int = integer(1, parameter="router.groups", enters=_ENTERS)
    top_groups: int = integer(1, parameter="router.groups", enters=_ENTERS)
    group_score: str = choice("two_best", "best", parameter="router.groups", enters=_ENTERS)
    others: str = choice("out", "zero", parameter="router.groups", enters=_ENTERS)
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
        of = grouped.topk(2, dim=-1).values.sum(-1) if self.group_score == "two_best" else grouped.amax(-1)
        best = of.topk(self.top_groups, dim=-1, sorted=False).indices
        seen = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=logits.device).scatter(-1, best, True)
        return grouped.masked_fill(~seen.unsqueeze(-1), float("-inf") if self.others == "out" else 0.0).flatten(-2)


@dataclass(frozen=True)
class RouterWeights(Op):
    """scale · the scores of the chosen experts, which are made to sum to one with `norm="sum"`.

    A softmax and a sigmoid are of logits / temperature. `over="chosen"`: the score is a softmax over these alone;
    `"nothing"`: there is none, the logits are the weights as they are. `bias`: whether the bias by which experts are
    chosen is in their weights too (it is not in DeepSeek-V3, report, section 2.1.2). With `capacity` an expert takes
    capacity · tokens · t / experts of them, rounded up, and those that come later have no weight (Lepikhin et al. 2020,
    section 2.2; Fedus et al. 2021, equation 3). Computed in `dtype`, stored in `out` (None: as the logits come in).
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, True)
    weight_axes: ClassVar[Mapping[str, str]] = {"b": "x"}
    kept: ClassVar[tuple[str, ...]] = ("b",)
    weight_parameters: ClassVar[Mapping[str, tuple[str, str]]] = {"b": ("router.bias", _ENTERS)}

    score: str = choice(*SCORES, parameter="router.score", tied=True)
    over: str = choice("all", "chosen", "nothing", parameter="router.score")
    bias: str = choice("unused", "added", parameter="router.bias")
    norm: str = choice("none", "sum", parameter="router.norm")
    scale: float = number(1.0, parameter="router.scale", within=FACTOR)
    temperature: float = number(1.0, parameter="router.temperature", within=FACTOR)
    capacity: float | None = choice(
        None,
        1.0,
        1.25,
        1.5,
        2.0,
        parameter="experts.capacity",
        shown_by="an expert that more tokens choose than it takes",
    )
    dtype: torch.dtype | None = precision(torch.float32, None, torch.bfloat16, parameter="router.dtype", enters=_ENTERS)
    out: torch.dtype | None = precision(None, torch.float32, parameter="router.dtype", enters=_ENTERS)

    def __call__(
        self, logits: Float[Tensor, "b p x"], chosen: Int[Tensor, "b p t"], b: Float[Tensor, " x"] | None = None
    ) -> Float[Tensor, "b p t"]:
        x = self._divided(cast(logits, self.dtype))
        if self.over == "chosen":
            weights = SCORES[self.score](x.gather(-1, chosen))
        elif self.over == "all":
            weights = SCORES[self.score](x).gather(-1, chosen)
        else:
            weights = x.gather(-1, chosen)
        if self.bias == "added" and b is not None:
            weights = weights + b[chosen]
        if self.norm == "sum" and self.over != "nothing":
            weights = weights / weights.sum(-1, keepdim=True)
        if self.capacity is not None:
            weights = weights * self._taken(chosen, logits.shape[-1])
        return scaled(weights, self.scale).to(logits.dtype if self.out is None else self.out)

    def _divided(self, logits: Tensor) -> Tensor:
        is_one = isinstance(self.temperature, float) and self.temperature == 1.0
        return logits if is_one or self.score == "none" else logits / self.temperature

    def rows_alone(self) -> tuple[bool, ...]:
        return self.by_row if self.capacity is None else (False, False)

    def _taken(self, chosen: Int[Tensor, "b p t"], experts: int) -> Bool[Tensor, "b p t"]:
        """Which of a token's experts still had room, tokens in their order."""
        flat = chosen.flatten()
        room = math.ceil((self.capacity or 0.0) * len(flat) / experts)
        before = F.one_hot(flat, experts).cumsum(0).gather(1, flat[:, None])
        return (before <= room).view(chosen.shape)

    def magnitude(self, logits: Tensor, chosen: Tensor, b: Tensor | None = None) -> Tensor:
        if self.over == "nothing":
            plain = self.replace(over="all", score="none", norm="none")
            return plain.magnitude(logits, chosen, b)
        x = self._divided(logits)
        x = x.gather(-1, chosen) if self.over == "chosen" else x
        scores, own = SCORES[self.score](x), score_size(self.score, x)
        if self.over == "all":
            scores, own = scores.gather(-1, chosen), own.gather(-1, chosen)
        if self.bias == "added" and b is not None:
            scores, own = scores + b[chosen], own + b[chosen].abs()
        if self.norm == "sum":
            total = scores.sum(-1, keepdim=True).abs().clamp_min(1e-300)
            own = (own + scores.abs() * (own.sum(-1, keepdim=True) / total)) / total
        return own * abs(float(self.scale)) + self(logits, chosen, b).abs()


def score_size(score: str, logits: Tensor) -> Tensor:
    """What one unit of roundoff in a score is multiplied by: a logit that is off by u |x| is so inside an exp."""
    if score == "none":
        return logits.abs()
    largest = logits.abs().amax(-1, keepdim=True)
    return SCORES[score](logits) * (2.0 + logits.abs() + (largest if score == "softmax" else 0.0))
