"""What the steps of one run say together: one value for all of them, one cause rather than two.

A step alone may not tell a scale of scores from a factor of the rotary tables, or 1.06e-06 from 1e-06. The others can:
tables are shared by all layers, and one constant in the code is one value everywhere.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twinlens import sites
from twinlens.parity.changes import Change, SetField, Variant, concerns, slot
from twinlens.parity.closed_form import closed_form
from twinlens.parity.examine import Examiner
from twinlens.parity.merged import Merged
from twinlens.parity.result import Examination
from twinlens.parity.score import Found, Scorer
from twinlens.spec import Spec

_POWERS = tuple(float(f"1e{k}") for k in range(-16, 16))
_WIDER = (1, 2, 5)
"""How far beyond the joint interval a name is looked for: errors that all steps share do not average out. The replay
decides."""
_WORSE = 1.02
"""A value outside of a step's own interval is taken where its distance grows by no more."""


@dataclass
class _Part:
    """One change of one step."""

    target: str
    change: SetField
    interval: tuple[float, float] | None
    name: str

    @property
    def place(self) -> tuple[str, str]:
        """Which field it is, whatever the layer."""
        return sites.generic(self.change.site), self.change.name


class Agreement:
    """The second look at the steps that were explained, now that all were seen."""

    def __init__(
        self, spec: Spec, merged: Mapping[str, Merged], examined: dict[str, Examination], examiner: Examiner
    ) -> None:
        self.spec, self.merged, self.examined, self.examiner = spec, merged, examined, examiner
        self._scorers: dict[str, Scorer] = {}
        self._fixed: dict[str, frozenset[str]] = {}
        """By step, what all layers share and another layer says to be as declared."""

    def run(self) -> None:
        """Change examinations in place, wherever the same is said with less, or more is said now."""
        if not any(e.status == "explained" for e in self.examined.values()):
            return
        self._refuted()
        self._one_value()
        if self._one_cause():
            self._one_value()
        if self._more():
            self._one_value()

    def _scorer(self, target: str) -> Scorer:
        if target not in self._scorers:
            self._scorers[target] = Scorer(self.merged[target], self.spec)
        return self._scorers[target]

    def _refuted(self) -> None:
        """A step that is explained by what all layers share, where another layer is as it was and could not be."""
        for target, e in self.examined.items():
            if e.status != "explained" or sites.split(target)[0] is None:
                continue
            shared = [c for c in e.changes.changes if all(sites.split(s)[0] is None for s in concerns(c))]
            fixed = {s for c in shared if any(self._denies(t, c) for t in self.examined) for s in concerns(c)}
            if fixed:
                self._fixed[target] = frozenset(fixed)
                self.examined[target] = self.examiner(self.merged[target], fixed=self._fixed[target])

    def _denies(self, target: str, change: Change) -> bool:
        """Whether a step that is as it was would not be under a change."""
        m, e = self.merged[target], self.examined[target]
        if e.status in ("explained", "different") or not {s.writes for s in m.steps}.intersection(concerns(change)):
            return False
        scorer = self._scorer(target)
        return not scorer.judged(Variant((change,))).ratio.is_rounding

    def _more(self) -> bool:
        """What the others have, where a step is not explained by less, or tells it beside its own changes."""
        found = False
        for target, e in self.examined.items():
            m = self.merged[target]
            if e.status not in ("different", "rounding", "explained") or not self.examiner.proposals(m):
                continue
            scorer = self._scorer(target)
            explained = e.status == "explained"
            again = (
                self.examiner.besides(m, scorer, e)
                if explained
                else self.examiner.again(m, scorer, self._fixed.get(target, ()))
            )
            if again is not None:
                self.examined[target], found = again, True
        return found

    def _parts(self) -> list[_Part]:
        return [
            _Part(t, c, e.intervals.get(slot(c)), e.names.get(slot(c), ""))
            for t, e in self.examined.items()
            if e.status == "explained"
            for c in e.changes.changes
            if isinstance(c, SetField)
        ]

    # one value ----------------------------------------------------------------------------------------------

    def _one_value(self) -> None:
        """Estimates of one constant become one number, the one with a name where there is any."""
        groups: dict[Any, list[_Part]] = defaultdict(list)
        for part in self._parts():
            op = self.spec.at[part.change.site].op
            if isinstance(part.change.value, float):
                groups[type(op).__name__, part.change.name, getattr(op, part.change.name)].append(part)
        for parts in groups.values():
            for cluster in _clusters(parts):
                if len({p.change.value for p in cluster}) > 1 or not any(p.name for p in cluster):
                    self._settle(cluster, getattr(self.spec.at[cluster[0].change.site].op, cluster[0].change.name))

    def _settle(self, cluster: list[_Part], was: float | None) -> None:
        for value, name in _common(cluster, was):
            found = [self._with(p, value, name) for p in cluster]
            if all(f is not None for f in found):
                for part, f in zip(cluster, found, strict=True):
                    assert f is not None
                    self._take(part.target, f)
                return

    def _with(self, part: _Part, value: float, name: str) -> Found | None:
        """A step under the common value; None where it fits worse than with its own."""
        e, scorer = self.examined[part.target], self._scorer(part.target)
        change = SetField(part.change.sites, part.change.name, value)
        variant = Variant(tuple(change if slot(c) == slot(change) else c for c in e.changes.changes))
        score = scorer.judged(variant)
        allowed = part.interval is None or part.interval[0] <= value <= part.interval[1]
        if not score.ratio.is_rounding or (not allowed and score.rms > _WORSE * scorer.judged(e.changes).rms):
            return None
        names = e.names | ({slot(change): name} if name else {})
        if part.interval is None:
            return Found(variant, score, e.intervals, names)
        wide = (min(part.interval[0], value), max(part.interval[1], value))
        return Found(variant, score, e.intervals | {slot(change): wide}, names)

    def _take(self, target: str, found: Found) -> None:
        before, e = self.examined[target], self.examiner.solved(self.merged[target], self._scorer(target), found)
        same = [slot(c) for c in before.changes.changes] == [slot(c) for c in e.changes.changes]
        self.examined[target] = replace(e, rivals=before.rivals if same else ())

    # one cause ----------------------------------------------------------------------------------------------

    def _one_cause(self) -> bool:
        """Where alike steps were explained in two ways, the way that holds for more of them."""
        alike: dict[str, list[str]] = defaultdict(list)
        for target, e in self.examined.items():
            if e.status == "explained":
                alike[sites.generic(target)].append(target)
        exchanged = [self._exchange(targets) for targets in alike.values() if len(targets) > 1]
        return any(exchanged)

    def _exchange(self, targets: list[str]) -> bool:
        parts = [p for p in self._parts() if p.target in targets]
        support = Counter(p.place for p in parts)
        every = len({t for t in self.examined if sites.generic(t) == sites.generic(targets[0])})

        def rank(part: _Part) -> tuple[bool, int, bool]:
            shared = sites.split(part.change.site)[0] is None
            return not shared or support[part.place] == every, support[part.place], bool(part.name)

        done = False
        for part in sorted(parts, key=rank):
            better = {p.place: p for p in parts if rank(p) > rank(part)}
            for other in sorted(better.values(), key=rank, reverse=True):
                if self._instead(part, other):
                    done = True
                    break
        return done

    def _instead(self, part: _Part, other: _Part) -> bool:
        """Whether a step is as well explained by what another one has in the place of one of its changes."""
        e, layer = self.examined[part.target], sites.split(part.target)[0]
        if part.change not in e.changes.changes:
            return False  # exchanged already
        moved = Variant((other.change,)).in_layer(layer) if layer is not None else Variant((other.change,))
        rest = e.changes.without(part.change)
        if slot(moved.changes[0]) in {slot(c) for c in rest.changes}:
            return False
        scorer = self._scorer(part.target)
        variant = scorer.effective(rest + moved)
        score = scorer.judged(variant)
        if len(variant.changes) != len(e.changes.changes) or not scorer.is_explained(score):
            return False
        kept = {slot(c) for c in variant.changes}
        intervals = {k: v for k, v in e.intervals.items() if k in kept}
        names = {k: v for k, v in e.names.items() if k in kept}
        new = slot(moved.changes[0])
        if other.interval is not None:
            intervals[new] = other.interval
        if other.name:
            names[new] = other.name
        self._take(part.target, Found(variant, score, intervals, names))
        return True


