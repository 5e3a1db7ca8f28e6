"""Faults below the noise: a wrong number moves all entries one way, each by less than its rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from twinlens.parity.changes import SetField, Variant, slot
from twinlens.parity.fit import Number, constants, numbers
from twinlens.parity.numbers import Numbers
from twinlens.parity.score import MOSTLY, Found
from twinlens.spec import Step

_SEEN = 0.3
"""What a number must move entries by, as a part of the step's own rounding. Of 96 honest pairs (`bench.rounding`, seeds
0 to 3, 100 and 101) none had a number even without this bound: intervals alone kept them out."""
_SURE = 0.8
"""The part of the change that its interval may be wide: ten standard errors at eight of an interval."""
_ACTS = 0.01
"""A number of which the step changes by a smaller part than it does itself can be imitated by a bias of rounding:
it is believed only where it is a power of ten."""
_DECADES = 3.0
"""How many powers of ten away such a number may be: a variance that is 2 % off looks like an eps of a tenth."""


def faint(estimates: Numbers) -> Found | None:
    """One number that moves the step's entries as they are moved; None where what is seen may be rounding."""
    found = _faint(estimates, constants) if estimates.merged.is_far else None
    return found or _faint(estimates, numbers)


def _faint(estimates: Numbers, of: Callable[[Iterable[Step]], list[Number]]) -> Found | None:
    merged, scorer = estimates.merged, estimates.scorer
    free = [n for n in of(merged.steps) if n.value is not None and not estimates.is_staged(n)]
    if not free:
        return None
    fit = estimates.fit(Variant())
    at = torch.tensor([n.start for n in free], dtype=torch.float64)
    r, slopes = fit.columns(free, at)
    lengths = slopes.norm(dim=0).clamp_min(1e-300)
    moved = (slopes.T @ r).abs() / lengths / len(r) ** 0.5
    size = fit.residual(torch.zeros_like(fit.goal)).norm()
    for i in moved.argsort(descending=True)[:2].tolist():
        if float(moved[i]) < _SEEN:
            return None
        found = estimates.found(fit.run((free[i],)), Found(Variant(), scorer.base))
        if found is None or not estimates.is_sharp(found, _SURE):
            continue
        if float(lengths[i] * at[i].abs() / size) < _ACTS:
            found = _rounded(estimates, found)
        near = 1.0 if scorer.base.ratio.is_close else MOSTLY  # what is far from the step's own rounding is no noise
        if found is not None and found.score.rms < near * scorer.base.rms:
            return None if estimates.is_off_by_ulps() else found
    return None


def _rounded(estimates: Numbers, found: Found) -> Found | None:
    """With the power of ten that the interval holds; None where it holds none."""
    (change,) = found.variant.changes
    if not isinstance(change, SetField) or not change.value:
        return found
    low, high = found.intervals[slot(change)]
    value = float(f"1e{round(math.log10(abs(change.value)))}")
    was = getattr(estimates.spec.at[change.site].op, change.name) or value
    if not low <= value <= high or abs(math.log10(value / abs(was))) > _DECADES:
        return None
    variant = Variant((SetField(change.sites, change.name, value),))
    return Found(variant, estimates.scorer.judged(variant), found.intervals, {slot(change): f"{value:g}"})
