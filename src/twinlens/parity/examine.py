"""One merged step examined: innocent, an order, rounding, or at fault and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from twinlens import sites
from twinlens.parity import gauges, hypotheses, orders, relations, structure, tables, weighing
from twinlens.parity.changes import SetField, Use, Variant, concerns, slot
from twinlens.parity.clamped import clamped
from twinlens.parity.elsewhere import Elsewhere, told
from twinlens.parity.faint import faint
from twinlens.parity.merged import Merged
from twinlens.parity.rebuilt import Rebuilt
from twinlens.parity.result import Examination
from twinlens.parity.rounding import difference, equal, unmasked
from twinlens.parity.score import Found, Scorer, clash
from twinlens.parity.search import HASTE, PATIENCE, Search
from twinlens.spec import Spec

_PARTIAL, _NEARLY_ALL = 0.5, 0.9
"""The least share of an error that a change must explain to be called a partial cause: a number with a name, and any
other, since a choice without effect of its own has numbers beside it that can imitate much."""

_ULPS = 30.0
"""No constant brings a step further from rounding than this by a rounding of itself, which is 2 u of it at most."""
_ORDERS = 1e4
"""No order of evaluation moves a step by more roundings of its size."""

ASIDE = 500
"""Times that a search for tables of a step's own runs it at most: there are few that they could be."""

_LESS = 9
"""Where the search of an alike step ended before it was through, the next is the shorter by this."""


