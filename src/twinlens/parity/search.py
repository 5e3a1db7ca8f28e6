"""Why a step differs: the smallest set of changes under which it gives what the candidate computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from twinlens.fields import kind_of
from twinlens.parity import hypotheses, orders, weighing
from twinlens.parity.changes import Change, Leave, SetField, Variant, concerns, slot
from twinlens.parity.closed_form import closed_form
from twinlens.parity.fit import Fit, Fitted, Number, interval, numbers
from twinlens.parity.merged import Merged, Rows
from twinlens.parity.rounding import Ratio, Scale, by_rows, difference, masked
from twinlens.sites import axes
from twinlens.spec import Spec

_ROWS = 24
_SMALL_ROWS = (3, 9, 33)
_BEST = 5
_JOINT = 6
_NEAR = 6
_OPENINGS = 3


@dataclass(frozen=True)
class Score:
    """How far a change leaves the step from the candidate: entries masked by one side only, then distance."""

    support: int
    rms: float
    ratio: Ratio

    def __lt__(self, other: Score) -> bool:
        return (self.support, self.rms) < (other.support, other.rms)


@dataclass
class Found:
    """Changes with what is known of each."""

    variant: Variant
    score: Score
    intervals: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    names: dict[tuple[str, str, str], str] = field(default_factory=dict)


class Search:
    """The hypotheses of one merged step, tried."""

    def __init__(self, merged: Merged, spec: Spec, own: dict[str, Tensor], known: frozenset[str]) -> None:
        self.merged, self.spec, self.own, self.known = merged, spec, own, known
        self.native = merged.native()
        self.length = merged.sites["tokens"].shape[1]
        self.rows = Rows(self._worst_rows(), self.length)
        self.scale = Scale(merged, Variant(), self.rows, self.native)
        self.base = self.score(Variant(), self.scale)
        self._scales: dict[Variant, Scale] = {Variant(): self.scale}

    def _worst_rows(self) -> Tensor:
        """The positions where the step is worst, and a few others."""
        error, _ = difference(self.merged.target, self.merged.value, self.native)
        names = self._axes()
        if "p" not in names:
            return torch.arange(self.length)
        size = torch.nan_to_num(error).abs().movedim(names.index("p"), 0).flatten(1).amax(1)
        x, y = (masked(self.merged.target, t) for t in (self.merged.value, self.native))
        if x is not None and y is not None:
            size = size + (x ^ y).movedim(names.index("p"), 0).flatten(1).any(1) * size.max().clamp_min(1.0)
        worst = size.argsort(descending=True)[: _ROWS // 2]
        spread = torch.linspace(0, self.length - 1, min(_ROWS // 2, self.length)).long()
        return torch.cat((worst.cpu(), spread)).unique().to(self.merged.value.device)

    def _axes(self) -> tuple[str, ...]:
        return axes(self.merged.target)

    def score(self, variant: Variant, scale: Scale) -> Score:
        """Inject changes in the declared dtype, and see how far the candidate still is."""
        site = self.merged.target
        try:
            native = self.merged.native(variant)
        except (ValueError, RuntimeError, AssertionError, ZeroDivisionError):
            return Score(10**12, float("inf"), Ratio(float("inf"), float("inf")))
        if native.shape[:-1] != self.merged.value.shape[:-1]:
            return Score(10**12, float("inf"), Ratio(float("inf"), float("inf")))
        error, support = difference(site, self.rows.of(site, self.merged.value), self.rows.of(site, native))
        _, support = difference(site, self.merged.value, native)
        weights = scale.weights()
        rms = float((by_rows(site, error, scale.mask) * weights).square().mean().sqrt())
        if rms != rms:
            rms = float("inf")
        return Score(support, rms, scale.ratio(error, support))

    def is_explained(self, score: Score) -> bool:
        """Rounding, and much nearer than before where rounding's scale is loose."""
        return (
            score.support == 0
            and score.ratio.is_rounding
            and (score.ratio.is_close or score.rms < 0.03 * self.base.rms)
        )

    def judged(self, variant: Variant) -> Score:
        """A finalist against the scales of the changed step itself, but not of its coarser precision: a step that is
        computed coarsely reproduces the candidate to the last bits, or it is not the one.
        """
        if variant not in self._scales:
            fine = Variant(tuple(c for c in variant.changes if not self._is_precision(c)))
            try:
                self._scales[variant] = Scale(self.merged, fine, self.rows, self.merged.native(fine))
            except (ValueError, RuntimeError, AssertionError, ZeroDivisionError):
                self._scales[variant] = self.scale
        return self.score(variant, self._scales[variant])

    def _is_precision(self, change: Change) -> bool:
        return isinstance(change, SetField) and kind_of(self.spec.at[change.site].op, change.name).name == "dtype"

    # the search -----------------------------------------------------------------------------------------

    def run(self, proposals: Iterable[Variant], *, thorough: bool) -> Found | None:
        """The changes that explain the step, or the best that were found; None where nothing helps."""
        start, like = Found(Variant(), self.base), list[Found]()
        for proposal in (self._effective(p) for p in proposals):
            found = Found(proposal, self.judged(proposal))
            if self.is_explained(found.score):
                return found
            like.extend(self._numbers_of(found))
        start = self._with_seen_weights(start)
        if start.variant and self.is_explained(start.score):
            return start
        if not thorough:
            return self._sharp(self._numbers(start))
        if not self.known and len(self.merged.steps) > 1:
            for uses in weighing.exchanged(self.merged, self.spec):
                found = Found(Variant(uses), self.score(Variant(uses), self.scale))
                if found.score.rms < 0.1 * self.base.rms and self.is_explained(judged := self.judged(found.variant)):
                    return replace(found, score=judged)
        singles = self._singles([start, *like[:1]])
        good = [s for s in (replace(s, score=self.judged(s.variant)) for s in singles[:_BEST]) if self._settled(s)]
        exact = next((s for s in good if orders.matches(self.merged, s.variant)), None)
        if exact is not None:
            return self._pruned(exact)
        found = self._numbers(start)
        if found is not None and self._settled(found):
            simplest = found if self._is_plain(found) else self._simplest(found, singles)
            return min([*good, simplest], key=self._plainness)
        if good:
            return self._pruned(good[0])
        return self._deepen([start, *like] + ([found] if found else []), singles)

    def _effective(self, variant: Variant) -> Variant:
        """Without what changes nothing here."""
        return Variant(
            tuple(
                c
                for c in variant.changes
                if not isinstance(c, SetField) or getattr(self.spec.at[c.site].op, c.name) != c.value
            )
        )

    def _plainness(self, found: Found) -> tuple[bool, int, bool, float]:
        """Bits first, then few changes, then numbers with a name, then what is left."""
        exact = orders.matches(self.merged, found.variant)
        nameless = any(slot(c) not in found.names for c in found.variant.changes if slot(c) in found.intervals)
        return not exact, len(found.variant.changes), nameless, found.score.rms

    def _is_plain(self, found: Found) -> bool:
        """One number, or several that all have a name: a choice would say it no more simply."""
        return len(found.variant.changes) == 1 or len(found.names) == len(found.variant.changes)

    def _simplest(self, found: Found, singles: list[Found]) -> Found:
        """Several nameless numbers may stand for one choice and a number."""
        where = {site for c in found.variant.changes for site in concerns(c)}
        near = [s for s in singles[_BEST:] if where.intersection(concerns(s.variant.changes[-1]))]
        others = [
            f for s in (*singles[:_BEST], *near[:_NEAR]) if (f := self._numbers(s)) is not None and self._settled(f)
        ]
        return min([found, *others], key=self._plainness)

    def _sharp(self, found: Found | None) -> Found | None:
        """Below rounding's loose scale a number counts only if it is sharp and takes most of the error away."""
        if found is None or found.score.rms > 0.5 * self.base.rms:
            return None
        for change in found.variant.changes:
            within = found.intervals.get(slot(change))
            if within is not None and isinstance(change, SetField):
                now = getattr(self.spec.at[change.site].op, change.name) or 0.0
                if within[1] - within[0] > 0.4 * abs(change.value - now):
                    return None
        return found

    def _settled(self, found: Found | None) -> bool:
        return found is not None and self.is_explained(found.score)

    def _with_seen_weights(self, start: Found) -> Found:
        """Weights that are known to differ are taken as they are, where that brings the step nearer."""
        for use in weighing.seen(self.merged, self.spec, self.own):
            score = self.score(start.variant + (use,), self.scale)
            if score < start.score:
                start = Found(start.variant + (use,), score)
        return Found(start.variant, self.judged(start.variant)) if start.variant else start

    def _deepen(self, starts: Sequence[Found], tried: list[Found]) -> Found | None:
        """Discrete changes, one and then two at once, each with the numbers that go with it."""
        best = min(starts, key=lambda f: (f.score.support, f.score.rms))
        frontier: list[Found] = []
        for depth in range(3):
            if depth:
                tried = self._singles(frontier)
            for found in tried[:_BEST]:
                if found.score.support == 0 and self.is_explained(judged := self.judged(found.variant)):
                    return self._pruned(replace(found, score=judged))
            fitted = [f for t in (*tried[:_BEST], *self._openings(tried)) if (f := self._numbers(t)) is not None]
            for found in sorted(fitted, key=lambda f: (f.score.support, f.score.rms)):
                if self.is_explained(found.score):
                    return self._pruned(found)
            pool = sorted([*tried[:_BEST], *fitted], key=lambda f: (f.score.support, f.score.rms))
            if not pool or not pool[0].score < best.score:
                break
            best, frontier = pool[0], pool[:2]
        return best if best.variant else None

    def _singles(self, frontier: Sequence[Found]) -> list[Found]:
        """Each discrete change on top of each state, nearest first."""
        found: list[Found] = []
        for state in frontier:
            for change in self._changes():
                if clash(change, state.variant):
                    continue
                trial = Found(
                    state.variant + (change,),
                    self.score(state.variant + (change,), self.scale),
                    dict(state.intervals),
                    dict(state.names),
                )
                found.append(trial)
                if trial.score.support == 0 and trial.score.ratio.is_close:
                    return [trial, *found]
        return sorted(found, key=lambda f: (f.score.support, f.score.rms))

    def _openings(self, tried: Sequence[Found]) -> list[Found]:
        """Choices that change nothing yet: they may give a meaning to numbers that had none."""
        return [t for t in tried[_BEST:] if t.score.rms == self.base.rms and t.score.support == self.base.support][
            :_OPENINGS
        ]

    def _changes(self) -> list[Change]:
        if not hasattr(self, "_all_changes"):
            last = next(s for s in reversed(self.merged.steps) if not weighing.is_copy(s))
            self._all_changes: list[Change] = [
                *hypotheses.discrete(self.merged, self.spec, self.native),
                *weighing.unseen(self.merged, self.spec, self.own, self.known),
                *weighing.solved(self.merged, last, self.native, self.merged.sites["mask"], self.known),
            ]
        return self._all_changes

    # numbers --------------------------------------------------------------------------------------------

    def _numbers(self, start: Found) -> Found | None:
        """The fewest numbers that bring the step nearest, by derivative, on top of what is changed already."""
        taken = {(s, c.name) for c in start.variant.changes if isinstance(c, SetField) for s in c.sites}
        fit = Fit(self.merged.prepared(start.variant, self.rows), start.variant, self.scale.weights())
        gone = {s for c in start.variant.changes if isinstance(c, Leave) for s in c.sites}
        free = [
            n
            for n in numbers(start.variant.steps(self.merged.steps))
            if (n.site, n.name) not in taken and n.site not in gone
        ]
        best, chosen = start, list[Number]()
        while len(chosen) < 3 and len(free) > len(chosen):
            step = self._next_number(fit, chosen, [n for n in free if n not in chosen], start)
            if step is None or not step[1].score < best.score or step[1].score.rms > 0.97 * best.score.rms:
                break
            chosen, best = list(step[0].numbers), step[1]
            if self.is_explained(best.score):
                return best
        return self._jointly(fit, free, start) or (best if chosen else None)

    def _jointly(self, fit: Fit, free: list[Number], start: Found) -> Found | None:
        """All numbers at once, where none alone shows the way; those that are not needed are dropped again."""
        if not 1 < len(free) <= _JOINT:
            return None
        found = self._found(fit.run(free, self._starts(fit, free)), start)
        return self._pruned(found) if found is not None and self.is_explained(found.score) else None

    def _next_number(
        self, fit: Fit, chosen: list[Number], free: list[Number], start: Found
    ) -> tuple[Fitted, Found] | None:
        """The number that, fitted together with those chosen, leaves least."""
        at = torch.tensor([n.start for n in (*chosen, *free)], dtype=torch.float64)
        r, J = fit.columns((*chosen, *free), at)
        promise: list[tuple[float, Number]] = []
        for i, n in enumerate(free):
            columns = J[:, [*range(len(chosen)), len(chosen) + i]]
            if not bool(columns[:, -1].any()):
                continue
            left = (
                r - columns @ (torch.linalg.pinv(columns) @ r)
                if columns.numel() < 4e6
                else r - columns @ _lstsq(columns, r)
            )
            promise.append((float(left.norm()), n))
        tried: list[tuple[Fitted, Found]] = []
        done = float("inf")
        for left, n in sorted(promise, key=self._promise)[:4]:
            if left > 1.05 * done:
                continue
            fitted = fit.run((*chosen, n), self._starts(fit, (*chosen, n)))
            found = self._found(fitted, start)
            if found is not None:
                tried.append((fitted, found))
                if self.is_explained(found.score):
                    done = min(done, left)
        return min(tried, key=lambda t: self._rank(t[1]), default=None)

    def _rank(self, found: Found) -> tuple[int, int, int, float]:
        """Among changes that explain a step alike, those whose values have a name."""
        explained = self.is_explained(found.score)
        return (found.score.support, not explained, -len(found.names) if explained else 0, found.score.rms)

    def _promise(self, promise: tuple[float, Number]) -> float:
        """What a number leaves by its derivative; less is likely where the step is far from linear in it."""
        left, n = promise
        return left * (0.5 if self._staged(n) or n.value is None else 1.0)

    def _staged(self, number: Number) -> bool:
        return "positions" in self.spec.at[number.site].reads

    def _starts(self, fit: Fit, chosen: Sequence[Number]) -> list[float]:
        """Where a fit starts. Angles grow with the position: fit the first positions first."""
        at = [n.start for n in chosen]
        if not any(self._staged(n) for n in chosen):
            return at
        for rows in _SMALL_ROWS:
            few = Rows(torch.arange(min(rows, self.length), device=self.merged.value.device), self.length)
            native = self.merged.native(fit.base)
            scale = Scale(self.merged, fit.base, few, native)
            small = Fit(self.merged.prepared(fit.base, few), fit.base, scale.weights())
            fitted = small.run(chosen, at)
            at = [
                n.start if v is None else Number(n.sites, n.name, n.kind, v).start
                for n, v in zip(fitted.numbers, fitted.values, strict=True)
            ]
        return at

    def _found(self, fitted: Fitted, start: Found) -> Found | None:
        """A fit as changes: numbers that stay within their interval are dropped, the others get their names."""
        u = torch.finfo(self.merged.value.dtype).eps / 2
        changes: list[SetField] = []
        intervals, names = dict(start.intervals), dict(start.names)
        for n, value, error in zip(fitted.numbers, fitted.values, fitted.errors, strict=True):
            change = SetField(n.sites, n.name, value)
            if value is not None:
                low, high = interval(value, error, u)
                if not all(map(math.isfinite, (value, low, high))):
                    return None
                if n.value is not None and low <= n.value <= high:
                    continue
                change, name = self._named(start.variant, change, value, (low, high))
                if name:
                    names[slot(change)] = name
                    low, high = min(low, change.value), max(high, change.value)
                intervals[slot(change)] = (low, high)
            elif n.value is None:
                continue
            changes.append(change)
        if not changes:
            return None
        found = Found(start.variant + changes, self.judged(start.variant + changes), intervals, names)
        return self._switched_off(found, fitted)

    def _named(
        self, base: Variant, change: SetField, value: float, within: tuple[float, float]
    ) -> tuple[SetField, str]:
        """The number with a name that a value stands for, if the replay does not get worse by it.

        Constants that were rounded on their way lie a little outside a statistical interval; the replay decides.
        """
        half = (within[1] - within[0]) / 2
        half = max(5 * half, 2e-5 * abs(value))
        named = closed_form(value, within) or closed_form(value, (value - half, value + half))
        if named is None or named[0] == value:
            return change, ""
        exact = SetField(change.sites, change.name, named[0])
        if self.score(base + (exact,), self.scale).rms <= 1.01 * self.score(base + (change,), self.scale).rms:
            return exact, named[1]
        return change, ""

    def _switched_off(self, found: Found, fitted: Fitted) -> Found:
        """A number that hardly acts any more is off."""
        for n in fitted.numbers:
            if n.kind.off and n.value is not None:
                variant = found.variant + (SetField(n.sites, n.name, None),)
                score = self.judged(variant)
                if score.support <= found.score.support and score.rms <= 1.2 * found.score.rms:
                    found = Found(variant, score, found.intervals, found.names)
        return found

    def _numbers_of(self, found: Found) -> list[Found]:
        """The numbers alone of what another layer has: its choices may be other ones."""
        kinds = [
            (c, kind_of(self.spec.at[c.site].op, c.name)) for c in found.variant.changes if isinstance(c, SetField)
        ]
        kept = Variant(tuple(c for c, kind in kinds if kind.name == "number"))
        return (
            [Found(kept, self.score(kept, self.scale))]
            if kept and len(kept.changes) < len(found.variant.changes)
            else []
        )

    def _pruned(self, found: Found) -> Found:
        """None of the changes can be left out."""
        for change in found.variant.changes:
            fewer = found.variant.without(change)
            if not fewer:
                continue
            score = self.judged(fewer)
            if self.is_explained(score) and score.rms < 1.5 * found.score.rms:
                found = Found(fewer, score, found.intervals, found.names)
        return found


def clash(change: Change, variant: Variant) -> bool:
    """Whether a change is made already, or concerns a step that is left out."""
    gone = {s for c in variant.changes if isinstance(c, Leave) for s in c.sites}
    touched = {s for c in variant.changes for s in concerns(c)}
    return (
        slot(change) in {slot(c) for c in variant.changes}
        or bool(gone.intersection(concerns(change)))
        or (isinstance(change, Leave) and bool(touched.intersection(change.sites)))
    )


def _lstsq(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.lstsq(A.T @ A, A.T @ b).solution
