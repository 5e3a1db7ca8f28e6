"""Numbers that act alike in a step: which of them is told, and which others the run does not tell from it."""

from __future__ import annotations

import torch

from twinlens.parity.changes import Change, SetField, Variant, slot
from twinlens.parity.closed_form import closed_form
from twinlens.parity.fit import Number, numbers
from twinlens.parity.numbers import Numbers
from twinlens.parity.score import REDUNDANT, Found

_ALIKE = 0.999
"""The cosine of two derivatives from which on no value tells their numbers apart: what acts in the same way is 1 to
the last digits."""
_STEPS = 40
"""Of more steps together the numbers that act alike are not counted up: a model seen by its logits has hundreds."""
_LISTED = 3


class Rivals:
    """The numbers of one merged step that act like one that explains it."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers, self.scorer, self.spec = numbers, numbers.scorer, numbers.spec

    def renamed(self, found: Found) -> Found:
        """With a number that has a name in the place of one that acts alike here and has none.

        A factor of hidden rotary tables and a divisor of the scores move the same entries in the same way; sqrt(12)
        for 4 is likelier than 1.0746 for 1, and so is what is a plain multiple of what it was.
        """
        if len(self.scorer.merged.steps) > _STEPS:
            return found
        for change in found.variant.changes:
            if not isinstance(change, SetField) or change.value is None or slot(change) in found.names:
                continue
            if slot(change) not in found.intervals:
                continue
            rest = found.variant.without(change)
            if self._is_multiple(change, found):
                continue
            for number in self._alike(change, rest):
                other = self._instead(found, change, rest, number)
                if other is not None and (len(other.names) > len(found.names) or self._multiples(other)):
                    return self.renamed(other)
        return found

    def of(self, found: Found) -> tuple[Change, ...]:
        """What explains the step as well as the one number that does."""
        if len(found.variant.changes) != 1 or len(self.scorer.merged.steps) > _STEPS:
            return ()
        (change,) = found.variant.changes
        if not isinstance(change, SetField) or change.value is None or slot(change) not in found.intervals:
            return ()
        others = (self._instead(found, change, Variant(), n) for n in self._alike(change, Variant()))
        return tuple(c for other in others if other is not None for c in other.variant.changes)[:_LISTED]

    def _instead(self, found: Found, change: SetField, rest: Variant, number: Number) -> Found | None:
        """Another number in the place of a change, where it explains the step no worse."""
        known = {k: v for k, v in found.intervals.items() if k != slot(change)}
        start = Found(rest, found.score, known, found.names)
        other = self.numbers.found(self.numbers.fit(rest).run([number]), start)
        if other is None or not self.scorer.is_explained(other.score):
            return None
        return other if other.score.rms < REDUNDANT * found.score.rms else None

    def _multiples(self, found: Found) -> bool:
        changed = [c for c in found.variant.changes if isinstance(c, SetField) and slot(c) in found.intervals]
        return bool(changed) and all(self._is_multiple(c, found) for c in changed)

    def _is_multiple(self, change: SetField, found: Found) -> bool:
        """Whether a number has become a multiple of what it was that has a name."""
        was, value = getattr(self.spec.at[change.site].op, change.name), change.value
        if not was or value is None:
            return False
        low, high = found.intervals[slot(change)]
        return closed_form(value / was, (low / was, high / was)) is not None

    def _alike(self, change: SetField, rest: Variant) -> list[Number]:
        """Numbers whose derivative has the direction of a changed one's."""
        free = [*self.numbers.free(numbers, rest), *self.numbers.free(self.numbers.factors, rest)]
        mine = next((i for i, n in enumerate(free) if (n.sites, n.name) == (change.sites, change.name)), None)
        if mine is None or len(free) < 2:
            return []
        _, slopes = self.numbers.fit(rest).columns(free, torch.tensor([n.start for n in free], dtype=torch.float64))
        lengths = slopes.norm(dim=0)
        cosines = (slopes.T @ slopes[:, mine] / (lengths * lengths[mine]).clamp_min(1e-300)).abs().tolist()
        return [n for i, n in enumerate(free) if i != mine and cosines[i] > _ALIKE]
