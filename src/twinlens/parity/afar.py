"""A step that many layers lie in, as logits alone are: what one mistake in the code changes everywhere, at once.

Seen from so far a fault is large, and layers by themselves explain little of it. So each mistake is tried in all like
steps together, numbers by derivative, the rest by trial; then the next on top of the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from twinlens import sites
from twinlens.parity import hypotheses, weighing
from twinlens.parity.changes import Change, Feed, Leave, Rewire, SetField, Use, Variant, slot
from twinlens.parity.fit import Number, numbers
from twinlens.parity.merged import Merged
from twinlens.parity.numbers import Numbers
from twinlens.parity.score import Found
from twinlens.sites import any_layer, generic
from twinlens.spec import Spec, Step

_DEPTH = 3
"""Mistakes on top of one another."""
_BEST = 3
"""Discrete ones with which numbers are fitted."""
_NEARER = 0.8
"""A mistake that leaves more than this is no ground to stand on."""

Mistake = tuple[Change, ...]


def is_far(merged: Merged) -> bool:
    """Whether steps of several layers lie in the merged step."""
    return len({sites.split(s.writes)[0] for s in merged.steps} - {None}) > 1


class Afar:
    """Mistakes of the code, tried on one merged step."""

    def __init__(self, estimates: Numbers, spec: Spec, own: dict[str, Any], known: frozenset[str]) -> None:
        self.numbers, self.scorer, self.merged, self.spec = estimates, estimates.scorer, estimates.merged, spec
        found = [
            *hypotheses.discrete(self.merged, spec, self.scorer.native),
            *weighing.unseen(self.merged, spec, own, known),
        ]
        self.mistakes = list(together(found, spec))
        self.nearest: Found | None = None

    def run(self, start: Found) -> Found | None:
        """The mistakes that explain the step; `nearest` is what came near where none do."""
        state = start
        for depth in range(_DEPTH):
            tried = self._numbers(state)
            if (good := self._settled(tried)) is not None:
                return good
            singles = self._singles(state)
            if (good := self._settled(singles[:_BEST])) is not None:
                return good
            beside = [f for s in singles[:_BEST] for f in self._numbers(s)] if depth + 1 < _DEPTH else []
            if (good := self._settled(beside)) is not None:
                return good
            best = min([*tried, *singles[:1], *beside], key=_distance, default=state)
            if not best.score < state.score or best.score.rms > _NEARER * state.score.rms:
                break
            state = self.nearest = best
        return None

    def _numbers(self, state: Found) -> list[Found]:
        """One number more, wherever it stands alike, nearest first."""
        free = self.numbers.free(constants, state.variant)
        step = self.numbers.next_number(self.numbers.fit(state.variant), [], free, state) if free else None
        return [step[1]] if step is not None else []

    def _singles(self, state: Found) -> list[Found]:
        found = list[Found]()
        taken = {slot(c) for c in state.variant.changes}
        for mistake in self.mistakes:
            if taken.intersection(map(slot, mistake)):
                continue
            variant = state.variant + mistake
            found.append(Found(variant, self.scorer.score(variant), dict(state.intervals), dict(state.names)))
            self.numbers.keep(found[-1])
            if found[-1].score.support == 0 and found[-1].score.ratio.is_close:
                break
        return sorted(found, key=_distance)

    def _settled(self, found: Sequence[Found]) -> Found | None:
        """The first that explains the step, each change at its own step, and none that is not needed."""
        for each in found:
            judged = Found(each.variant, self.scorer.judged(each.variant), each.intervals, each.names)
            if self.scorer.is_explained(judged.score):
                return self.scorer.pruned(self.numbers.apart(judged, self.merged.steps))
        return None


def constants(steps: Iterable[Step]) -> list[Number]:
    """Each number of some steps that have it alike, as one number."""
    steps = tuple(steps)
    at = {s.writes: s for s in steps}
    groups: dict[tuple[str, str, float | None], list[Number]] = {}
    for n in numbers(steps):
        groups.setdefault((type(at[n.site].op).__name__, n.name, n.value), []).append(n)
    return [
        Number(tuple(s for n in like for s in n.sites), like[0].name, like[0].kind, like[0].value)
        for like in groups.values()
    ]


def together(changes: Iterable[Change], spec: Spec) -> Iterator[Mistake]:
    """Changes that are one mistake: alike in all like steps; and alike in those of one place in a layer."""
    everywhere: dict[tuple[Any, ...], list[Change]] = {}
    for change in changes:
        everywhere.setdefault(_mistake(change, spec), []).append(change)
    for like in everywhere.values():
        yield tuple(like)
        places: dict[str, list[Change]] = {}
        for change in like:
            places.setdefault(generic(change.site), []).append(change)
        if len(places) > 1:
            yield from (tuple(some) for some in places.values())
        if len({sites.split(c.site)[0] for c in like}) == 1 and len(like) > 1:
            yield from ((c,) for c in like)


def _mistake(change: Change, spec: Spec) -> tuple[Any, ...]:
    """What is the same of it in every layer."""
    kind = type(change).__name__
    match change:
        case SetField(sites=(site, *_), name=name, value=value):
            op = spec.at[site].op
            return kind, type(op).__name__, name, getattr(op, name), value
        case Leave():
            return kind, generic(change.sites[-1])
        case Feed():
            return kind, change.name, change.value
        case Rewire():
            return kind, change.value, generic(change.site)
        case Use():
            return kind, any_layer(change.name), change.pattern if not change.other else any_layer(change.pattern)
        case _:
            return kind, generic(change.site), getattr(change, "value", None)


def _distance(found: Found) -> tuple[int, float]:
    return found.score.support, found.score.rms
