"""What a comparison found, as rows. Renderers only print them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from twinlens.parity.changes import Change, Variant
from twinlens.parity.rounding import Ratio

Verdict = Literal["identical", "rounding", "different"]
Status = Literal["equal", "innocent", "order", "rounding", "explained", "different"]


@dataclass(frozen=True)
class Cause:
    """One edit that makes the reference compute what the candidate computed, in one or many layers."""

    site: str
    seen_at: str
    parameter: str
    reference: Any
    candidate: Any
    interval: tuple[float, float] | None
    layers: list[int]
    status: str
    evidence: str
    changes: tuple[Change, ...] = field(default=(), repr=False, compare=False)
    seen: dict[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)
    """For the step of each change, the visible site that closes it."""
    rivals: dict[Any, tuple[Change, ...]] = field(default_factory=dict[Any, Any], repr=False, compare=False)
    """By what a change changes, others that do the same in this run."""


@dataclass(frozen=True)
class Order:
    """A way of computing that differs in bits, not in meaning."""

    site: str
    parameter: str
    reference: Any
    candidate: Any
    layers: list[int]
    changes: tuple[Change, ...] = field(default=(), repr=False, compare=False)
    seen: dict[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)


@dataclass(frozen=True)
class Unexplained:
    """A step at fault that no change reproduces, with what came nearest."""

    site: str
    ratio: Ratio
    nearest: list[str]


@dataclass(frozen=True)
class Finding:
    """One site: how far apart the sides are there, and what its own step did."""

    site: str
    status: Status
    total: float = 0.0
    injected: float = 0.0
    carried: float = 0.0
    size: float | None = None
    """Root mean square of the reference's tensor, as the three errors are; not measured where nothing is apart."""
    largest: float = 0.0
    """The largest entry of the total."""
    ratio: Ratio | None = None


@dataclass
class Result:
    """All that one comparison found."""

    verdict: Verdict
    findings: list[Finding]
    causes: list[Cause] = field(default_factory=list[Cause])
    orders: list[Order] = field(default_factory=list[Order])
    gauges: list[str] = field(default_factory=list[str])
    """Changes of tensors that change no function, in words."""
    flips: int = 0
    """Experts that were swapped within their router's rounding; no family here has experts yet."""
    unexplained: list[Unexplained] = field(default_factory=list[Unexplained])
    explained: Verdict = "identical"
    exact: bool = True
    """Whether causes and orders together give every bit of the candidate's."""
    first_difference: str | None = None
    unmatched: list[str] = field(default_factory=list[str])
    assumed: list[str] = field(default_factory=list[str])
    """Weights of the candidate that nobody saw and that are taken to be the reference's."""
    reference_edits: list[Cause] = field(default_factory=list[Cause])
    """Where the reference computes something else than its own config declares."""
    reference_orders: list[Order] = field(default_factory=list[Order])
    scope: str = ""
    cost: float = 0.0
    """Forward-equivalents of replaying and diagnosing."""
    diagnosis_cost: float = 0.0
    """Those of diagnosing alone."""
    unsteady: list[str] = field(default_factory=list[str])
    """Sides of which a second run gives other bits than the first."""
    calls: list[Result] = field(default_factory=list[Any])
    """Where several calls were compared, each by itself; this is the worst of them, with what was found in any."""
    pairs: list[str] = field(default_factory=list[str])
    """What this run does not tell apart, and what would, in words."""
    asked: list[str] = field(default_factory=list[str])
    """What was run once more to tell such a pair apart, and what it said."""
    training: list[str] = field(default_factory=list[str])
    """Sides that are in training mode, and drop out; they were compared in evaluation mode."""
    mended: list[str] = field(default_factory=list[str])
    """What `fix` did to the candidate before this comparison, in its own words."""


@dataclass(frozen=True)
class Examination:
    """One merged step examined: what its candidate did."""

    target: str
    status: Status
    changes: Variant = Variant()
    orders: Variant = Variant()
    ratio: Ratio | None = None
    share: float = 1.0
    """Of the error, what the changes explain."""
    intervals: dict[Any, tuple[float, float]] = field(default_factory=dict[Any, tuple[float, float]])
    names: dict[Any, str] = field(default_factory=dict[Any, str])
    """By what a change changes: the closed form of its number."""
    gauge: str = ""
    """In words, weights that differ and together change nothing."""
    rivals: tuple[Change, ...] = ()
    """What this step alone does not tell from its one change."""
    proof: str = ""
    """How far the step was, and what the changes leave."""
    nearest: tuple[str, ...] = ()
    exact: bool = False
    """Whether changes and orders reproduce every bit."""
    exact_without_orders: bool = False
    is_unfinished: bool = False
    """Nothing was found, and the search ended before it was through."""

    @property
    def is_unsolved(self) -> bool:
        """Whether something is left that no change explains."""
        return self.status == "different"

    def unexplained(self, of: str = "") -> Unexplained:
        """What is left, as a row."""
        assert self.ratio is not None
        return Unexplained(self.target + of, self.ratio, list(self.nearest))
