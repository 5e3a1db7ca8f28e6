"""What one run does not tell apart: which second run would, and that run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twinlens import probes
from twinlens.errors import InputError
from twinlens.model import Model
from twinlens.parity.changes import Variant, slot
from twinlens.parity.hypotheses import show
from twinlens.parity.judge import Judge, Progress, silent
from twinlens.parity.result import Cause
from twinlens.parity.rounding import WIDE, by_rows, difference
from twinlens.parity.score import IMPOSSIBLE, MOSTLY
from twinlens.sites import axes, split
from twinlens.spec import Spec
from twinlens.subjects import Recorded, Say, say_nothing
from twinlens.visibility import VISIBLE

if TYPE_CHECKING:
    from twinlens.comparison import Report

CLEAR = 100.0
"""Times farther apart than in the run that did not tell them apart: more is not looked for."""
LONGEST = 1024
"""Tokens of a row that is tried: of a window of thousands the scores of two models more would fill the memory."""


@dataclass(frozen=True)
class Ask:
    """One more run: these tokens, seen at this level."""

    words: str
    tokens: Tensor
    mask: Tensor | None
    level: str


@dataclass(frozen=True)
class Pair:
    """A cause, other changes that do the same in this run, and the run that would tell them apart."""

    cause: Cause
    others: Variant
    words: str
    """Both, in words."""
    ask: Ask | None
    """None where no run that was tried holds them apart any better."""
    farther: float = 0.0
    """How many times as far apart they are there as they are here."""

    def __str__(self) -> str:
        """Both, and what would tell."""
        if self.ask is None:
            return f"{self.words}: alike in every run that was tried"
        return f"{self.words}: {self.ask.words} would tell, they are {self.farther:.2g} times as far apart there"


def pairs(report: Report) -> list[Pair]:
    """Each cause with each that is not told from it, and the run that would tell: first one that shows more sites of
    the same tokens, then other tokens. Of calls with a cache none: each of them sees what the others do not.
    """
    found = list[Pair]()
    if report.lengths is not None:
        return found
    for cause in report.causes:
        for i in range(max(map(len, cause.rivals.values()), default=0)):
            pair = _pair(report, cause, _instead(cause, i))
            found += [] if pair is None else [pair]
    return found


def _instead(cause: Cause, i: int) -> Variant:
    """The rivals of one kind in the place of a cause's changes; in a layer that has none of its own, as elsewhere."""
    one = next(rivals[i] for rivals in cause.rivals.values() if i < len(rivals))
    made = Variant()
    for change in cause.changes:
        layer, own = split(change.site)[0], cause.rivals.get(slot(change), ())
        as_there = Variant((one,)).in_layer(layer).changes if layer is not None else ()
        made += own[i : i + 1] or as_there or (change,)
    return made


def ask(report: Report, progress: Progress = silent, say: Say = say_nothing) -> Report:
    """Run what would tell apart what a comparison did not; the last report, which says what was asked. The same report
    where there is nothing to ask.

    Raises:
        InputError: a side is a recording, which cannot be run again.
    """
    from twinlens.comparison import run

    sides, declared, asked = report.sides, report.declared, dict[str, str]()
    assert sides is not None and declared is not None
    while (wanted := _wanted(report)) is not None and wanted.words not in asked:
        for side in sides:
            if isinstance(side, Recorded):
                raise InputError(
                    f"{side.name} is a recording, which cannot be asked; give the model that it was made of, or record "
                    f"it again: {wanted.words} would tell."
                )
        say(f"asking: {wanted.words}")
        calls = report.lengths if wanted.tokens is report.tokens else None
        report = run(sides, declared, wanted.tokens, wanted.mask, progress, say, sites=wanted.level, calls=calls)
        asked[wanted.words] = _answer(report)
        report.asked = [f"{words}: {answer}" for words, answer in asked.items()]
    return report


def _wanted(report: Report) -> Ask | None:
    """The run that tells most pairs apart; where something is left to explain, all sites."""
    runs = [pair.ask for pair in report.questions if pair.ask is not None]
    if runs:
        return max(runs, key=lambda a: sum(b.words == a.words for b in runs))
    left = report.unexplained or any(c.status != "proved" for c in report.causes)
    if not left or report.level == "all" or report.tokens is None:
        return None
    return Ask("--sites all", report.tokens, report.mask, "all")


