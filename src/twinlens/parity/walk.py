"""Every step of one run examined, first at a glance, then together."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from twinlens.paging import held
from twinlens.parity.agreement import Agreement
from twinlens.parity.examine import Examiner
from twinlens.parity.merged import Merged, merge
from twinlens.parity.meter import Meter
from twinlens.parity.result import Examination
from twinlens.parity.sides import Side
from twinlens.spec import Spec, Weights


class Walk:
    """What each merged step of a run did, under one spec."""

    def __init__(
        self, spec: Spec, side: Side, weights: Weights, meter: Meter, declared: Spec, before: Examiner | None = None
    ) -> None:  # fmt: skip
        """`declared` is what the spec would be if the reference computed as it is said to; `before` examined an earlier
        call of this side.
        """
        self.spec = spec
        self.examiner = Examiner(spec, side.own, side.known, before)
        self.steps = list(merge(spec, side.sites, weights, meter, declared))
        self.examined: dict[str, Examination] = {}
        self.natives: dict[str, Tensor] = {}
        """By target, the step replayed on the run's own tensors."""

    @property
    def merged(self) -> dict[str, Merged]:
        """By target."""
        return {m.target: m for m in self.steps}

    def run(self, is_equal: Callable[[Merged], bool], progress: Callable[[int, int], None]) -> None:
        """Examine every step but those that are equal, and again what others tell more of."""
        # the simplest first: what they show is a proposal for those that hide more
        for i, m in enumerate(sorted(self.steps, key=lambda m: len(m.steps))):
            progress(i, len(self.steps))
            if is_equal(m):
                self.examined[m.target] = Examination(m.target, "equal", exact=True, exact_without_orders=True)
                continue
            self.examined[m.target] = self.examiner(m, hasty=True)
            self.natives[m.target] = held(self.examiner.native)
        for i, m in enumerate(self.steps):
            if self.examined[m.target].is_unfinished:
                progress(i, len(self.steps))
                self.examined[m.target] = self.examiner(m)
        Agreement(self.spec, self.merged, self.examined, self.examiner).run()
        self.examined = {m.target: self.examined[m.target] for m in self.steps}
