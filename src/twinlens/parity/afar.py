"""A step that many layers lie in, as logits alone are: what one mistake in the code changes everywhere, at once.

Seen from so far a fault is large, and layers by themselves explain little of it. So each mistake is tried in all like
steps together, numbers by derivative, the rest by trial; then the next on top of the nearest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from twinlens.fields import to_smooth
from twinlens.parity import hypotheses, solving, structure, weighing
from twinlens.parity.changes import Change, Variant, slot
from twinlens.parity.fit import Number, constants, in_one_part, numbers
from twinlens.parity.mistakes import Mistake, in_all, levelled, of_one_kind, together, unread, without
from twinlens.parity.numbers import Numbers
from twinlens.parity.score import Found, Scorer, apart, distance
from twinlens.sites import split
from twinlens.spec import Spec, Step

_DEPTH = 3
"""Mistakes on top of one another."""
_BEST = 3
"""Discrete ones with which numbers are fitted."""
LOCAL = 0.5
"""A number that by its derivative leaves less than this part is tried before anything else."""
_GRID = (0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0, 10.0)
"""Factors of a number's own value."""
_PART, _SHORTEST = 4, 8
"""The first quarter of the positions is looked at first, where it is as many."""
_NEAR = 6
"""Mistakes that are tried on all positions because they are nearest on the first."""
_STATES = 2
"""Discrete ones on top of which others are tried."""
_NEARER = 0.8
"""A mistake that leaves more than this is no ground to stand on."""


