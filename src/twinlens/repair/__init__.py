"""Mend a candidate and prove it: the inverse of every cause applied, recorded again, compared again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twinlens.environments.elsewhere import Mend
from twinlens.errors import ComparisonError
from twinlens.parity.judge import Judge, Progress, silent
from twinlens.repair.instructions import Instruction, instructions, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from twinlens.comparison import Report
    from twinlens.repair.mend import Mended
    from twinlens.spec import Spec
    from twinlens.subjects import Subject


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
    these = wanted(report, order=order)
    spec = report.judge.computed.spec
    words = list[str]()
    if isinstance(side, Elsewhere):
        side = replace(side, mend=_job(report.judge, these))
    elif isinstance(side, Live):
        from twinlens.repair.mend import Mender

        mender = Mender(
            side.module,
            spec,
            report.judge.weights,
            report.tokens,
            report.mask,
            side.call,
            declared=report.declared.spec,
        )
        words = mender(these).words
    else:
        raise ComparisonError(
            f"{side.name} is no live model; nothing of it can be mended. Print report.patch() instead."
        )
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


def _whole(report: Report, progress: Progress = silent) -> Report:
    """The same comparison in one call: what is mended there holds for calls with a cache, too."""
    from twinlens.comparison import run

    assert report.sides is not None and report.declared is not None and report.tokens is not None
    return run(report.sides, report.declared, report.tokens, report.mask, progress, sites=report.level)


def _of_calls(report: Report, candidate: object, *, order: bool, progress: Progress) -> Report:
    from twinlens.subjects import Live, subject

    whole = _whole(report, progress)
    mended = fix(whole, candidate, order=order, progress=progress) if wanted(whole, order=order) else whole
    assert mended.sides is not None and whole.judge is not None
    again = _again(report, mended.sides, progress)
    again.mended = mended.mended
    these = [instructions(r.causes, r.orders if order else []) for r in again.calls]
    side = mended.sides[1] if candidate is None else subject(candidate)
    if not any(these) or not isinstance(side, Live):
        return again
    done = _in_calls(again, whole.judge.computed.spec, side.module, these)
    last = _again(report, (mended.sides[0], side), progress)
    last.mended = [*again.mended, *done.words]
    return last


def _again(report: Report, sides: tuple[Subject, Subject], progress: Progress) -> Report:
    """The same calls of both sides."""
    from twinlens.comparison import run

    assert report.declared is not None and report.tokens is not None and report.judge is not None
    return run(sides, report.declared, report.tokens, report.mask, progress, sites=report.level, calls=report.lengths)


def _in_calls(report: Report, spec: Spec, module: nn.Module, these: Sequence[Sequence[Instruction]]) -> Mended:
    """What is wrong in some of several calls, mended there; `spec` is what one call shall compute."""
    from twinlens.repair.calls import mend_calls
    from twinlens.repair.native import Native

    assert report.declared is not None and report.tokens is not None and report.judge is not None
    assert report.lengths is not None
    native = Native(spec, report.declared.spec, report.judge.weights)
    return mend_calls(module, native, these, report.tokens, report.mask, report.lengths)


def patch(report: Report, *, order: bool = False) -> str:
    """What to change, in the candidate's own words, found by trying it and taking it back."""
    from twinlens.subjects import Elsewhere, Live, say_nothing

    report = report if report.lengths is None else _whole(report)
    these = wanted(report, order=order)
    assert report.sides is not None and report.judge is not None and report.tokens is not None
    assert report.declared is not None
    side = report.sides[1]
    if isinstance(side, Live):
        from twinlens.repair.mend import Mender

        mender = Mender(
            side.module,
            report.judge.computed.spec,
            report.judge.weights,
            report.tokens,
            report.mask,
            side.call,
            declared=report.declared.spec,
        )
        done = mender(these)
        for undo in reversed(done.undo):
            undo()
        return "\n".join(done.words)
    if isinstance(side, Elsewhere):  # it is built anew for every run, so there is nothing to take back
        tried = replace(side, mend=_job(report.judge, these))
        tried.record(report.declared, report.tokens, report.mask, say_nothing)
        return "\n".join(tried.words)
    lines = [f"{c.site}: {c.parameter} {c.candidate} -> {c.reference}" for c in report.causes]
    return "\n".join(lines)


__all__ = ["fix", "patch", "wanted"]
