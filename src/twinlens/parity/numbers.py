"""The fewest numbers that bring a step nearest to the candidate, by derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations

import torch

from twinlens.parity.changes import Change, Leave, SetField, Use, Variant, slot
from twinlens.parity.closed_form import closed_form
from twinlens.parity.fit import Fit, Fitted, Number, alike, constants, factors, interval, numbers
from twinlens.parity.rows import Rows
from twinlens.parity.scale import Scale
from twinlens.parity.score import MOSTLY, REDUNDANT, Found, Scorer, apart
from twinlens.spec import Step

_SMALL_ROWS = (3, 9, 33)
"""Angles are fitted on so many positions first: each time three times as far, so that no turn is skipped."""
_MOST, _JOINT = 3, 6
"""Numbers that are added one by one; numbers that are tried all at once."""
_TRIED = 4
"""Numbers that are fitted, of those that promise most."""
_USEFUL = 0.97
"""A further number must bring the step nearer by this; any number does by a part in the square root of the entries."""
_AS_GOOD = 1.05
"""Once a number explains the step, others are fitted only if their derivatives promise as much."""
_FAR_FROM_LINEAR = 0.5
"""What is far from linear promises less by its derivative than it keeps: it is taken for twice as good."""
_OFF = 1.2
"""A number that may be off is off if that leaves no more than this."""
_SHARP = 0.4
"""The part of a change that its statistical interval may be wide: it is then twenty standard errors."""
_ASIDE = 5.0
"""A constant that was rounded on its way may lie so many half intervals from the number with a name."""


class Numbers:
    """Estimates the number fields of one merged step."""

    def __init__(self, scorer: Scorer, seen: Collection[str] = (), fixed: Collection[str] = ()) -> None:
        """`seen` are the weights that are known, `fixed` the sites whose steps are as they are declared."""
        self.scorer, self.merged, self.spec = scorer, scorer.merged, scorer.spec
        self.seen, self.fixed = seen, fixed
        self.nearest: Found | None = None

    def keep(self, found: Found) -> None:
        """Remember what came nearest, for a search that ends before it is through."""
        if found.score < (self.scorer.base if self.nearest is None else self.nearest.score):
            self.nearest = found

    def fewest(self, start: Found) -> Found | None:
        """The fewest numbers that bring the step nearest, by derivative, on top of what is changed already."""
        fit, free = self.fit(start.variant), self.free(numbers, start.variant)
        best, chosen = start, list[Number]()
        while len(chosen) < _MOST and len(free) > len(chosen):
            step = self.next_number(fit, chosen, [n for n in free if n not in chosen], start)
            if step is None or not step[1].score < best.score or step[1].score.rms > _USEFUL * best.score.rms:
                break
            chosen, best = list(step[0].numbers), step[1]
            if self.scorer.is_explained(best.score):
                return best
        return self._jointly(fit, free, start) or (best if chosen else None)

    def scaled(self, start: Found) -> Found | None:
        """The weight that nobody saw and whose factor brings the step nearest."""
        free = self.free(self.factors, start.variant)
        step = self.next_number(self.fit(start.variant), [], free, start) if free else None
        return step[1] if step is not None else None

    def everywhere(self, start: Found) -> Found | None:
        """One number, changed wherever it stands with the value that it has, if that explains the step; with a name."""
        steps, free = start.variant.steps(self.merged.steps), self.free(alike, start.variant)
        step = self.next_number(self.fit(start.variant), [], free, start) if free else None
        if step is None or not self.scorer.is_explained(step[1].score) or not step[1].names:
            return None
        found = apart(step[1], steps)
        for change in found.variant.changes:  # at one place alone it is the same with less
            score = self.scorer.tried(start.variant + (change,))
            if self.scorer.is_explained(score) and score.rms <= REDUNDANT * found.score.rms:
                return None
        return found

    def free(self, of: Callable[[Iterable[Step]], list[Number]], base: Variant) -> list[Number]:
        """Numbers of the changed steps that no change has set or left out."""
        taken = {(s, c.name) for c in base.changes if isinstance(c, SetField) for s in c.sites}
        taken |= {(c.site, c.argument) for c in base.changes if isinstance(c, Use)}
        gone = {s for c in base.changes if isinstance(c, Leave) for s in c.sites}
        return [
            n
            for n in of(base.steps(self.merged.steps))
            if all(map(self._is_declared, n.sites, [n.name] * len(n.sites)))
            and not gone.union(self.fixed).intersection(n.sites)
            and not taken.intersection((s, n.name) for s in n.sites)
        ]

    def _is_declared(self, site: str, name: str) -> bool:
        """Whether a row is one of the declaration, which a change of structure may have put another in the place of."""
        step = self.spec.at.get(site)
        return step is not None and (name in vars(step.op) or name in dict(step.weights))

    def factors(self, steps: Iterable[Step]) -> list[Number]:
        """A factor for each weight that nobody saw."""
        return list[Number](factors(steps, self.merged.weights, self.seen))

    def sharp(self, found: Found | None) -> Found | None:
        """Below rounding's loose scale numbers count only if they are sharp and take most of the error away."""
        if (
            found is None
            or found.score.rms > MOSTLY * self.scorer.base.rms
            or not self.scorer.is_explained(found.score)
        ):
            return None
        return found if self.is_sharp(found) else None

    def is_off_by_ulps(self) -> bool:
        """Whether one number, moved by no more than two roundings of itself, explains the step: an order (rule 3)."""
        fit, u = self.fit(Variant()), torch.finfo(self.merged.value.dtype).eps / 2
        for n in self.free(constants if self.merged.is_far else numbers, Variant()):
            if n.value is None or self.is_staged(n):
                continue
            value = fit.run([n]).values[0]
            if value is None or not math.isfinite(value):
                continue
            reach = 2 * u * abs(n.value)
            nearest = min(max(value, n.value - reach), n.value + reach)
            score = self.scorer.score(Variant((SetField(n.sites, n.name, nearest),)))
            if self.scorer.is_explained(score):
                return True
        return False

    def is_sharp(self, found: Found, wide: float = _SHARP) -> bool:
        """Whether each value is known much better than it is apart from the reference's, roundings of it left out."""
        u = torch.finfo(self.merged.value.dtype).eps / 2
        for change in found.variant.changes:
            within = found.intervals.get(slot(change))
            if within is not None and isinstance(change, SetField) and change.value is not None:
                now = getattr(self.spec.at[change.site].op, change.name) or 0.0
                if within[1] - within[0] - 4 * u * abs(change.value) > wide * abs(change.value - now):
                    return False
        return True

    def fit(self, base: Variant) -> Fit:
        """The step on top of some changes, as a function of its numbers."""
        return Fit(self.merged.prepared(base, self.scorer.rows), base, self.scorer.scale.weights())

    def _jointly(self, fit: Fit, free: list[Number], start: Found) -> Found | None:
        """All numbers at once, where none alone shows the way; then the fewest of them that explain the step too."""
        _, slopes = fit.columns(free, torch.tensor([n.start for n in free], dtype=torch.float64)) if free else (0, None)
        free = [n for i, n in enumerate(free) if slopes is not None and bool(slopes[:, i].any())]
        if not 1 < len(free) <= _JOINT:
            return None
        every = self.found(fit.run(free, self._starts(fit, free)), start)
        if every is None or not self.scorer.is_explained(every.score):
            return None
        every = self.scorer.pruned(every)
        for size in range(2, len(every.variant.changes) - len(start.variant.changes)):
            few = (self.found(fit.run(some, self._starts(fit, some)), start) for some in combinations(free, size))
            good = [f for f in few if f is not None and self.scorer.is_explained(f.score)]
            if good:
                return max(good, key=lambda f: len(f.names))
        return every

    def next_number(
        self, fit: Fit, chosen: list[Number], free: list[Number], start: Found, most: float = math.inf
    ) -> tuple[Fitted, Found] | None:
        """The number that, fitted together with those chosen, leaves least; with what was fitted.

        None where by its derivative each would leave more than `most`, a part of the error.
        """
        promise, apart = fit.promises(chosen, free)
        if min((left for left, _ in promise), default=0.0) > most * apart:
            return None
        tried: list[tuple[Fitted, Found]] = []
        done = float("inf")
        likely = sorted(promise, key=self._promise)[:_TRIED]
        for left, n in sorted(likely, key=lambda p: self.is_staged(p[1])):  # what is fitted at one go comes first
            if left > _AS_GOOD * done:
                continue
            fitted = fit.run((*chosen, n), self._starts(fit, (*chosen, n)))
            found = self.found(fitted, start)
            if found is not None:
                tried.append((fitted, found))
                if self.scorer.is_explained(found.score):
                    if set(found.names) >= {slot(c) for c in found.variant.changes if slot(c) in found.intervals}:
                        return fitted, found
                    done = min(done, left)
        return min(tried, key=lambda t: self._rank(t[1]), default=None)

    def promising(self, of: Callable[[Iterable[Step]], list[Number]], base: Variant, most: float) -> list[Number]:
        """The numbers that promise most; none where each would leave more than this part of the error."""
        free = self.free(of, base)
        promise, apart = self.fit(base).promises([], free) if free else ([], 0.0)
        near = min((left for left, _ in promise), default=0.0) <= most * apart
        return [n for _, n in sorted(promise, key=self._promise)[:_TRIED]] if near else []

    def _rank(self, found: Found) -> tuple[int, int, int, float]:
        """Among changes that explain a step alike, those whose values have a name."""
        explained = self.scorer.is_explained(found.score)
        return (found.score.support, not explained, -len(found.names) if explained else 0, found.score.rms)

    def _promise(self, promise: tuple[float, Number]) -> float:
        """What a number leaves by its derivative; less is likely where the step is far from linear in it."""
        left, n = promise
        return left * (_FAR_FROM_LINEAR if self.is_staged(n) or n.value is None else 1.0)

    def is_staged(self, number: Number) -> bool:
        """Whether it makes angles, which grow with the position."""
        return "positions" in self.spec.at[number.site].reads

    def _starts(self, fit: Fit, chosen: Sequence[Number]) -> list[float]:
        """Where a fit starts. Angles grow with the position: fit the first positions first."""
        at = [n.start for n in chosen]
        if not any(self.is_staged(n) for n in chosen):
            return at
        for rows in _SMALL_ROWS:
            few = Rows(torch.arange(min(rows, self.scorer.length), device=self.merged.value.device), self.scorer.length)
            scale = Scale(self.merged, fit.base, few, self.merged.stepwise(fit.base))
            small = Fit(self.merged.prepared(fit.base, few), fit.base, scale.weights())
            fitted = small.run(chosen, at)
            at = [
                n.start if v is None else Number(n.sites, n.name, n.kind, v).start
                for n, v in zip(fitted.numbers, fitted.values, strict=True)
            ]
        return at

    def found(self, fitted: Fitted, start: Found) -> Found | None:
        """A fit as changes: numbers that stay within their interval are dropped, the others get their names."""
        u = torch.finfo(self.merged.value.dtype).eps / 2
        changes: list[Change] = []
        intervals, names = dict(start.intervals), dict(start.names)
        for n, value, error in zip(fitted.numbers, fitted.values, fitted.errors, strict=True):
            change = n.change(value)
            if value is not None:
                low, high = interval(value, error, u)
                if not all(map(math.isfinite, (value, low, high))) or not n.kind.allows(value):
                    return None
                if n.value is not None and low <= n.value <= high:
                    continue
                named = self._named(start.variant, n, value, (low, high))
                value = named[0] if named is not None else value
                if value == n.value:
                    continue
                change = n.change(value)
                if named is not None:
                    names[slot(change)] = named[1]
                    low, high = min(low, value), max(high, value)
                intervals[slot(change)] = (low, high)
            elif n.value is None:
                continue
            changes.append(change)
        if not changes:
            return None
        found = Found(start.variant + changes, self.scorer.tried(start.variant + changes), intervals, names)
        self.keep(found)
        return self._switched_off(found, fitted)

    def _named(
        self, base: Variant, number: Number, value: float, within: tuple[float, float]
    ) -> tuple[float, str] | None:
        """The number with a name that a value stands for, if the replay does not get worse by it.

        Constants that were rounded on their way lie a little outside a statistical interval; the replay decides.
        """
        half = (within[1] - within[0]) / 2
        half = max(_ASIDE * half, 2e-5 * abs(value))
        named = closed_form(value, within) or closed_form(value, (value - half, value + half))
        if named is None or named[0] == value:
            return None
        exact, estimated = (self.scorer.score(base + (number.change(v),)) for v in (named[0], value))
        return named if exact.rms <= 1.01 * estimated.rms else None

    def _switched_off(self, found: Found, fitted: Fitted) -> Found:
        """A number that hardly acts any more is off."""
        for n in fitted.numbers:
            if n.kind.off and n.value is not None:
                variant = found.variant + (SetField(n.sites, n.name, None),)
                score = self.scorer.tried(variant)
                if score.support <= found.score.support and score.rms <= _OFF * found.score.rms:
                    found = Found(variant, score, found.intervals, found.names)
        return found
