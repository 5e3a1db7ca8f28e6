"""Inputs of which differences alone matter: rotary positions that are all shifted, row by row, make the same scores.

As with any gauge, what it is need not be known: tables that others share differ, since they were made of another input,
and with them hidden, and what the layers make of them, the reference's own steps give what the candidate has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from twinlens import sites
from twinlens.parity.changes import Feed, Variant
from twinlens.parity.hypotheses import show
from twinlens.parity.merged import Merged, merge
from twinlens.parity.meter import Meter
from twinlens.parity.result import Examination
from twinlens.parity.rounding import Ratio, difference, unmasked
from twinlens.parity.score import Scorer
from twinlens.spec import Spec, Weights

_DEEP = 3
"""Steps behind the tables that are hidden at most: a rotation, a norm after it."""
GONE = 0.01
"""A change is a gauge where less than this is left of it: what two faults leave of each other is more."""


def relative(
    spec: Spec, seen: Mapping[str, Tensor], weights: Weights, meter: Meter, examined: dict[str, Examination]
) -> list[str]:
    """What is a gauge, in words; the steps that it moved are rounding from then on."""
    targets = [t for t, e in examined.items() if sites.split(t)[0] is None and _is_fed(e)]
    worst = max((r.wide for t in targets if (r := examined[t].ratio) is not None), default=0.0)
    inner = list(targets)
    for _ in range(_DEEP if targets else 0):
        shown = {s: x for s, x in seen.items() if s not in inner}
        leads = [m for m in merge(spec, shown, weights, meter) if any(s.writes in inner for s in m.steps)]
        fed = Variant(tuple(c for t in targets for c in examined[t].changes.changes))
        ratios = _ratios(leads, spec, examined, worst, fed)
        if ratios:
            told = ", ".join(dict.fromkeys(show(c, spec) for t in targets for c in examined[t].changes.changes))
            for target in targets:
                examined[target] = Examination(target, "rounding", ratio=max(ratios, key=lambda r: r.wide))
            return [f"{told}: the same function at {', '.join(dict.fromkeys(sites.generic(m.target) for m in leads))}"]
        inner += [s.writes for s in spec.steps if s.writes not in inner and any(r in inner for r in s.reads)]
    return []


def _is_fed(e: Examination) -> bool:
    return e.status == "explained" and all(isinstance(c, Feed) for c in e.changes.changes)


def _ratios(
    leads: Iterable[Merged], spec: Spec, examined: Mapping[str, Examination], worst: float, fed: Variant
) -> list[Ratio]:
    """Of each step its error where the reference's tables are read, with what it was explained by; none where one of
    them is more than rounding.
    """
    found = list[Ratio]()
    for m in leads:
        e = examined.get(m.target)
        variant = e.changes if e is not None and e.status == "explained" else Variant()
        if e is None or e.is_unsolved or not is_near(m, variant):
            return []
        ratio = left(m, spec, worst, fed.at(m.steps), variant)
        if ratio is None:
            return []
        found.append(ratio)
    return found


def left(m: Merged, spec: Spec, worst: float, changes: Variant, found: Variant = Variant()) -> Ratio | None:
    """What is left at a step of changes that are a gauge; None where they are none.

    Less than a hundredth of what they were; or rounding, as 16 bits have it of what is stored between, where in float64
    the changes leave less of each other. `found` is what else the step is explained by.
    """
    scorer = Scorer(m, spec)
    ratio = scorer.judged(found).ratio
    if not ratio.is_rounding:
        return None
    if ratio.wide >= GONE * worst and changes:
        plain, changed = (m.oracle(v, scorer.rows) for v in (found, found + changes))
        apart = scorer.scale.ratio(difference(m.target, changed, plain), 0)
        return ratio if apart.wide < GONE * worst else None
    return ratio if ratio.wide < GONE * worst else None


def is_near(m: Merged, variant: Variant = Variant()) -> bool:
    """Whether a step may be within rounding of what the candidate has: half of the digits are the same."""
    native = m.stepwise(variant)
    apart = difference(m.target, m.value, native).norm()
    size = unmasked(m.target, native.double()).norm()
    eps = max(_eps(m.value), _eps(native))
    return bool(apart <= eps**0.5 * size)


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps
