"""How far changes leave a step from what the candidate computed there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from twinlens.parity.changes import Change, Leave, SetField, Variant, concerns, is_precision, slot
from twinlens.parity.fit import numbers
from twinlens.parity.merged import Merged
from twinlens.parity.rounding import Ratio, by_rows, difference, masked, support
from twinlens.parity.rows import Rows
from twinlens.parity.scale import Scale
from twinlens.sites import axes
from twinlens.spec import Spec, Step

_ROWS = 24
"""Positions that are examined: half of them the worst, half spread over the prompt."""
MOSTLY = 0.5
"""An explanation leaves at most this part of the error. Two numbers of one step can share an error between them, so
that each takes a part of it; what takes less than half is told by neither."""
NEARLY = 0.03
"""The same where only the wide scale says rounding: it may be many times what a step errs (docs/rounding.md)."""
REDUNDANT = 1.5
"""A change is dropped if without it the distance grows by no more: rounding differs from draw to draw by as much."""
IMPOSSIBLE = (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError, OverflowError)
"""What an operation raises for fields that it cannot compute with."""


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
    shared: bool = False
    """Whether another step has the same, so that it needs less proof here."""
    rivals: tuple[Change, ...] = ()
    """Others that explain the step as well, each by itself."""


def by_key(site: str) -> bool:
    """Whether its last axis is that of keys, of which there are as many on both sides."""
    return axes(site)[-1] == "s"


_FAR = Score(10**12, float("inf"), Ratio(float("inf"), float("inf")))
"""Of what cannot be computed."""


class Scorer:
    """Injects changes into one merged step and measures what is left, on a few rows."""

    def __init__(self, merged: Merged, spec: Spec) -> None:
        self.merged, self.spec = merged, spec
        self.native = merged.stepwise()
        self.length = merged.sites["tokens"].shape[1]
        self.rows = Rows(self._worst_rows(), self.length)
        self.scale = Scale(merged, Variant(), self.rows, self.native)
        self.base = self.score(Variant())
        self._scales: dict[Variant, Scale] = {Variant(): self.scale}

    def _worst_rows(self) -> Tensor:
        """The positions where the step is worst, and a few others."""
        error = difference(self.merged.target, self.merged.value, self.native)
        names = axes(self.merged.target)
        if "p" not in names:
            return torch.arange(self.length)
        size = torch.nan_to_num(error).abs().movedim(names.index("p"), 0).flatten(1).amax(1)
        x, y = (masked(self.merged.target, t) for t in (self.merged.value, self.native))
        if x is not None and y is not None:
            size = size + (x ^ y).movedim(names.index("p"), 0).flatten(1).any(1) * size.max().clamp_min(1.0)
        worst = size.argsort(descending=True)[: _ROWS // 2]
        spread = torch.linspace(0, self.length - 1, min(_ROWS // 2, self.length)).long()
        return torch.cat((worst.cpu(), spread)).unique().to(self.merged.value.device)

    def score(self, variant: Variant, scale: Scale | None = None) -> Score:
        """Inject changes in the declared dtype, and see how far the candidate still is.

        Distances of all variants are in units of the unchanged step's rounding, so that they compare; `scale` is the
        one that decides whether what is left is rounding.
        """
        site = self.merged.target
        try:
            native = self.merged.stepwise(variant)
        except IMPOSSIBLE:
            return _FAR
        shape = self.merged.value.shape
        if native.shape[:-1] != shape[:-1] or (by_key(site) and native.shape != shape):
            return _FAR
        error = difference(site, self.rows.of(site, self.merged.value), self.rows.of(site, native))
        apart = support(site, self.merged.value, native, self.merged.sites["mask"])
        rms = float((by_rows(site, error, self.scale.mask) * self.scale.weights()).square().mean().sqrt())
        return Score(apart, rms if rms == rms else float("inf"), (scale or self.scale).ratio(error, apart))

    def is_explained(self, score: Score) -> bool:
        """Rounding, with most of the error gone; and much nearer than before where rounding's scale is loose."""
        return score.ratio.is_rounding and self._left(score) < (NEARLY if score.ratio.is_loose else MOSTLY)

    def agrees(self, score: Score) -> bool:
        """What was found elsewhere needs less proof: what is left is as of an honest pair, and most is gone."""
        return score.ratio.is_rounding and self._left(score) < MOSTLY

    def may_explain(self, score: Score) -> bool:
        """Whether most of the error is gone: without that it is explained by no scale, and none is cheap."""
        return score.support == 0 and self._left(score) < MOSTLY

    def _left(self, score: Score) -> float:
        """The part of the error that is left; of a difference in what is masked nothing."""
        return score.rms / self.base.rms if self.base.rms > 0 and not self.base.support else 0.0

    def judged(self, variant: Variant) -> Score:
        """A finalist against the scales of the changed step itself, but not of its coarser precision: a step that is
        computed coarsely reproduces the candidate to the last bits, or it is not the one.
        """
        if variant not in self._scales:
            fine = Variant(tuple(c for c in variant.changes if not is_precision(self.spec, c)))
            try:
                self._scales[variant] = Scale(self.merged, fine, self.rows, self.merged.stepwise(fine))
            except IMPOSSIBLE:
                self._scales[variant] = self.scale
        return self.score(variant, self._scales[variant])

    def tried(self, variant: Variant, score: Score | None = None) -> Score:
        """As a finalist where it may explain the step; else how far it leaves it, which is all that counts then.

        `score`: how far, where that is known.
        """
        score = score or self.score(variant)
        return self.judged(variant) if self.may_explain(score) else score

    def pruned(self, found: Found) -> Found:
        """None of the changes can be left out."""

        def explained(fewer: Variant, score: Score) -> Score | None:
            tried = self.tried(fewer, score)
            return tried if self.is_explained(tried) else None

        return self._needed(found, explained)

    def telling(self, found: Found) -> Found:
        """Of changes that do not explain the step those without which much more is left."""
        return self._needed(found, lambda _, score: score)

    def _needed(self, found: Found, still: Callable[[Variant, Score], Score | None]) -> Found:
        """Without the changes of which nothing is seen, where what is left still counts, by the score that is given."""
        for change in found.variant.changes:
            fewer = found.variant.without(change)
            score = self.score(fewer) if fewer else _FAR
            near = score.support <= found.score.support and score.rms <= REDUNDANT * found.score.rms
            if near and (kept := still(fewer, score)) is not None:
                found = Found(fewer, kept, found.intervals, found.names)
        return found

    def effective(self, variant: Variant) -> Variant:
        """Without what changes nothing here."""
        return Variant(
            tuple(
                c
                for c in variant.changes
                if not isinstance(c, SetField) or getattr(self.spec.at[c.site].op, c.name) != c.value
            )
        )


def distance(found: Found) -> tuple[int, float]:
    """By which found changes are sorted, nearest first; what acts alike stays in the order in which it was tried."""
    return found.score.support, float(f"{found.score.rms:.4g}")


def apart(found: Found, steps: Sequence[Step]) -> Found:
    """A number of many steps as one change of each."""
    changes = list[Change]()
    intervals, names = dict(found.intervals), dict(found.names)
    each = {(n.site, n.name): n.sites for n in numbers(steps)}
    for change in found.variant.changes:
        if not isinstance(change, SetField):
            changes.append(change)
            continue
        here = [sites for (site, name), sites in each.items() if name == change.name and site in change.sites]
        if not here:  # no number
            changes.append(change)
        for tied in here:
            changes.append(SetField(tied, change.name, change.value))
            new, old = slot(changes[-1]), slot(change)
            intervals |= {new: intervals[old]} if old in intervals else {}
            names |= {new: names[old]} if old in names else {}
    return replace(found, variant=Variant(tuple(changes)), intervals=intervals, names=names)


def clash(change: Change, variant: Variant) -> bool:
    """Whether a change is made already, or concerns a step that is left out."""
    gone = {s for c in variant.changes if isinstance(c, Leave) for s in c.sites}
    touched = {s for c in variant.changes for s in concerns(c)}
    return (
        slot(change) in {slot(c) for c in variant.changes}
        or bool(gone.intersection(concerns(change)))
        or (isinstance(change, Leave) and bool(touched.intersection(change.sites)))
    )
