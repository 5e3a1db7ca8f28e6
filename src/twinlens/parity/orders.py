"""Which order of evaluation makes what is left equal bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch

from twinlens.fields import kinds
from twinlens.parity.changes import SetField, Variant, slot, twins
from twinlens.parity.merged import Merged
from twinlens.parity.rounding import equal
from twinlens.spec import Step

_MOST = 160
_FEWEST = 4
"""Numbers that must be others before another precision is what proves it: fewer have the bits of many a thing by
chance."""
_TIES = 16
"""Units of roundoff of the finer precision, on both sides of the middle, within which a result is rounded either way:
a sum of exponentials is off by up to eight."""


def find(merged: Merged, base: Variant, known: list[Variant], *, deep: bool = True) -> Variant | None:
    """Order fields under which the step gives the candidate's bits, the fewest that do; None where none were found."""
    for trial in known:
        if trial and matches(merged, base + trial):
            return trial
    if not deep:
        return None
    singles = list(alternatives(merged, base))
    tried = 0
    for size in (1, 2, 3):
        for chosen in combinations(singles, size):
            if len({slot(c) for c in chosen}) < size:
                continue
            if (tried := tried + 1) > _MOST:
                return None
            if matches(merged, base + chosen):
                return Variant(chosen)
    return None


def alternatives(merged: Merged, base: Variant) -> Iterator[SetField]:
    """Each other value of each order field, and precisions finer than the declared one.

    What was rounded to another dtype than the declared one has the bits of many an order by chance.
    """
    same = merged.value.dtype == merged.dtypes[merged.target]
    for step in merged.kernel_steps[::-1]:
        for name, kind, now in kinds(step.op):
            if kind.name == "order" and same:
                yield from (SetField((step.writes,), name, v) for v in kind.alternatives if v != now)
            if kind.name == "dtype" and (same or merged.value.dtype == torch.float64):
                yield from (
                    SetField((step.writes,), name, v) for v in kind.alternatives if finer(merged, step, name, v, now)
                )


def finer(merged: Merged, step: Step, name: str, a: torch.dtype | None, b: torch.dtype | None) -> bool:
    """Whether the choice of `a` for `b` is an order: more precise, and what is stored the same.

    So is the precision of an oracle, beyond what any model stores, and that of a run which is of another dtype as a
    whole. Where the reference departs from what is declared, both must be no coarser than that.
    """
    read = {site: merged.sites[site].dtype for site in step.reads if site in merged.sites}
    if merged.precision(step, a) in {t for site, t in read.items() if t != merged.dtypes.get(site, t)}:
        return True  # the whole run is of another dtype
    alike = merged.value.dtype == merged.dtypes[merged.target]
    declared = getattr(merged.declared.at[step.writes].op, name, b)
    if declared != b:
        more = not merged.is_coarser(step, a, declared) and not merged.is_coarser(step, b, declared)
    else:
        more = merged.is_coarser(step, b, a)
    return more and (alike or merged.precision(step, a) == torch.float64)


def precision(merged: Merged, base: Variant) -> Variant | None:
    """One other precision under which the step gives every bit of the candidate: a cause, since bits prove it."""
    for step in merged.steps[::-1]:
        for name, kind, now in kinds(step.op):
            for value in kind.alternatives if kind.name == "dtype" else ():
                if merged.precision(step, value) == merged.precision(step, now) or finer(
                    merged, step, name, value, now
                ):
                    continue
                trial = Variant((SetField(twins(merged.steps, step.writes, name), name, value),))
                if matches(merged, base + trial) and not _are_ties(merged, base, merged.precision(step, now)):
                    return trial if _differing(merged, base) >= _FEWEST else None
    return None


def _differing(merged: Merged, base: Variant) -> int:
    """How many numbers that the step gives are others in the run: a table has each of them for every row and twice."""
    native, value = merged.native(base).to(merged.value.dtype), merged.value
    apart = native != value
    return len(torch.stack((native[apart], value[apart])).unique(dim=1).T)


def _are_ties(merged: Merged, base: Variant, declared: torch.dtype) -> bool:
    """Whether so few entries are the other neighbour that results in the declared precision, rounded from another side,
    would be: what is computed more finely than it is stored differs where it lies next to the middle of two.
    """
    native, value = merged.native(base).to(merged.value.dtype), merged.value
    finer = torch.finfo(declared).eps / torch.finfo(value.dtype).eps
    return finer < 1.0 and float((native != value).float().mean()) <= _TIES * finer


def matches(merged: Merged, variant: Variant) -> bool:
    """Whether the step under these changes gives every bit of the run's own value."""
    try:
        value = merged.native(variant)
    except (ValueError, RuntimeError):  # a kernel that cannot compute this
        return False
    return equal(merged.target, value.to(merged.value.dtype), merged.value, merged.sites["mask"])