def _clusters(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Estimates whose intervals, taken twice as wide, hold the sharpest one's value."""
    left = sorted(parts, key=_half)
    while left:
        first = left[0]
        near = [p for p in left if abs(_middle(p) - _middle(first)) <= 2 * (_half(p) + _half(first))]
        yield near
        left = [p for p in left if p not in near]


def _half(part: _Part) -> float:
    """Half an interval; what was taken over from another step and cannot be told here may be anything."""
    return math.inf if part.interval is None else (part.interval[1] - part.interval[0]) / 2


def _middle(part: _Part) -> float:
    return float(part.change.value) if part.interval is None else (part.interval[1] + part.interval[0]) / 2


def _common(cluster: list[_Part], was: float | None) -> Iterator[tuple[float, str]]:
    """Values that all may have: those with a name that some have, the joint estimate's name, the joint estimate.

    Where the reference has a power of ten and the interval holds one only, that is the name.
    """
    named = {p.change.value: p.name for p in cluster if p.name}
    yield from named.items()
    if all(p.interval is None for p in cluster):
        return
    weights = [1.0 / max(_half(p), 1e-300) ** 2 for p in cluster]
    joint = sum(w * _middle(p) for w, p in zip(weights, cluster, strict=True)) / sum(weights)
    half = 1.0 / math.sqrt(sum(weights))
    for times in _WIDER:
        if (form := closed_form(joint, (joint - times * half, joint + times * half))) is not None:
            yield form
    powers = [power for power in _POWERS if abs(power - joint) <= half]
    if was in _POWERS and len(powers) == 1:
        yield powers[0], f"{powers[0]:g}"
    if len({p.change.value for p in cluster}) == 1:
        return
    yield joint, ""
    yield from ((p.change.value, "") for p in sorted(cluster, key=_half))
