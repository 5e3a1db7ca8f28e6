"""How far rounding moves one merged step, measured on the step itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from twinlens.ops.attention import UNREACHED
from twinlens.ops.base import of_16_bits
from twinlens.parity.changes import Variant
from twinlens.parity.merged import Merged
from twinlens.parity.oracle import Oracle
from twinlens.parity.rounding import WIDE, Ratio, by_rows, difference
from twinlens.parity.rows import Noise, Rows

_DRAWS = 2
"""Runs with random rounding where the size of each rounding is that of a formula, which is no less than it."""
_RUNS = 8
"""The same where it is what each step was seen to err, and is no more than that."""
_CHOICES = 16
"""The same where experts are chosen on the way: a token that may go to another one does so in one run of many."""
_FEW = 4
"""A row of fewer entries says nothing of its own rounding: one entry in three hundred is more than three times off."""
_LEAST = 0.3
"""Of u |x|: the root mean square of what a number loses that is stored, between 0.29 and 0.58 of it."""


class Scale:
    """The rounding scales of one merged step on some rows, measured."""

    def __init__(self, merged: Merged, variant: Variant, rows: Rows, native: Tensor) -> None:
        self.merged, self.rows = merged, rows
        site, mask = merged.target, merged.sites["mask"]
        self.mask = rows.of("mask", mask)
        self.is_measured = False
        """Whether the wide scale is what this step was seen to err, too, and no bound of it."""
        oracle = merged.prepared(variant, rows)
        u = max(torch.finfo(t).eps for t in (native.dtype, merged.value.dtype, merged.dtypes[site], torch.float32)) / 2
        with of_16_bits() if u > torch.finfo(torch.float32).eps else nullcontext():
            self.exact, magnitude = oracle.with_magnitude(variant)
        own = difference(site, rows.of(site, native), self.exact)
        floor = _LEAST * u * self.exact.abs().masked_fill(self.exact < UNREACHED, 0.0)
        self.tight = by_rows(site, torch.maximum(own.abs(), floor).square(), self.mask)
        self.wide = by_rows(site, (u * magnitude).square().expand_as(self.exact), self.mask)
        if len(variant.steps(merged.steps)) > 1:
            self.wide = self._with_carried(oracle, variant, own)

    def _with_carried(self, oracle: Oracle, variant: Variant, own: Tensor) -> Tensor:
        """What the last step rounds, and what comes of the roundings before it."""
        steps, site = self.merged.steps, self.merged.target
        plain = self.merged.plain(variant)
        dtypes = {s: _coarser(x.dtype, self.merged.value.dtype) for s, x in plain.items()}
        self.is_measured = any(map(_is_short, dtypes.values()))
        sizes = roundings(oracle, variant, plain, dtypes)
        if steps[-1].op.chooses:
            return self.wide + _farthest(torch.stack([*self._doubts(oracle, variant, sizes), self.tight]))
        draws = _DRAWS if not self.is_measured else _CHOICES if any(s.op.chooses for s in steps) else _RUNS
        moved = [oracle(variant, Noise(sizes, seed)) - self.exact for seed in range(draws)]
        runs = torch.stack([by_rows(site, x, self.mask).square() for x in moved + [own] * self.is_measured])
        if not self.is_measured:
            return self.wide + runs.mean(0)
        last = by_rows(site, sizes[site].square().expand_as(self.exact), self.mask)
        return (last if _is_short(dtypes[site]) else self.wide) + _farthest(runs)

    def _doubts(self, oracle: Oracle, variant: Variant, sizes: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """What rounding may make of a choice: another one, where scores on both sides of it lie within WIDE times their
        roundings of each other; and how far it moves the scores of those that are chosen.
        """
        step, reads, weights = oracle.last(variant)
        chosen = step.op(*reads, **weights)
        scores = step.op.compared(chosen, *reads, **weights)
        wider = {site: WIDE * x for site, x in sizes.items()}
        for seed in range(_CHOICES):
            step, reads, weights = oracle.last(variant, Noise(wider, seed))
            other = self.merged.compared(step.op(*reads, **weights), self.rows) - self.exact
            moved = (step.op.compared(chosen, *reads, **weights) - scores) / WIDE
            yield by_rows(self.merged.target, other.square() + moved.square(), self.mask)

    def ratio(self, error: Tensor, support: int) -> Ratio:
        """An error on these rows against the scales."""
        e = by_rows(self.merged.target, error, self.mask).square()
        wide, tight = (scale[..., : e.shape[-1]] for scale in (self.wide, self.tight))
        if self._is_pooled(e):
            e, wide, tight = (x.mean(0, keepdim=True) for x in (e, wide, tight))
        return Ratio(_worst(e, wide), _worst(e, tight), support, self.is_measured)

    def _is_pooled(self, rows: Tensor) -> bool:
        """Whether rows are judged together: each has too few entries, and is carried through steps to there."""
        return len(self.merged.steps) > 1 and rows.shape[-1] < _FEW

    def weights(self) -> Tensor:
        """1 / scale of each row of the target, for least squares.

        A row that is exactly 0 (a sine at position 0) has no rounding of its own to be measured in: it counts by that
        of the step as a whole, or it would hide what every other row says of a change.
        """
        rows = (self.wide if self._is_pooled(self.tight) else self.tight).mean(-1, keepdim=True)
        return 1.0 / torch.where(rows == 0, rows.mean(), rows).sqrt().clamp_min(1e-300)


def roundings(
    oracle: Oracle, variant: Variant, plain: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """By site and entry, what one more rounding is there.

    What is stored in 32 bits is summed in 32, and other orders of a sum differ by as much as the formula says. What is
    stored in 16 is summed in 32 as well, so that the formula, which has a rounding for each term, is many times what
    happens: there it is what the step errs on what it was given, or, where it was not run in 16 bits, u of the value.
    """
    values = {k: v.double() if v.is_floating_point() else v for k, v in oracle.narrowed(variant, plain).items()}
    sizes = dict[str, Tensor]()
    for step, reads, arguments in oracle.each(variant, {**oracle.tensors, **values}):
        site, u = step.writes, torch.finfo(dtypes[step.writes]).eps / 2
        if step.op.chooses:
            continue
        if not _is_short(dtypes[site]):
            sizes[site] = u * oracle.magnitude(step, reads, arguments)
            continue
        error = difference(site, values[site], oracle.computed(step, reads, arguments)).abs()
        least = u * values[site].abs() * (_LEAST if plain[site].dtype == dtypes[site] else 1.0)
        sizes[site] = torch.maximum(error, least.masked_fill(values[site] < UNREACHED, 0.0))
    return sizes


def _is_short(dtype: torch.dtype) -> bool:
    return dtype.itemsize < 4


def _farthest(runs: Tensor) -> Tensor:
    """Each row as the run left it that moved it most."""
    return runs[runs.mean(-1).argmax(0), torch.arange(runs.shape[1], device=runs.device)]


def _worst(e: Tensor, scale: Tensor) -> float:
    """The largest ratio of root mean squares over rows and over columns."""
    if e.numel() == 0:
        return 0.0
    worst = 0.0
    for axis in (-1, 0):
        top, bottom = e.mean(axis), scale.mean(axis)
        if not bool(torch.isfinite(top).all()):
            return float("inf")
        worst = max(worst, float(torch.where(top == 0, top, top / bottom.clamp_min(1e-300)).max()))
    return worst**0.5


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return max(
        (t for t in (a, b, torch.float32) if t.is_floating_point),
        key=lambda t: torch.finfo(t).eps,
        default=torch.float32,
    )
