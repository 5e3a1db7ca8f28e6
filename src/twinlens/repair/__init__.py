"""Mend a candidate and prove it: the inverse of every cause applied, recorded again, compared again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twinlens.environments.elsewhere import Mend
from twinlens.errors import ComparisonError, TwinlensError
from twinlens.parity.judge import Judge, Progress, silent
from twinlens.repair.instructions import Instruction, instructions, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlens.comparison import Report
    from twinlens.repair.mended import Mended
    from twinlens.subjects import Live, Subject


def wanted(report: Report, *, order: bool) -> list[Instruction]:
    """What is to be mended after a comparison."""
    return instructions(report.causes, report.orders if order else [])


def _job(judge: Judge, these: list[Instruction]) -> Mend:
    from twinlens.text import format_spec

    return Mend(format_spec(judge.computed.spec), to_json(these), judge.computed.own)


def fix(report: Report, candidate: object = None, *, order: bool = False, progress: Progress = silent) -> Report:
    """Apply the inverse edits, record again, compare again.

    Raises:
        ComparisonError: the candidate is a recording, which nothing can mend.
    """
    from twinlens.comparison import run
    from twinlens.subjects import Elsewhere, Live, subject

    assert report.sides is not None and report.declared is not None and report.tokens is not None
    assert report.judge is not None
    if report.lengths is not None:
        return _of_calls(report, candidate, order=order, progress=progress)
    side = report.sides[1] if candidate is None else subject(candidate, getattr(report.sides[1], "call", None))
    if not isinstance(side, Elsewhere | Live):
        raise _no_live_model(side)
    near = _from_near(report, side, progress)
    assert near.judge is not None
    these, words = wanted(near, order=order), list[str]()
    if isinstance(side, Elsewhere):
        side = replace(side, mend=_job(near.judge, these))
    else:
        words = _mended(near, side, these).words
    again = run(
        (report.sides[0], side),
        report.declared,
        report.tokens,
        report.mask,
        progress,
        reference=report.judge.first,
        sites=report.level,
    )
    again.mended = side.words if isinstance(side, Elsewhere) else words
    return again


def _whole(report: Report, side: Subject, progress: Progress = silent, sites: str | None = None) -> Report:
    """The same comparison in one call: what is mended there holds for calls with a cache, too."""
    from twinlens.comparison import run

    assert report.sides is not None and report.declared is not None and report.tokens is not None
    both = report.sides[0], side
    return run(both, report.declared, report.tokens, report.mask, progress, sites=sites or report.level)


def _from_near(report: Report, side: Subject, progress: Progress = silent) -> Report:
    """The comparison with all that a candidate shows that can be run: what was told from afar is mended where it is."""
    from twinlens.subjects import Recorded

    assert report.sides is not None and report.declared is not None and report.judge is not None
    shown = report.judge.second.first.sites if isinstance(report.sides[1], Recorded) else report.declared.spec.at
    near = report.level == "all" and report.declared.spec.at.keys() <= shown.keys()
    return report if near else _whole(report, side, progress, sites="all")


def _of_calls(report: Report, candidate: object, *, order: bool, progress: Progress) -> Report:
    from twinlens.subjects import Elsewhere, Live, subject

    assert report.sides is not None
    side = report.sides[1] if candidate is None else subject(candidate)
    if isinstance(side, Live):
        done = _mended_in_calls(report, side, order=order, progress=progress)
        again = _again(report, side, progress) if done.words else report
        again.mended = done.words
        return again
    if not isinstance(side, Elsewhere):
        raise _no_live_model(side)
    mended = fix(_whole(report, side, progress), side, order=order, progress=progress)
    assert mended.sides is not None
    again = _again(report, mended.sides[1], progress)
    again.mended = mended.mended
    return again


def _mended(report: Report, side: Live, these: Sequence[Instruction]) -> Mended:
    """What was done to a live module."""
    from twinlens.repair.mend import Mender

    assert report.declared is not None and report.judge is not None and report.tokens is not None
    mender = Mender(
        side.module, report.judge.computed.spec, report.judge.weights, report.tokens, report.mask, side.call,
        declared=report.declared.spec,
    )  # fmt: skip
    return mender(these)


def _mended_in_calls(report: Report, side: Live, *, order: bool, progress: Progress) -> Mended:
    """The same for calls with a cache: first what is wrong in one call as well, then what is left in some of them."""
    from twinlens.repair.calls import mend_calls
    from twinlens.repair.native import Native

    assert report.declared is not None and report.tokens is not None and report.lengths is not None
    whole = _whole(report, side, progress)
    assert whole.judge is not None
    done = _mended(whole, side, wanted(whole, order=order))
    again = _again(report, side, progress) if done.words else report
    these = [instructions(r.causes, r.orders if order else []) for r in again.calls]
    if any(these):
        native = Native(whole.judge.computed.spec, report.declared.spec, whole.judge.weights)
        try:
            done += mend_calls(side.module, native, these, report.tokens, report.mask, report.lengths)
        except TwinlensError:
            done.take_back()
            raise
    return done


def _again(report: Report, side: Subject, progress: Progress) -> Report:
    """The same calls once more."""
    from twinlens.comparison import run

    assert report.sides is not None and report.declared is not None and report.tokens is not None
    sides = report.sides[0], side
    return run(sides, report.declared, report.tokens, report.mask, progress, sites=report.level, calls=report.lengths)


def _no_live_model(side: Subject) -> ComparisonError:
    return ComparisonError(f"{side.name} is no live model; nothing of it can be mended. Print report.patch() instead.")


def patch(report: Report, *, order: bool = False) -> str:
    """What to change, in the candidate's own words, found by trying it and taking it back."""
    from twinlens.subjects import Elsewhere, Live, say_nothing

    assert report.sides is not None and report.declared is not None and report.tokens is not None
    side = report.sides[1]
    if isinstance(side, Live):
        if report.lengths is not None:
            done = _mended_in_calls(report, side, order=order, progress=silent)
        else:
            near = _from_near(report, side)
            done = _mended(near, side, wanted(near, order=order))
        done.take_back()
        return done.patch
    if isinstance(side, Elsewhere):  # it is built anew for every run, so there is nothing to take back
        report = _from_near(report, side) if report.lengths is None else _whole(report, side)
        assert report.judge is not None and report.declared is not None and report.tokens is not None
        tried = replace(side, mend=_job(report.judge, wanted(report, order=order)))
        tried.record(report.declared, report.tokens, report.mask, say_nothing)
        return tried.patch
    return "\n".join(f"{c.site}: {c.parameter} {c.candidate} -> {c.reference}" for c in report.causes)


__all__ = ["fix", "patch", "wanted"]