def _answer(report: Report) -> str:
    """What a second run told."""
    said = ", ".join(_told(c) for c in report.causes) or "nothing that has a name"
    kept = [p.words for p in report.questions]
    return said + (f"; still not told apart: {'; '.join(kept)}" if kept else "")


def _told(cause: Cause) -> str:
    where = f" in layers {', '.join(map(str, cause.layers))}" if cause.layers else ""
    return f"{cause.parameter} at {cause.site}{where}"


# ------------------------------------------------------------------------------------------------- which run would tell


def _pair(report: Report, cause: Cause, others: Variant) -> Pair | None:
    """None where other steps of the same run tell them apart: a table that all layers read, where one is at fault."""
    assert report.judge is not None and report.tokens is not None
    judge, spec, both = report.judge, report.judge.computed.spec, (Variant(cause.changes), others)
    levels = {"here": set(judge.common)} | {level: _shown(spec, level) for level in _levels_above(report.level)}
    here = _apart(judge, both, report.tokens, report.mask, levels)
    moved = _apart(judge, (Variant(), both[0]), report.tokens, report.mask, {"here": levels["here"]})
    if moved["here"] and here["here"] >= MOSTLY * moved["here"]:
        return None
    words = f"{show(cause.changes[0], spec)} or {show(others.changes[0], spec)}"
    nearest = max(here["here"], torch.finfo(judge.candidate.sites[judge.common[-1]].dtype).eps)
    best, farthest = None, WIDE**2  # at most WIDE times rounding here, beyond it there
    for candidate, apart in _tried(report, judge, both, here):
        if apart > farthest * nearest:
            best, farthest = candidate, apart / nearest
        if farthest > CLEAR:
            break
    return Pair(cause, others, words, best, farthest if best else 0.0)


def _tried(
    report: Report, judge: Judge, both: tuple[Variant, Variant], here: Mapping[str, float]
) -> Iterator[tuple[Ask, float]]:
    """Each run that could be made, with how far apart two variants are in it."""
    assert report.tokens is not None
    for level in _levels_above(report.level):
        words = f"--sites {level}" if report.level != "all" else "a run that shows all sites"
        yield Ask(words, report.tokens, report.mask, level), here[level]
    shown = {"here": set(judge.common)}
    for probe in probes.others(judge.computed.spec):
        if probe.tokens.shape[1] > LONGEST:
            continue
        there = _apart(judge, both, probe.tokens, probe.mask, shown)
        yield Ask(probe.words, probe.tokens, probe.mask, report.level), there["here"]


def _levels_above(level: str) -> list[str]:
    """Those that show more, least first; of a recording, which may show less than all, a run that shows all."""
    order = list(VISIBLE)
    return order[: max(order.index(level), 1)][::-1]


def _shown(spec: Spec, level: str) -> set[str]:
    names = VISIBLE[level]
    return {s for s in spec.sites if names is None or split(s)[1] in names}


def _apart(
    judge: Judge, both: tuple[Variant, Variant], tokens: Tensor, mask: Tensor | None, shown: Mapping[str, set[str]]
) -> dict[str, float]:
    """For some sets of sites, how far apart two variants of the declared model are at the site where they are farthest
    apart, as a part of its size.
    """
    names = {s for sites in shown.values() for s in sites if axes(s)[-1] != "s"}  # scores are large, and lead to others
    real = torch.ones_like(tokens) if mask is None else mask
    one, other = (_run(judge, variant, tokens, mask, names) for variant in both)
    off = {site: _far(site, one[site], other[site], real) for site in one.keys() & other.keys()}
    return {name: max((off[s] for s in sites if s in off), default=0.0) for name, sites in shown.items()}


def _run(
    judge: Judge, variant: Variant, tokens: Tensor, mask: Tensor | None, names: set[str]
) -> Mapping[str, Tensor]:  # fmt: skip
    if variant.inputs({}):  # which is fed these tokens' own
        return {}
    spec = judge.computed.spec
    changed = replace(spec, steps=variant.steps(spec.steps))
    try:
        _, cache = Model(changed, variant.weights(judge.weights)).run_with_cache(tokens, mask, names=names.__contains__)
    except IMPOSSIBLE:  # a table that is too short for these tokens
        return {}
    return cache


def _far(site: str, x: Tensor, y: Tensor, mask: Tensor) -> float:
    if x.shape != y.shape:
        return float("inf")
    apart, size = (by_rows(site, t.double(), mask).norm() for t in (difference(site, x, y), difference(site, y, y * 0)))
    return float(apart / size) if float(size) > 0 else float(apart)
