"""Why a step differs: the smallest set of changes under which it gives what the candidate computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeGuard

from torch import Tensor

from twinlens.fields import kind_of
from twinlens.parity import hypotheses, masks, orders, solving, structure, weighing
from twinlens.parity.afar import LOCAL, Afar
from twinlens.parity.changes import Change, SetField, Variant, concerns, slot
from twinlens.parity.merged import Merged
from twinlens.parity.meter import Exhausted
from twinlens.parity.mistakes import beside
from twinlens.parity.numbers import Numbers
from twinlens.parity.rivals import Rivals
from twinlens.parity.score import REDUNDANT, Found, Score, Scorer, clash, distance
from twinlens.spec import Spec

_BEST = 5
"""Changes of the nearest that are looked at further."""
_NEAR = 6
"""Further ones at the same step, tried with a number beside them."""
_OPENINGS = 3
"""Choices without effect of their own, tried with the numbers to which they give a meaning."""
_CHOICES = 6
"""Choices that are tried together with weights in another order, as a converter writes them for its own code."""
_DEPTH = 3
"""Changes that are made on top of one another: the first case has three in one step."""
PATIENCE = 150_000
"""Steps that one search runs at most: some twenty seconds where each takes no time to speak of. What explains a step
is found in less."""
FAR, HIDDEN = 1000, 8000
"""From far away each run is one of the whole model, and where steps are hidden one of them all: at most so many."""
HASTE = 15_000
"""At a first look at each step: what another one shows may explain it at once."""
_COMPOUND = 0.1
"""Several changes at once must leave less of the error than this before anything else is tried."""

Hypothesis = tuple[Change, ...]


class Search:
    """The hypotheses of one merged step, tried."""

    def __init__(
        self, merged: Merged, spec: Spec, own: dict[str, Tensor], known: frozenset[str],
        fixed: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """`fixed` are the sites of steps that other ones show to be as they are declared."""
        self.merged, self.spec, self.own, self.known, self.fixed = merged, spec, own, known, fixed
        self.scorer = Scorer(merged, spec)
        self.numbers = Numbers(self.scorer, known | own.keys(), fixed)
        self.rivals = Rivals(self.numbers)
        self.base = self.scorer.base
        self.is_exhausted = False
        """Whether the search ended before it was through."""

    def is_explained(self, score: Score) -> bool:
        """See `Scorer.is_explained`."""
        return self.scorer.is_explained(score)

    def explains(self, found: Found) -> bool:
        """Whether changes explain the step; of a search that was not through, only those that say it plainly."""
        return found.shared or (self.is_explained(found.score) and (not self.is_exhausted or self._is_named(found)))

    def run(self, proposals: Iterable[Variant], *, thorough: bool, patience: float = PATIENCE) -> Found | None:
        """The changes that explain the step, or the best that were found; None where nothing helps."""
        meter = self.merged.meter
        if len(self.merged.steps) > 1:
            patience = min(patience, (FAR if self.merged.is_far else HIDDEN) * len(self.merged.steps))
        meter.limit = meter.runs + patience
        try:
            found = self._run(proposals, thorough=thorough)
            return self._left_out(found) if not self.merged.is_far and self._settled(found) else found
        except Exhausted:
            self.is_exhausted = True
        finally:
            meter.limit = float("inf")
        nearest = self.numbers.nearest
        return self._judged(nearest) if nearest is not None else None

    def _run(self, proposals: Iterable[Variant], *, thorough: bool) -> Found | None:
        start, like = Found(Variant(), self.base), list[Found]()
        own = Variant(tuple(weighing.seen(self.merged, self.spec, self.own)))
        tried = [self.scorer.effective(p) for p in proposals if not self._is_fixed(p.changes)]
        for proposal in dict.fromkeys([*tried, *(p + own for p in tried if own)]):
            found = Found(proposal, self.scorer.judged(proposal))
            if proposal and self.scorer.agrees(found.score):
                return replace(self.scorer.pruned(found), shared=True)
            like.extend(self._numbers_of(found))
        start = self._with_seen_weights(start, own.changes)
        if start.variant and self.is_explained(start.score):
            return start
        afar = Afar(self.numbers, self.spec, self.own, self.known) if self.merged.is_far else None
        if not thorough and afar is not None:
            return next((f for f in map(self.numbers.sharp, afar.numbers_of(start, LOCAL)) if f is not None), None)
        if not thorough:
            return self.numbers.sharp(self.numbers.fewest(start))
        if afar is not None:
            if (found := afar.run(start)) is not None:
                return found
            like += [afar.nearest] if afar.nearest is not None else []
        found = self._compound() or self.numbers.everywhere(start)
        if found is not None:
            return found
        if len(own.changes) > len(start.variant.changes):  # they may be nearer only together with what goes with them
            like.insert(0, Found(own, self.scorer.score(own)))
        singles = self._singles([start, *like[:1]], self._hypotheses)
        good = [s for s in (self._judged(s) for s in singles[:_BEST]) if self._settled(s)]
        exact = next((s for s in good if orders.matches(self.merged, s.variant)), None)
        if exact is not None:
            return self.scorer.pruned(exact)
        found = self.numbers.fewest(start)
        is_one = self._settled(found) and len(found.variant.changes) == 1  # type: ignore[union-attr]
        scaled = None if is_one else self.numbers.scaled(start)
        good += [scaled] if scaled is not None and self._settled(scaled) else []
        if found is not None and self._settled(found):
            found = self.rivals.renamed(found)
            simplest = found if self._is_plain(found) else self._simplest(found, singles)
            ways = [*good, self._left_out(simplest)]
            return self._beside(self.scorer.pruned(self._plainest(ways)), ways)
        if good:
            return self._beside(self.scorer.pruned(good[0]), good)
        choices = [s for s in singles if len(s.variant.changes) == 1 and self._is_choice(s.variant.changes[0])]
        moved = self._singles([start, *choices[:_CHOICES]], self._moved)
        for placed in map(self._judged, moved[:_BEST]):
            if self._settled(placed):
                return placed
        starts = [start, *like] + ([found] if found else [])
        best = self._deepen(starts, singles, self._hypotheses)
        if moved and not self._settled(best):
            starts = [*starts, best] if best else starts
            everything = [*self._hypotheses, *self._moved]
            return self._deepen(starts, sorted([*singles, *moved], key=distance), everything)
        return best

    def _is_fixed(self, changes: Iterable[Change]) -> bool:
        return any(self.fixed.intersection(concerns(c)) for c in changes)

    def _is_choice(self, change: Change) -> bool:
        return isinstance(change, SetField) and kind_of(self.spec.at[change.site].op, change.name).name == "choice"

    def _judged(self, found: Found) -> Found:
        return replace(found, score=self.scorer.tried(found.variant, found.score))

    def _settled(self, found: Found | None) -> TypeGuard[Found]:
        return found is not None and self.is_explained(found.score)

    def _compound(self) -> Found | None:
        """What is changed at many places at once, by one mistake."""
        for changes in self._compounds:
            if self._is_fixed(changes):
                continue
            found = Found(Variant(changes), self.scorer.score(Variant(changes)))
            if found.score.rms < _COMPOUND * self.base.rms and self._settled(judged := self._judged(found)):
                return self.scorer.pruned(judged)
        return None

    def _beside(self, found: Found, ways: Sequence[Found]) -> Found:
        """With what else explains the step, by one change, and is not told from it by leaving less."""
        near = (w for w in ways if len(w.variant.changes) == 1 and w.score.rms <= REDUNDANT * found.score.rms)
        rivals = {slot(c): c for w in near for c in w.variant.changes if c not in found.variant.changes}
        return replace(found, rivals=tuple(rivals.values()))

    def _plainest(self, found: Sequence[Found]) -> Found:
        """Of those that leave as little as any, as far as rounding lets one tell, what is said most plainly."""
        least = min(f.score.rms for f in found)
        near = [f for f in found if f.score.rms <= REDUNDANT * least or orders.matches(self.merged, f.variant)]
        return min(near, key=self._plainness)

    def _plainness(self, found: Found) -> tuple[bool, int, bool, bool, float]:
        """Bits first, then few changes, then what is left out, then numbers with a name, then what is left."""
        exact = orders.matches(self.merged, found.variant)
        off = all(isinstance(c, SetField) and c.value is None for c in found.variant.changes)
        return not exact, len(found.variant.changes), not off, not self._is_named(found), found.score.rms

    @staticmethod
    def _is_named(found: Found) -> bool:
        """Whether every number that was estimated has a name, or is off."""
        return all(
            slot(c) in found.names or (isinstance(c, SetField) and c.value is None)
            for c in found.variant.changes
            if slot(c) in found.intervals
        )

    def _is_plain(self, found: Found) -> bool:
        """One number, or several that all have a name: a choice would say it no more simply."""
        return len(found.variant.changes) == 1 or self._is_named(found)

    def _simplest(self, found: Found, singles: list[Found]) -> Found:
        """Several nameless numbers may stand for one choice and a number."""
        where = {site for c in found.variant.changes for site in concerns(c)}
        near = [s for s in singles[_BEST:] if where.intersection(concerns(s.variant.changes[-1]))]
        others = [
            f
            for s in (*singles[:_BEST], *near[:_NEAR])
            if (f := self.numbers.fewest(s)) is not None and self._settled(f)
        ]
        return self._plainest([found, *others])

    def _left_out(self, found: Found) -> Found:
        """With a part of the step left out in the place of a number that makes it act as nothing."""
        for change in found.variant.changes:
            if not isinstance(change, SetField) or change.value is None:
                continue
            for (off,) in (h for h in self._hypotheses if len(h) == 1):
                if isinstance(off, SetField) and off.value is None and off.sites == change.sites:
                    variant = found.variant.without(change) + (off,)
                    score = self.scorer.tried(variant)
                    if self.is_explained(score) and score.rms <= REDUNDANT * found.score.rms:
                        return replace(found, variant=variant, score=score)
        return found

    def _with_seen_weights(self, start: Found, seen: Sequence[Change]) -> Found:
        """Weights that are known to differ are taken as they are: all, or those that bring the step nearer."""
        if len(seen) > 1:
            together = Found(start.variant + seen, self.scorer.tried(start.variant + seen))
            if self._settled(together):
                return self.scorer.pruned(together)
        for use in seen:
            score = self.scorer.score(start.variant + (use,))
            if score < start.score:
                start = Found(start.variant + (use,), score)
        return self._judged(start) if start.variant else start

    def _deepen(self, starts: Sequence[Found], tried: list[Found], further: Sequence[Hypothesis]) -> Found | None:
        """Discrete changes, one and then two at once, each with the numbers that go with it."""
        best = min(starts, key=distance)
        frontier: list[Found] = []
        for depth in range(_DEPTH):
            if depth:
                tried = self._singles(frontier, further)
            for found in tried[:_BEST]:
                if found.score.support == 0 and self._settled(judged := self._judged(found)):
                    return self.scorer.pruned(judged)
            fitted = list[Found]()
            for found in map(self.numbers.fewest, (*tried[:_BEST], *self._openings(tried))):
                if found is not None:
                    fitted.append(found)
                    if self.is_explained(found.score) and self._is_named(found):
                        break  # what else explains it would not say it better
            for found in sorted(fitted, key=lambda f: not self._is_named(f)):  # as they came: the nearest first
                if self.is_explained(found.score):
                    return self.scorer.pruned(found)
            pool = sorted([*tried[:_BEST], *fitted], key=distance)
            if not pool or not pool[0].score < best.score:
                break
            best, frontier = pool[0], pool[:2]
        return best if best.variant else None

    def _singles(self, frontier: Sequence[Found], tried: Sequence[Hypothesis]) -> list[Found]:
        """Each hypothesis on top of each state, nearest first."""
        found: list[Found] = []
        for state in frontier:
            for changes in tried:
                if self._is_fixed(changes) or any(clash(c, state.variant) for c in changes):
                    continue
                variant = state.variant + changes
                trial = Found(variant, self.scorer.score(variant), dict(state.intervals), dict(state.names))
                found.append(trial)
                self.numbers.keep(trial)
                if trial.score.support == 0 and trial.score.ratio.is_close:
                    return [trial, *found]
        return sorted(found, key=distance)

    def _openings(self, tried: Sequence[Found]) -> list[Found]:
        """Choices that change nothing yet: they may give a meaning to numbers that had none."""
        same = [t for t in tried[_BEST:] if t.score.rms == self.base.rms and t.score.support == self.base.support]
        return same[:_OPENINGS]

    @cached_property
    def _compounds(self) -> list[Hypothesis]:
        of_all = hypotheses.everywhere, hypotheses.settings, hypotheses.moved
        made: list[Hypothesis] = [changes for each in of_all for changes in each(self.merged)]
        if len(self.merged.steps) > 1:
            made += weighing.exchanged(self.merged, self.spec, self.known)
            made += [*weighing.folded(self.merged, self.known), *hypotheses.as_beside(self.merged, self.spec)]
            made += beside(hypotheses.discrete(self.merged, self.spec, self.scorer.native), self.spec)
        made += weighing.absent(self.merged, self.known)
        return made

    @cached_property
    def _moved(self) -> list[Hypothesis]:
        """Weights in each other's place: a choice that has the same effect is the simpler one, and is tried before."""
        if len(self.merged.steps) == 1:
            return []
        weights = [*weighing.swapped(self.merged, self.known), *weighing.pairs(self.merged)]
        return [*weights, *hypotheses.stretched(self.merged)]

    @cached_property
    def _hypotheses(self) -> list[Hypothesis]:
        native, mask = self.scorer.native, self.merged.sites["mask"]
        return [
            *((c,) for c in hypotheses.discrete(self.merged, self.spec, native)),
            *((c,) for c in weighing.unseen(self.merged, self.spec, self.own, self.known)),
            *solving.solved(self.merged, native, mask, self.known),
            *self._compounds,
            *hypotheses.defaults(self.merged),
            *hypotheses.exchanged(self.merged),
            *((c,) for c in structure.rebuilt(self.merged, self.spec)),
            *((c,) for c in masks.as_seen(self.merged, native)),
        ]

    def _numbers_of(self, found: Found) -> list[Found]:
        """The numbers alone of what another layer has: its choices may be other ones."""
        kinds = [
            (c, kind_of(self.spec.at[c.site].op, c.name)) for c in found.variant.changes if isinstance(c, SetField)
        ]
        kept = Variant(tuple(c for c, kind in kinds if kind.name == "number"))
        return [Found(kept, self.scorer.score(kept))] if kept else []
