"""By depth: where error is injected, and where it is only carried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twinlens.parity.result import Finding
from twinlens.report import words
from twinlens.report.table import Table
from twinlens.sites import split

WIDTH = 10
"""Cells of a bar."""
MOST_ROWS = 40
"""Rows for layers; a deeper model has several layers in one."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_PLACES = ("attention", "mlp", "stream")


@dataclass(frozen=True)
class Depth:
    """One place at one depth: the largest errors of its sites, relative to the sites' sizes."""

    injected: float
    carried: float
    total: float

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> Depth | None:
        """None where no site shows this place."""
        if not findings:
            return None
        most = [
            max(words.relative(error, f) for f, error in zip(findings, errors, strict=True))
            for errors in zip(*((f.injected, f.carried, f.total) for f in findings), strict=True)
        ]
        return cls(*most)


def depths(findings: Sequence[Finding]) -> dict[str, tuple[Depth | None, ...]]:
    """By row (`embed`, layers, `final`): attention, mlp, residual stream."""
    last = max((n for f in findings if (n := split(f.site)[0]) is not None), default=-1)
    each = math.ceil((last + 1) / MOST_ROWS) or 1
    rows: dict[str, tuple[list[Finding], ...]] = {}
    for finding in findings:
        row, place = _where(finding.site, each, last)
        rows.setdefault(row, ([], [], []))[place].append(finding)
    return {row: tuple(Depth.of(places) for places in of) for row, of in rows.items()}


def _where(site: str, each: int, last: int) -> tuple[str, int]:
    """The row of a site and its place in it."""
    layer, rest = split(site)
    if layer is None:
        if rest.startswith("rotary."):
            return "rotary", 0
        return ("final", 2) if rest.startswith(("ln_final", "logits")) else ("embed", 2)
    first = layer - layer % each
    row = words.ranges(range(first, min(first + each, last + 1)))
    if rest.startswith("hook_resid"):
        return row, 2
    return row, 0 if rest.startswith(("ln1", "attn", "hook_attn")) else 1


def picture(findings: Sequence[Finding]) -> Iterator[Table]:
    """One row for each depth, where anything differs at all."""
    seen = depths(findings)
    errors = [e for row in seen.values() for d in row if d for e in (d.injected, d.total) if e > 0]
    errors = [e for e in errors if math.isfinite(e)]
    if not errors:
        return
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))
    low = min(low, high - 1)
    rows = tuple((row, *(cell for d in of for cell in _cells(d, low, high))) for row, of in seen.items())
    columns = ("layer", *(head for place in _PLACES for head in (place, "injected", "carried")))
    scale = f"log scale, 1e{low:+03d} to 1e{high:+03d} of the tensor's size"
    note = f"bar: total, of it █ injected here, ░ carried in; {scale}"
    yield Table("Error by depth", columns, rows, notes=(note,), numbered=False)


def _cells(depth: Depth | None, low: int, high: int) -> tuple[str, str, str]:
    if depth is None:
        return "", "", ""
    return bar(depth, low, high), words.small(depth.injected), words.small(depth.carried)


def bar(depth: Depth, low: int, high: int) -> str:
    """Full as far as what is injected, light as far as the total."""
    injected, total = (_length(e, low, high) for e in (depth.injected, depth.total))
    full = "█" * int(injected)
    part = _EIGHTHS[int(injected % 1 * 8)].strip()
    light = "░" * (round(total) - len(full) - len(part))
    return full + part + light


def _length(error: float, low: int, high: int) -> float:
    """In cells; whatever is not zero has some length."""
    if error == 0:
        return 0.0
    if not math.isfinite(error):
        return float(WIDTH)
    share = (math.log10(error) - low) / (high - low)
    return min(max(share * WIDTH, 0.25), float(WIDTH))
