"""Queries, keys and values that are hidden and clamped (`clip_qkv` of OLMo and DBRX): the bound is fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from twinlens.ops import Clipped, Project
from twinlens.parity.changes import Variant, slot
from twinlens.parity.closed_form import closed_form
from twinlens.parity.merged import Merged
from twinlens.parity.rebuilt import Rebuilt, then
from twinlens.parity.score import Found, Scorer
from twinlens.sites import split
from twinlens.spec import Step

_BEYOND = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
"""Parts of the entries that may lie beyond the bound from which it is fitted."""
_STEPS = 8
"""Of Gauss and Newton: what is left is linear in the bound, but for entries between two bounds."""
_NUDGE = 1e-3
"""Of the bound, over which its derivative is taken."""


def clamped(scorer: Scorer, known: Sequence[float] = ()) -> Found | None:
    """The bound under which products that are hidden explain a step, all of them or one; `known`: of other layers."""
    merged = scorer.merged
    products = [
        s for s in merged.steps if isinstance(s.op, Project) and s.op.heads and s.writes not in merged.sites
    ]  # fmt: skip
    if not products:
        return None
    values = merged.plain()
    for chosen in (products, *([s] for s in products if not merged.is_far)):
        size = torch.cat([values[s.writes].abs().flatten().float() for s in chosen]).sort().values
        starts = [*known, *(float(size[int((1.0 - part) * (len(size) - 1))]) for part in _BEYOND)]
        near = min(starts, key=lambda bound: scorer.score(_change(merged, chosen, bound)).rms)
        if not scorer.score(_change(merged, chosen, near)) < scorer.base:
            continue
        for bound, name, width in _named(_fitted(merged, chosen, near)):
            variant = _change(merged, chosen, bound)
            if scorer.is_explained(score := scorer.tried(variant)):
                each = [slot(c) for c in variant.changes]
                within = dict.fromkeys(each, (bound - width, bound + width))
                return Found(variant, score, within, dict.fromkeys(each, name) if name else {})
    return None


def _change(merged: Merged, products: Sequence[Step], bound: float) -> Variant:
    """The products with this bound, as one change of each layer."""
    layers = dict[int | None, list[Step]]()
    for step in products:
        layers.setdefault(split(step.writes)[0], []).append(step)
    return Variant(tuple(_of_layer(merged.target, steps, bound) for steps in layers.values()))


def _of_layer(target: str, products: Sequence[Step], bound: float) -> Rebuilt:
    rows = tuple(row for step in products for row in then(step, Clipped(bound)))
    words = f"{', '.join(s.writes.rpartition('.')[2] for s in products)} within {bound:.6g} of 0"
    return Rebuilt(target, rows, "attn.clip", products[0].writes, None, bound, words)


def _fitted(merged: Merged, products: Sequence[Step], bound: float) -> float:
    """The bound that brings the step nearest, from one that is near."""
    real = merged.sites["mask"].bool()
    for _ in range(_STEPS):
        here, there = (
            merged.stepwise(_change(merged, products, b))[real].double() for b in (bound, bound * (1 - _NUDGE))
        )
        slope = (here - there) / (bound * _NUDGE)
        size = float(slope.square().sum())
        if size == 0.0:
            break
        further = bound + float((slope * (merged.value[real].double() - here)).sum()) / size
        if not 0.5 * bound < further < 2.0 * bound:
            break
        bound = further
    return bound


def _named(bound: float) -> Iterator[tuple[float, str, float]]:
    """The bound as a number with a name first, and how far the fit may be off."""
    width = 1e-4 * bound
    named = closed_form(bound, (bound - width, bound + width))
    if named is not None:
        yield *named, width
    yield bound, "", width
