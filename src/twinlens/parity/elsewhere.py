"""What was found at other steps, as one step could have it, and what of that a step itself tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from twinlens.fields import from_smooth, to_smooth
from twinlens.parity.changes import SetField, Variant, slot
from twinlens.parity.fit import SIGMAS, Fit, numbers, slope, solve
from twinlens.parity.merged import Merged
from twinlens.parity.score import Found, Scorer
from twinlens.spec import Spec

Slot = tuple[str, str, str]


def told(scorer: Scorer, variant: Variant) -> Found:
    """Of a variant's numbers those that this step itself tells from the reference's, with their intervals.

    Derivatives at the variant's values say how far a least-squares fit would still move, and how sharply: a number
    stays where that takes in its value and shuts out the reference's. Whatever is no number stays.
    """
    m, spec = scorer.merged, scorer.spec
    by_slot = {(n.sites, n.name): n for n in numbers(m.steps)}
    chosen = [
        (c, n)
        for c in variant.changes
        if isinstance(c, SetField) and c.value is not None and (n := by_slot.get((c.sites, c.name))) is not None
    ]
    if not chosen:
        return Found(variant, scorer.judged(variant))
    fit = Fit(m.prepared(variant, scorer.rows), variant, scorer.scale.weights())
    at = torch.tensor([to_smooth(n.kind, float(c.value)) for c, n in chosen], dtype=torch.float64)
    r, slopes = fit.columns([n for _, n in chosen], at)
    errors = fit.covariance(r, slopes).diagonal().clamp_min(0).sqrt().tolist()
    moves = solve(slopes, r).tolist()
    u = torch.finfo(m.value.dtype).eps / 2
    gone, intervals = list[SetField](), dict[Slot, tuple[float, float]]()
    for (change, n), here, move, error in zip(chosen, at.tolist(), moves, errors, strict=True):
        reach = SIGMAS * error + abs(slope_inverse(n.kind, here) * 2 * u * float(change.value))
        was = n.start if getattr(spec.at[change.site].op, change.name) is not None else 0.0
        if error == 0.0 or abs(move) > reach or abs(was - here) <= reach:
            gone.append(change)
            continue
        half = abs(slope(n.kind, here)) * reach
        value = float(from_smooth(n.kind, torch.tensor(here + move, dtype=torch.float64)))
        intervals[slot(change)] = (value - half, value + half)
    kept = Variant(tuple(c for c in variant.changes if c not in gone))
    return Found(kept, scorer.judged(kept), intervals)


def slope_inverse(kind: Any, u: float) -> float:
    """d coordinate / d value."""
    d = slope(kind, u)
    return 1.0 / d if d else 0.0


class Elsewhere:
    """Fields that were found to differ, by kind of operation: what one norm has, others may have."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._found: dict[tuple[str, str, Any], Any] = {}

    def add(self, variant: Variant) -> None:
        """Remember what a step was explained by."""
        for change in variant.changes:
            if isinstance(change, SetField):
                op = self.spec.at[change.site].op
                self._found[type(op).__name__, change.name, getattr(op, change.name)] = change.value

    def proposals(self, m: Merged) -> Iterator[Variant]:
        """Those of them that a step could have too: all at once, and each alone."""
        fields = {(n.sites, n.name): n.value for n in numbers(m.steps)}
        changes = [
            SetField(at, name, self._found[key])
            for (at, name), value in fields.items()
            if (key := (type(self.spec.at[at[0]].op).__name__, name, value)) in self._found
        ]
        if changes:
            yield Variant(tuple(changes))
        if len(changes) > 1:
            yield from (Variant((change,)) for change in changes)
