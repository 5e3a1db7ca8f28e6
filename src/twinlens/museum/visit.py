"""One exhibit, run: what is seen of the candidate, and whether what is said of it is right."""

from __future__ import annotations

import dataclasses
from typing import Any

import twinlens
from twinlens.museum.exhibit import ANY, Exhibit, Model, Want
from twinlens.parity.result import Cause, Result
from twinlens.sites import split
from twinlens.subjects import agreed, say_nothing, subject
from twinlens.visibility import only

LEVELS = ("all", "sublayers", "residual", "logits", "logprobs")


def compared(exhibit: Exhibit, level: str = "all", dtype: str | None = None) -> tuple[Model, twinlens.Report]:
    """The candidate, and the comparison: with the live module, or with what a recording shows of it at this level."""
    reference = exhibit.reference(dtype)
    candidate = exhibit.candidate(reference)
    tokens, mask = exhibit.inputs(reference)
    seen: Any = candidate
    if level != "all":
        side = subject(candidate)
        full = side.record(agreed(subject(reference), side), tokens, mask, say_nothing, exhibit.calls)
        seen = shown(full, level)
    return candidate, twinlens.compare(reference, seen, tokens=tokens, mask=mask, calls=exhibit.calls)


def shown(full: twinlens.Recording, level: str) -> twinlens.Recording:
    """What somebody sees who has these sites alone: no weights, nothing of how they were found."""
    seen = only(full, level)
    calls = [dataclasses.replace(call, placed=dict.fromkeys(call.sites, "given")) for call in seen.calls]
    return twinlens.Recording(calls, about={"implementation": f"{level} of a candidate"})


def misses(exhibit: Exhibit, report: Result) -> list[str]:
    """What a report should have said and did not, and what it should not have said; empty where it is right."""
    bad = list[str]()
    honest = ("identical", "rounding")
    if (report.verdict in honest) != exhibit.benign:
        bad.append(f"verdict {report.verdict}")
    if report.explained not in honest:
        bad.append(f"explained {report.explained}")
    bad += [
        f"unexplained {u.site} ({u.ratio.wide:.3g}, {u.ratio.tight:.3g}), nearest {u.nearest}"
        for u in report.unexplained
    ]
    bad += [f"accuses the reference: {c.parameter} at {c.site}" for c in report.reference_edits]
    used = set[int]()
    for want in exhibit.causes:
        rows = [c for c in report.causes if fits(want, c)]
        used |= {id(c) for c in rows}
        bad += _lacks(want, rows)
    bad += [
        f"accused: {c.parameter} {c.reference} -> {c.candidate} at {c.site} {c.layers} {c.status}: {c.evidence[:120]}"
        for c in report.causes
        if id(c) not in used
    ]
    return bad


def _lacks(want: Want, rows: list[Cause]) -> list[str]:
    """What the causes that fit do not say."""
    if not rows:
        return [f"not named: {want.parameter} {want.reference} -> {want.candidate}"]
    bad = list[str]()
    found = tuple(sorted({i for c in rows for i in c.layers}))
    if want.layers is not None and found != want.layers:
        bad.append(f"{want.parameter} in layers {found}, expected {want.layers}")
    if want.at and {part(c.site) for c in rows} != set(want.at):
        bad.append(f"{want.parameter} at {sorted({part(c.site) for c in rows})}, expected {sorted(want.at)}")
    return bad + [f"{c.parameter} at {c.site} is {c.status}" for c in rows if c.status != "proved"]


def part(site: str) -> str:
    """`ln1` of `blocks.0.ln1.hook_out`."""
    return split(site)[1].split(".")[0]


def fits(want: Want, cause: Cause) -> bool:
    """Whether a cause has the parameter and the values that are wanted."""
    names = (want.parameter,) if isinstance(want.parameter, str) else want.parameter
    return (
        cause.parameter in names
        and _alike(want.reference, cause.reference, 1e-3 * _size(want.reference))
        and _alike(want.candidate, cause.candidate, want.within * _apart(want))
        and (cause.interval is None or not isinstance(want.candidate, float) or _within(want.candidate, cause.interval))
    )


def _within(value: float, interval: tuple[float, float]) -> bool:
    """Half as much again is allowed: an interval has a few standard errors on each side."""
    low, high = interval
    slack = 0.25 * (high - low) + 1e-6 * abs(value)
    return low - slack <= value <= high + slack


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, float) else 0.0


def _apart(want: Want) -> float:
    if isinstance(want.reference, float) and isinstance(want.candidate, float):
        return abs(want.candidate - want.reference)
    return _size(want.candidate)


def _alike(wanted: Any, found: Any, slack: float) -> bool:
    if isinstance(wanted, str) and wanted == ANY:
        return True
    if isinstance(wanted, float) and isinstance(found, int | float):
        return abs(wanted - found) <= slack
    return wanted == found and type(wanted) is type(found)
