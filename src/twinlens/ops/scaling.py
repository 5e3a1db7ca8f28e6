"""How rotary frequencies are stretched for longer contexts.

Each function takes the table's op, its plain frequencies [width / 2] and the number of positions in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Scaling = Callable[[Any, Tensor, Tensor], Tensor]


def linear(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """All frequencies divided by `factor` (Chen et al. 2023)."""
    return plain / op.factor


def llama3(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """Long wavelengths divided by `factor`, with a blend between the two bounds (Llama 3.1's released code)."""
    low = op.original_max_position / op.low_freq_factor
    high = op.original_max_position / op.high_freq_factor
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > low, plain / op.factor, plain)
    smooth = (op.original_max_position / wavelength - op.low_freq_factor) / (op.high_freq_factor - op.low_freq_factor)
    blended = (1 - smooth) * scaled / op.factor + smooth * scaled
    between = ~(wavelength < high) & ~(wavelength > low)
    return torch.where(between, blended, scaled)


def dynamic(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """A base that grows with the length beyond `original_max_position` (NTK-aware, as transformers has it)."""
    longest = torch.clamp(length.to(plain.dtype), min=_number(op.original_max_position))
    growth = (op.factor * longest / op.original_max_position) - (op.factor - 1)
    base = op.base * growth ** (op.width / (op.width - 2))
    grown = 1.0 / (base ** (op.even(plain) / op.width))
    return torch.where(length > _number(op.original_max_position), grown, plain)


def yarn(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """Long wavelengths divided by `factor`, with a ramp between two numbers of rotations (Peng et al. 2023).

    The ramp begins and ends at whole entries.
    """
    low, high = _ends(op)
    return _ramped(op, plain, math.floor(_number(low)), math.ceil(_number(high)))


def yarn_untruncated(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """The same with a ramp that begins and ends where it is (gpt-oss)."""
    return _ramped(op, plain, *_ends(op))


def _ends(op: Any) -> tuple[Any, Any]:
    """Which entries turn `beta_fast` and `beta_slow` times over the original context."""
    turns = (op.original_max_position / (beta * 2 * math.pi) for beta in (op.beta_fast, op.beta_slow))
    low, high = ((op.width * _log(turn)) / (2 * _log(op.base)) for turn in turns)
    return low, high


def _ramped(op: Any, plain: Tensor, low: Any, high: Any) -> Tensor:
    periods = op.base ** (op.even(plain) / op.width)
    low, high = _clamp(low, 0), _clamp(high, op.width - 1)
    if _number(low) == _number(high):
        high = high + 0.001
    ramp = ((torch.arange(op.width // 2, dtype=plain.dtype, device=plain.device) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (op.factor * periods) * (1 - kept) + plain * kept


def longrope(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """Each frequency divided by a number of its own: `short_factor` up to the original context, else `long_factor`.

    LongRoPE (Ding et al. 2024).
    """
    beyond = length > _number(op.original_max_position)
    return torch.where(beyond, longrope_long(op, plain, length), longrope_short(op, plain, length))


def longrope_short(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """The first list whatever the length."""
    return _divided(op, plain, op.short_factor)


def longrope_long(op: Any, plain: Tensor, length: Tensor) -> Tensor:
    """The second list whatever the length."""
    return _divided(op, plain, op.long_factor)


def _divided(op: Any, plain: Tensor, factors: tuple[float, ...]) -> Tensor:
    """Where no list was given, nothing is divided."""
    by = torch.tensor(factors or (1.0,), dtype=plain.dtype, device=plain.device)
    return 1.0 / (by * op.base ** (op.even(plain) / op.width))


SCALINGS: dict[str, Scaling] = {
    f.__name__: f for f in (linear, llama3, dynamic, yarn, yarn_untruncated, longrope, longrope_short, longrope_long)
}


def _clamp(x: Any, bound: float) -> Any:
    """Not below 0; not above any other bound."""
    if isinstance(x, Tensor):
        return x.clamp(min=0) if bound == 0 else x.clamp(max=bound)
    return max(x, 0) if bound == 0 else min(x, bound)


def _log(x: Any) -> Any:
    return x.log() if isinstance(x, Tensor) else math.log(x)


def _number(x: Any) -> float:
    """The value alone: what it decides has no derivative."""
    return float(x.detach()) if isinstance(x, Tensor) else float(x)