class Examiner:
    """Examines the steps of one run in order and remembers what it found, since layers are alike."""

    def __init__(
        self, spec: Spec, own: dict[str, Tensor], known: frozenset[str], before: Examiner | None = None
    ) -> None:  # fmt: skip
        """`before` examined an earlier call of the same two sides: what it found is likely here."""
        self.spec, self.own, self.known = spec, own, known
        self.diagnosis_cost = 0.0
        self.native = torch.empty(0)
        self._changes: dict[str, list[Variant]] = {}
        self._orders: dict[str, list[Variant]] = {}
        self._no_orders: set[str] = set()
        self._in_vain: Counter[str] = Counter()
        self._tied: list[Variant] = []
        self._whole: list[Variant] = []
        self._of_tables: list[Variant] = []
        self._bounds: list[float] = []
        self._elsewhere = Elsewhere(spec)
        for site, variants in before._changes.items() if before is not None else ():
            self._changes[site] = list(variants)
            for variant in variants:
                self._tied.append(variant)
                self._elsewhere.add(variant)

    def __call__(self, m: Merged, *, hasty: bool = False, fixed: frozenset[str] = frozenset()) -> Examination:
        """The ladder for one step; `hasty`: only what is found soon; `fixed`: sites whose steps are as declared."""
        self.native = m.native()
        if (
            equal(m.target, self.native.to(m.value.dtype), m.value, m.sites["mask"])
            and self.native.dtype == m.value.dtype
        ):
            return Examination(m.target, "innocent", exact=True, exact_without_orders=True)
        before = m.meter.spent
        try:
            return self._look(m, hasty, fixed)
        finally:
            self.diagnosis_cost += m.meter.spent - before

    def _look(self, m: Merged, hasty: bool, fixed: frozenset[str]) -> Examination:
        searched = cache(lambda: Search(m, self.spec, self.own, self.known, fixed))  # its oracle is dear
        if not m.is_far and self._may_be_an_order(m, searched):
            order = self._order(m, Variant(), deep=sites.generic(m.target) not in self._no_orders)
            if order is not None:
                return Examination(m.target, "order", orders=order, exact=True)
        sharper = orders.precision(m, Variant()) if not m.is_far else None  # there, one hypothesis among others
        if sharper is not None:
            self._remember(self._changes, m, sharper)
            proof = "no declared precision gives these bits, this one gives every bit"
            return Examination(m.target, "explained", sharper, proof=proof, exact=True, exact_without_orders=True)
        search = searched()
        ratio = search.base.ratio
        if (constant := gauges.shifted(m, self.spec, ratio)) is not None:
            return constant
        weights_differ = any(w.name in self.own for s in m.steps for _, w in s.weights)
        if ratio.is_close and not weights_differ:
            self._no_orders.add(sites.generic(m.target))
            return self._also(m, search.scorer) or self._within_rounding(m, search)
        if ratio.is_rounding and (gauge := gauged(search)):
            return Examination(m.target, "rounding", ratio=ratio, gauge=gauge)
        if ratio.wide < _ULPS and not weights_differ and search.numbers.is_off_by_ulps():
            return Examination(m.target, "rounding", ratio=ratio)
        kind = sites.generic(m.target)
        patience = PATIENCE / (1 + self._in_vain[kind] * _LESS)
        if hasty and not m.is_far:
            patience = min(HASTE, patience)
        plain = None if m.is_far or ratio.is_rounding else relations.related(search.scorer, self.spec)
        if plain is not None:
            patience = min(HASTE, patience)
        found = search.run(self.proposals(m), thorough=not ratio.is_rounding, patience=patience)
        if found is None or not found.variant or not search.explains(found):
            if plain is not None:
                return self.solved(m, search.scorer, plain)
            if not (m.is_far or ratio.is_rounding) and (alone := self._of_its_own(m, search.scorer, fixed)) is not None:
                return alone
            if not ratio.is_rounding and (bounded := self._clamped(m, search.scorer)) is not None:
                return bounded
            self._in_vain[kind] += search.is_exhausted and not hasty
            return replace(self._unsolved(m, search, found), is_unfinished=search.is_exhausted and not m.is_far)
        beside, found = found.rivals, self._sharpened(search.scorer, search.rivals.renamed(found))
        return replace(self.solved(m, search.scorer, found), rivals=(*search.rivals.of(found), *beside))

    def _of_its_own(self, m: Merged, scorer: Scorer, fixed: frozenset[str]) -> Examination | None:
        """A step that reads tables of its own, where nothing else explains it."""
        shared = tables.shared(m, self.spec, fixed)
        if not shared:
            return None
        others = frozenset(s.writes for s in m.steps if s.writes not in shared)
        within = tables.inside(m, shared, self.spec)
        search = Search(within, self.spec, self.own, self.known, others)
        found = search.run(self._of_tables, thorough=True, patience=ASIDE * len(within.steps))
        if found is None or not found.variant or not search.explains(found):
            return None
        alone = tables.own(m, shared, found, self.spec, self._tied)
        if alone is None or not scorer.is_explained(score := scorer.judged(alone.variant)):
            return None
        self._of_tables.append(found.variant)
        return self.solved(m, scorer, replace(alone, score=score))

    def _clamped(self, m: Merged, scorer: Scorer) -> Examination | None:
        """A step behind hidden products that are clamped, where nothing else explains it."""
        found = clamped(scorer, self._bounds)
        if found is None:
            return None
        self._bounds += [c.value for c in found.variant.changes if isinstance(c, Rebuilt)]
        return self.solved(m, scorer, found)

    def _may_be_an_order(self, m: Merged, searched: Callable[[], Search]) -> bool:
        """Whether another order could be all the difference: it may flip a choice.

        A kernel that does not read what the other side computed in between is far from it, and its oracle is not.
        """
        return any(s.op.chooses for s in m.steps) or self._is_near(m) or searched().base.ratio.wide < _ULPS

    def _is_near(self, m: Merged) -> bool:
        """Whether a run of the step itself gives nearly the value."""
        apart = difference(m.target, m.value, self.native, torch.float32)
        size = unmasked(m.target, m.value).float().norm()
        return bool(apart.norm() <= _ORDERS * torch.finfo(m.value.dtype).eps * size)

    def _sharpened(self, scorer: Scorer, found: Found) -> Found:
        """With an interval for each number that was taken over from another step; what this step does not tell goes."""
        if all(slot(c) in found.intervals or not isinstance(c, SetField) for c in found.variant.changes):
            return found
        sharp = told(scorer, found.variant)
        if not scorer.is_explained(sharp.score):
            return found
        return replace(sharp, intervals=sharp.intervals | found.intervals, names=found.names)

    def again(self, m: Merged, scorer: Scorer, fixed: Collection[str]) -> Examination | None:
        """A step that nothing explained, or that seemed rounding, under what was found since; None where that fails.

        `fixed` are sites whose steps are as declared.
        """
        for proposal in (scorer.effective(p) for p in self.proposals(m)):
            if any(not set(fixed).isdisjoint(concerns(c)) for c in proposal.changes):
                continue
            if proposal and scorer.agrees(score := scorer.judged(proposal)):
                return self.solved(m, scorer, self._sharpened(scorer, scorer.pruned(Found(proposal, score))))
        return self._also(m, scorer) if scorer.base.ratio.is_rounding else None

    def besides(self, m: Merged, scorer: Scorer, e: Examination) -> Examination | None:
        """A step that is explained, with numbers that it tells too beside its changes; None where there are none."""
        for proposal in self._elsewhere.proposals(m):
            more = Variant(tuple(c for c in proposal.changes if not clash(c, e.changes)))
            found = told(scorer, e.changes + more) if more else Found(e.changes, scorer.base)
            new = [c for c in more.changes if slot(c) in found.intervals]
            kept = all(c in found.variant.changes for c in e.changes.changes)
            if new and kept and scorer.is_explained(found.score) and found.score < scorer.judged(e.changes):
                return self.solved(m, scorer, replace(found, intervals=found.intervals | e.intervals, names=e.names))
        return None

    def _also(self, m: Merged, scorer: Scorer) -> Examination | None:
        """Numbers that other steps have, where this one tells them too, although they are below its rounding."""
        for proposal in (scorer.effective(p) for p in self.proposals(m)):
            found = told(scorer, proposal) if proposal else Found(proposal, scorer.base)
            sharp = Variant(tuple(c for c in found.variant.changes if slot(c) in found.intervals))
            score = scorer.judged(sharp) if sharp else scorer.base
            if sharp and score.ratio.is_rounding and score.rms <= scorer.base.rms:
                return self.solved(m, scorer, Found(sharp, score, found.intervals, found.names))
        return None

    def solved(self, m: Merged, scorer: Scorer, found: Found) -> Examination:
        """A step that changes explain."""
        self._remember(self._changes, m, found.variant)
        if m.is_far:
            self._whole.append(found.variant)
        bits = orders.matches(m, found.variant)
        order = None if bits or m.is_far else self._order(m, found.variant)
        return Examination(
            m.target,
            "explained",
            changes=found.variant,
            orders=order or Variant(),
            ratio=scorer.base.ratio,
            intervals=dict(found.intervals),
            proof=self._proof(scorer, found, bits or order is not None),
            names=dict(found.names),
            exact=bits or order is not None,
            exact_without_orders=bits,
        )

    def _within_rounding(self, m: Merged, search: Search) -> Examination:
        """Each entry is; all of them together may still tell of a number."""
        found = faint(search.numbers)
        if found is not None:
            return self.solved(m, search.scorer, found)
        return Examination(m.target, "rounding", ratio=search.base.ratio)

    def _unsolved(self, m: Merged, search: Search, found: Found | None) -> Examination:
        if search.base.ratio.is_rounding:
            return self._within_rounding(m, search)
        share, found = 0.0, found and search.scorer.telling(found)
        if found is not None and found.score.support == 0 and search.base.rms > 0:
            share = 1.0 - found.score.rms / search.base.rms
        nearest = tuple(hypotheses.show(c, self.spec) for c in found.variant.changes) if found else ()
        if found is None or share < _PARTIAL or not self._credible(found, share):
            return Examination(m.target, "different", ratio=search.base.ratio, share=0.0, nearest=nearest)
        return Examination(
            m.target,
            "different",
            changes=found.variant,
            ratio=search.base.ratio,
            share=share,
            intervals=dict(found.intervals),
            proof=self._proof(search, found, False),
            names=dict(found.names),
            nearest=nearest,
        )

    def _credible(self, found: Found, share: float) -> bool:
        """A partial cause is named only where its value is sharp and has a name, or its tensor was seen.

        What explains nearly all may be anything else, too.
        """
        for change in found.variant.changes:
            if share < _NEARLY_ALL and not isinstance(change, Use) and slot(change) not in found.names:
                return False
            if isinstance(change, Use) and change.name not in self.own:
                return False
            within = found.intervals.get(slot(change))
            if isinstance(change, SetField) and within is not None:
                now = getattr(self.spec.at[change.site].op, change.name)
                if within[1] - within[0] > 0.02 * abs(change.value - (now or 0.0)):
                    return False
        return True

    def _proof(self, search: Search | Scorer, found: Found, bits: bool) -> str:
        before, after = search.base, found.score
        left = "reproduced bit for bit" if bits else f"left at {after.ratio.tight:.2g} times the step's own rounding"
        masks = f", {before.support} entries masked by one side only" if before.support else ""
        return f"error {before.ratio.tight:.3g} times the step's own rounding{masks}; {left}"

    def proposals(self, m: Merged) -> list[Variant]:
        """What is declared where the reference computes otherwise, and what explained other steps."""
        declared = Variant(tuple(hypotheses.as_declared(m)))
        layer = sites.split(m.target)[0]
        known = self._changes.get(sites.generic(m.target), [])
        alike = [v for k in reversed(known) if layer is not None and (v := k.in_layer(layer))]
        tied = [v for k in reversed(self._tied) if (v := k.tied_to(m.steps))]
        built = structure.like(self._tied, m, self.spec)
        here = {s.writes for s in m.steps}
        whole = [v for v in reversed(self._whole) if all(here.issuperset(concerns(c)) for c in v.changes)]
        return [*([declared] if declared else []), *whole, *alike, *tied, *built, *self._elsewhere.proposals(m)]

    def _order(self, m: Merged, base: Variant, *, deep: bool = True) -> Variant | None:
        layer = sites.split(m.target)[0]
        known = self._orders.get(sites.generic(m.target), [])
        moved = [k if layer is None else k.in_layer(layer) for k in reversed(known)]
        found = orders.find(m, base, moved, deep=deep)
        if found is not None:
            self._remember(self._orders, m, found)
        return found

    def _remember(self, memory: dict[str, list[Variant]], m: Merged, variant: Variant) -> None:
        kept = Variant(tuple(c for c in variant.changes if not isinstance(c, Use)))
        if memory is self._changes and kept:
            self._tied.append(kept)
            self._elsewhere.add(kept)
        known = memory.setdefault(sites.generic(m.target), [])
        if kept and kept not in known:
            known.append(kept)


def gauged(search: Search) -> str:
    """In words, weights that are known to differ, of which one alone would be seen and all together are not."""
    uses = weighing.seen(search.merged, search.spec, search.own)
    if not any(not search.scorer.score(Variant((use,))).ratio.is_rounding for use in uses):
        return ""
    return ", ".join(f"{u.name} ({u.pattern})" for u in uses) + f": the same function at {search.merged.target}"
