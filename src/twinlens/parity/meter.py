"""What judging costs, and how far a search may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinlens.sites import axes
from twinlens.spec import Step, Weights


class Exhausted(Exception):
    """A search has run more steps than it may."""


@dataclass
class Meter:
    """Work done, in forward-equivalents: multiplications relative to one forward of the model."""

    whole: float
    attention: float = 1.0
    """Multiplications of a product of queries with keys, or of a pattern with values, per row."""
    spent: float = 0.0
    runs: float = 0.0
    """Steps run, each with its derivative counted twice."""
    limit: float = float("inf")
    """Of `runs`, while a search goes on."""

    def add(self, steps: Sequence[Step], share: float, weights: Weights, times: float = 1.0) -> None:
        """Count a run of some steps on a share of the rows. Raises Exhausted beyond the limit."""
        self.runs += times * len(steps)
        if self.runs > self.limit:
            raise Exhausted
        self.spent += times * share * sum(work(s, weights, self.attention) for s in steps) / self.whole


def work(step: Step, weights: Weights, attention: float) -> float:
    """Multiplications of a step per row, roughly."""
    if not step.weights and "s" in (*axes(step.writes), *axes(step.reads[0].removeprefix("candidate:"))):
        return attention
    sizes = [weights(w.name).numel() for _, w in step.weights if not w.name.startswith("candidate:")]
    return float(max([*sizes, 1])) if type(step.op).__name__ != "Embed" else 1.0
