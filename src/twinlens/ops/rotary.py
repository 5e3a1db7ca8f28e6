"""Rotary position embedding (Su et al. 2021): tables of cos and sin, and the rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from twinlens.fields import FACTOR, choice, integer, number, order, precision, size
from twinlens.ops.base import Op, cast, is_of_16_bits
from twinlens.ops.scaling import SCALINGS
from twinlens.shapes import Float, Int

_P = "rotary.scaling"


@dataclass(frozen=True)
class RotaryTable(Op):
    """cos or sin of position · base^(-2i/width), times the attention factor, the two halves alike.

    `scaling` stretches the frequencies (`twinlens.ops.scaling`), some kinds by how many positions are in use: those
    of `among`. Frequencies and angles are computed in `dtype`; positions pass through `position_dtype` (in bfloat16
    some stand at one place beyond 256), angles through `angle_dtype` and the table through `table_dtype`; it is stored
    in `out`, the model's dtype.
    """

    by_row: ClassVar[tuple[bool, ...]] = (True, False)

    wave: str = size("cos")
    width: int = integer(0, parameter="rotary.dim", tied=True, multiple=2)
    out: torch.dtype = size(torch.float32)
    base: float = number(10000.0, parameter="rotary.base", tied=True, power=0.0, within=(2.0, 1e12))
    scaling: str | None = choice(
        None, *SCALINGS, parameter=_P, tied=True, shown_by="a prompt longer than the context that is stretched"
    )
    factor: float = number(1.0, parameter=_P, tied=True, within=FACTOR)
    low_freq_factor: float = number(1.0, parameter=_P, tied=True, within=FACTOR)
    high_freq_factor: float = number(4.0, parameter=_P, tied=True, within=FACTOR)
    beta_fast: float = number(32.0, parameter=_P, tied=True, within=FACTOR)
    beta_slow: float = number(1.0, parameter=_P, tied=True, within=FACTOR)
    short_factor: tuple[float, ...] = size(())
    long_factor: tuple[float, ...] = size(())
    original_max_position: float = number(8192.0, parameter=_P, tied=True, within=(1.0, 1e9))
    attention_factor: float = number(1.0, parameter="rotary.attention_factor", tied=True, within=FACTOR)
    dtype: torch.dtype | None = precision(
        torch.float32, torch.bfloat16, torch.float64, parameter="rotary.dtype", tied=True
    )
    frequency_dtype: torch.dtype | None = precision(
        None, torch.bfloat16, torch.float16, parameter="rotary.dtype", tied=True
    )
    position_dtype: torch.dtype | None = precision(
        None, torch.bfloat16, torch.float16, parameter="rotary.dtype", tied=True
    )
    angle_dtype: torch.dtype | None = precision(None, torch.bfloat16, parameter="rotary.dtype", tied=True)
    table_dtype: torch.dtype | None = precision(None, torch.bfloat16, parameter="rotary.dtype", tied=True)
    product: str = order("outer", "matmul", "divide")

    def __call__(
        self, positions: Int[Tensor, "b p"], among: Int[Tensor, "b all"] | None = None
    ) -> Float[Tensor, "b p r"]:
        at = cast(positions, self.position_dtype).to(self.dtype)
        if self.product == "divide" and self.scaling is None:
            angles = at[..., None] / self._periods(positions.device)
        elif self.product == "divide":
            angles = at[..., None] / (1.0 / self.frequencies(positions if among is None else among))
        elif self.product == "matmul":
            angles = at[..., None] @ self.frequencies(positions if among is None else among)[None, None, :]
        else:
            angles = at[..., None] * self.frequencies(positions if among is None else among)
        angles = cast(angles, self.angle_dtype).to(angles.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        table = (angles.cos() if self.wave == "cos" else angles.sin()) * self.attention_factor
        return cast(table, self.table_dtype).to(self.out)

    def frequencies(self, among: Int[Tensor, "b p"]) -> Float[Tensor, " half"]:
        """Radians per position, [width / 2], where these positions are in use."""
        compute = self.dtype if self.dtype is not torch.bfloat16 else torch.float32
        like = torch.empty(0, dtype=compute, device=among.device)
        scaled = 1.0 / (self.base ** (self.even(like) / self.width))
        if self.scaling is not None:
            scaled = SCALINGS[self.scaling](self, scaled, among.max() + 1)
        return cast(cast(scaled, self.frequency_dtype), self.dtype)

    def even(self, like: Tensor) -> Float[Tensor, " half"]:
        """0, 2, 4 and so on up to the width."""
        return torch.arange(0, self.width, 2, dtype=like.dtype, device=like.device)

    def _periods(self, device: torch.device) -> Tensor:
        """The reciprocal of the frequencies, as in TransformerLens: base ** (i / (width / 2))."""
        compute = self.dtype if self.dtype is not torch.bfloat16 else torch.float32
        even = self.even(torch.empty(0, dtype=compute, device=device))
        periods = self.base ** ((even / 2) / (self.width / 2))
        return cast(cast(periods, self.frequency_dtype), self.dtype)

    def thresholds(self) -> tuple[float, ...]:
        return () if self.scaling is None else (self.original_max_position,)

    def precomputed(self, length: int) -> tuple[Tensor, ...]:
        """The table by position, in full and in half width, and the frequencies."""
        positions = torch.arange(length)[None]
        table = self(positions)[0]
        return table, table[:, : self.width // 2], self.frequencies(positions)

    def magnitude(self, positions: Tensor, among: Tensor | None = None) -> Tensor:
        if is_of_16_bits():  # angles are not: in 16 they are a fault, and not its rounding
            return torch.full_like(self(positions, among), abs(float(self.attention_factor)))
        among = positions if among is None else among
        exact = self.exact()
        plain = exact.replace(scaling=None).frequencies(among)
        size = exact.frequencies(among)
        if self.scaling in (
            "llama3",
            "yarn",
            "yarn_untruncated",
        ):  # a blend is off by what is blended, not by its result
            blended = (size < plain * (1 - 1e-9)) & (size > plain / self.factor * (1 + 1e-9))
            size = torch.where(blended, plain, size)
        angles = positions[..., None].double() * size.abs()
        return (1.0 + torch.cat((angles, angles), dim=-1)) * abs(float(self.attention_factor))


@dataclass(frozen=True)
class Rotate(Op):
    """x · cos + rotated(x) · sin on the first `width` entries of a head; the rest passes.

    `half` pairs entry i with i + width/2, `interleaved` 2i with 2i + 1 (GPT-J), and `interleaved_to_half` writes what
    this gives as `half` would (DeepSeek). `turn="back"` turns by the opposite angles. `at_end`: on the last entries,
    not the first ones. Computed in `dtype` (None: as queries and tables come in), stored as queries come in.
    """

    removable: ClassVar[str | None] = "rotary.layers"
    by_row: ClassVar[tuple[bool, ...]] = (True, True, True)

    width: int = integer(parameter="rotary.dim", tied=True, multiple=2)
    layout: str = choice("half", "interleaved", "interleaved_to_half", parameter="rotary.layout", tied=True)
    turn: str = choice("forward", "back", parameter="rotary.direction", tied=True)
    dtype: torch.dtype | None = precision(None, torch.float32, parameter="rotary.dtype", tied=True)
    at_end: bool = size(False)

    def __call__(
        self, x: Float[Tensor, "b p h e"], cos: Float[Tensor, "b p r"], sin: Float[Tensor, "b p r"]
    ) -> Float[Tensor, "b p h e"]:
        return self._turned(cast(x, self.dtype), cos, sin).to(x.dtype)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turn, rest = self._cut(x)
        cos, sin = (self._spread(t, self.width).unsqueeze(2) for t in (cos, sin))
        return self._joined((turn * cos) + (self._rotated(turn) * (sin if self.turn == "forward" else -sin)), rest)

    def _cut(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is turned, its pairs as they are written, and the rest."""
        if self.at_end:
            rest, turn = x[..., : x.shape[-1] - self.width], x[..., x.shape[-1] - self.width :]
        else:
            turn, rest = x[..., : self.width], x[..., self.width :]
        if self.layout == "interleaved_to_half":
            turn = torch.cat((turn[..., 0::2], turn[..., 1::2]), dim=-1)
        return turn, rest

    def _joined(self, turned: Tensor, rest: Tensor) -> Tensor:
        if rest.shape[-1] == 0:
            return turned
        return torch.cat((rest, turned) if self.at_end else (turned, rest), dim=-1)

    def _spread(self, table: Tensor, width: int) -> Tensor:
        """The table, half as wide or as wide as the rotation, laid out as the pairs are."""
        half = table[..., : width // 2]
        return half.repeat_interleave(2, dim=-1) if self.layout == "interleaved" else torch.cat((half, half), dim=-1)

    def _rotated(self, x: Tensor) -> Tensor:
        if self.layout == "interleaved":
            return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    def magnitude(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turn, rest = self._cut(x)
        cos, sin = (self._spread(t, self.width).unsqueeze(2) for t in (cos, sin))
        return self._joined((turn * cos).abs() + (self._rotated(turn) * sin).abs(), torch.zeros_like(rest))