class Afar:
    """Mistakes of the code, tried on one merged step."""

    def __init__(self, estimates: Numbers, spec: Spec, own: dict[str, Any], known: frozenset[str]) -> None:
        self.numbers, self.scorer, self.merged, self.spec = estimates, estimates.scorer, estimates.merged, spec
        self.own, self.known = own, known
        self.nearest: Found | None = None

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """In all like steps, then in those of one place of a layer: the likelier half first."""
        weights = weighing.unseen(self.merged, self.spec, self.own, self.known)
        found = [
            *self._discrete,
            *unread(self.merged.steps),
            *(use for use in weights if use.other in ("", use.name) or split(use.site)[0] is None),
        ]
        folded = tuple(use for uses in weighing.folded(self.merged, self.known) for use in uses)
        return [
            *together(found, self.spec),
            *levelled(self.merged.steps),
            *hypotheses.as_beside(self.merged, self.spec),
            *([folded] if folded else []),
            *without(found, self.spec),
            *structure.everywhere(self.merged, self.spec),
            *self._compounds(),
        ]

    @property
    def _last(self) -> Iterator[Mistake]:
        """What is read off the last product, of which alone each is a run."""
        mask = self.merged.sites["mask"]
        yield from (changes for changes in solving.solved(self.merged, self.scorer.native, mask, self.known) if changes)

    @cached_property
    def _discrete(self) -> list[Change]:
        return list(hypotheses.discrete(self.merged, self.spec, self.scorer.native))

    @cached_property
    def of_one_layer(self) -> list[Mistake]:
        """What is changed in the code of all layers, in one of them, where they are few."""
        found = dict[tuple[Any, ...], list[Change]]()
        for change in dict.fromkeys(self._discrete):
            found.setdefault((split(change.site)[0], *of_one_kind(change, self.spec)), []).append(change)
        layers = {layer for layer, *_ in found if layer is not None}
        few = 1 < len(layers) <= structure.FEW_LAYERS
        return [tuple(like) for (layer, *_), like in found.items() if few and layer is not None]

    def _compounds(self) -> Iterator[Mistake]:
        """Several changes that are one mistake by themselves, in all like steps."""
        of_one = (hypotheses.exchanged, hypotheses.defaults)
        yield from in_all((c for each in of_one for c in each(self.merged)), self.spec)
        for of_all in (hypotheses.everywhere, hypotheses.settings, hypotheses.stretched, weighing.pairs):
            yield from of_all(self.merged)
        yield from weighing.layers_exchanged(self.merged, self.spec, self.known)

    def run(self, start: Found) -> Found | None:
        """The mistakes that explain the step; `nearest` is what came near where none do."""
        return next((good for ways in self._ways(start) if (good := self._settled(ways)) is not None), None)

    def _ways(self, start: Found) -> Iterator[Iterable[Found]]:
        """What is tried, cheap first: each is run when it is asked for."""
        yield self._number(start)
        yield (self._scored(v, start) for v in _variants(start, self._last))
        states, grid = [start], list[Found]()
        for depth in range(_DEPTH):
            singles = list[Found]()
            for state in states:
                yield self._likely(state, self.mistakes)
                if not depth and self._head is not None:
                    yield self._grid(start, grid)
                    yield self.numbers_of(start, LOCAL, in_one_part)
                singles += self._singles(state)
                yield sorted(singles, key=distance)[:_BEST]
            singles.sort(key=distance)
            if not depth:
                yield self._on_top(start, singles)
                yield self.numbers_of(start, LOCAL, numbers)  # one layer alone
                yield self._likely(start, self.of_one_layer, self.scorer)
                if self._head is None:
                    yield self._grid(start, grid)
            fitted = [] if depth else grid
            for state in (*states[:1], *(singles[:_BEST] if depth + 1 < _DEPTH else ())):
                fitted += self.numbers_of(state, math.inf if state is states[0] else LOCAL)
                yield fitted[-1:]
            least = min(s.score.rms for s in states)
            near = sorted(fitted, key=distance)[:1]
            states = [s for s in singles[:_STATES] if s.score.rms < least or s.score.support < start.score.support]
            states += [s for s in near if s.score.rms < _NEARER * least]
            if not states:
                return
            self.nearest = min(states, key=distance)

    def _number(self, start: Found) -> list[Found]:
        """One number that explains the first positions, on all of them."""
        if self._head is None:
            return self.numbers_of(start, LOCAL)
        head = Numbers(self._head, self.numbers.seen, self.numbers.fixed)
        free = head.promising(constants, start.variant, LOCAL)
        step = head.next_number(head.fit(start.variant), [], free, start) if free else None
        if step is None or not self._head.is_explained(step[1].score):
            return []
        whole = self.numbers.next_number(self.numbers.fit(start.variant), [], list(step[0].numbers), start)
        return [whole[1]] if whole is not None else []

    def numbers_of(
        self, state: Found, most: float = math.inf, of: Callable[[Iterable[Step]], list[Number]] = constants
    ) -> list[Found]:
        """One number more, wherever it stands alike, if by derivative it would leave no more than this part."""
        if most < 1.0 and self._head is not None:
            free = Numbers(self._head, self.numbers.seen, self.numbers.fixed).promising(of, state.variant, most)
        else:
            free = self.numbers.free(of, state.variant)
        step = self.numbers.next_number(self.numbers.fit(state.variant), [], free, state, most) if free else None
        return [step[1]] if step is not None else []

    def _grid(self, state: Found, kept: list[Found]) -> Iterator[Found]:
        """Numbers fitted from further off: the function may jump on the way, as where experts are chosen, or turn."""
        tried = list[tuple[tuple[int, float], Number, float]]()
        scorer = self._head or self.scorer
        for n in self.numbers.free(constants, state.variant):
            for value in (n.value * f for f in _GRID) if n.value else ():
                score = scorer.score(state.variant + (n.change(value),))
                tried.append(((score.support, score.rms), n, value))
        fit = self.numbers.fit(state.variant)
        for _, n, value in sorted(tried, key=lambda t: t[0])[:_BEST]:
            near = self.numbers.found(fit.run([n], [to_smooth(n.kind, value)]), state)
            if near is not None:
                kept.append(near)
                yield near

    @cached_property
    def _head(self) -> Scorer | None:
        """The first positions, where they are few and the candidate is apart there: a part of the cost of all."""
        length = self.merged.sites["tokens"].shape[1] // _PART
        head = Scorer(self.merged.head(length), self.spec) if length >= _SHORTEST else None
        return None if head is None or head.base.ratio.is_rounding else head

    def _likely(self, state: Found, mistakes: Sequence[Mistake], otherwise: Scorer | None = None) -> list[Found]:
        """Those mistakes that bring the first positions nearest, on all of them; `otherwise`: where none tell."""
        scorer = self._head or otherwise
        if scorer is None:
            return []
        base, near = scorer.score(state.variant), list[tuple[tuple[int, float], Variant]]()
        for variant in _variants(state, mistakes):
            score = scorer.score(variant)
            if not score < base:
                continue
            if score.ratio.is_close and (found := self._scored(variant, state)).score.ratio.is_close:
                return [found]
            near.append(((score.support, score.rms), variant))
        return sorted((self._scored(v, state) for _, v in sorted(near, key=lambda t: t[0])[:_NEAR]), key=distance)

    def _scored(self, variant: Variant, state: Found) -> Found:
        found = Found(variant, self.scorer.score(variant), dict(state.intervals), dict(state.names))
        self.numbers.keep(found)
        return found

    def _singles(self, state: Found) -> list[Found]:
        found = list[Found]()
        for variant in _variants(state, self.mistakes):
            found.append(self._scored(variant, state))
            if found[-1].score.ratio.is_close:
                break
        return sorted(found, key=distance)

    def _on_top(self, start: Found, singles: Sequence[Found]) -> list[Found]:
        """A second mistake on top of one that says a part of it: cheaper than numbers from further off."""
        if not singles or not singles[0].score.rms < _NEARER * start.score.rms:
            return []
        return [f for f in self._singles(singles[0])[:_BEST] if f.score.rms < singles[0].score.rms]

    def _settled(self, found: Iterable[Found]) -> Found | None:
        """The first that explains the step, each change at its own step, and none that is not needed."""
        for each in found:
            judged = dataclasses.replace(each, score=self.scorer.tried(each.variant, each.score))
            if self.scorer.is_explained(judged.score):
                return self.scorer.pruned(apart(judged, self.merged.steps))
        return None


def _variants(state: Found, mistakes: Iterable[Mistake]) -> Iterator[Variant]:
    taken = {slot(c) for c in state.variant.changes}
    return (state.variant + m for m in mistakes if not taken.intersection(map(slot, m)))
