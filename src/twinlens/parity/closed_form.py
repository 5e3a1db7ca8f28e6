"""Numbers have names: 14.9666 is sqrt(224)."""

from __future__ import annotations

import math
from collections.abc import Iterator


def closed_form(value: float, interval: tuple[float, float]) -> tuple[float, str] | None:
    """The simplest number with a name inside an interval, and the name; None where nothing simple fits.

    Integers, powers of ten, sqrt(n), their reciprocals, and small fractions are tried, simplest first; a form is only
    believed where the interval is so narrow that it would not hold one of its kind by chance.
    """
    low, high = interval
    if not all(map(math.isfinite, (value, low, high))):
        return None
    width = high - low
    for candidate, name, spacing in _forms(value):
        if low <= candidate <= high and width < 0.1 * spacing:
            return candidate, name
    return None


def _forms(value: float) -> Iterator[tuple[float, str, float]]:
    """Candidates near a value: number, name, distance to the next one of its kind."""
    size = abs(value)
    if size == 0.0 or not 1e-30 < size < 1e15:
        if size == 0.0:
            yield 0.0, "0", 1.0
        return
    sign = "-" if value < 0 else ""
    power = round(math.log10(size))
    yield (
        math.copysign(float(f"1e{power}"), value),
        f"{sign}1e{power}" if abs(power) > 3 else f"{10.0**power:g}",
        5 * 10.0**power,
    )
    if size < 1e15:
        yield float(round(value)), str(round(value)), 1.0
    exponent = math.floor(math.log10(size))
    for digits in (1, 2, 3):
        step = 10.0 ** (exponent - digits + 1)
        nearest = float(f"{value:.{digits - 1}e}")
        yield nearest, f"{nearest:g}", step
    square = round(size * size) if size < 1e4 else 0
    if 2 <= square <= 1_000_000:
        root = math.sqrt(square)
        yield math.copysign(root, value), f"{sign}sqrt({square})", 0.5 / root
    inverse = round(1.0 / (size * size)) if 1e-4 < size < 1 else 0
    if 2 <= inverse <= 1_000_000:
        root = 1.0 / math.sqrt(inverse)
        yield math.copysign(root, value), f"{sign}1/sqrt({inverse})", 0.5 * root / inverse
    for divisor in (2, 3, 4, 5, 6, 7, 8, 9, 16, 32, 64, 128):
        top = round(value * divisor)
        if top:
            yield top / divisor, f"{top}/{divisor}", 1.0 / divisor
