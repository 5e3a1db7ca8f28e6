"""To what precision a run verified each field, or why it did not."""

from __future__ import annotations

from typing import Any

import torch

from twinlens.fields import Kind, kinds
from twinlens.parity import hypotheses
from twinlens.parity.changes import SetField, Variant, twins
from twinlens.parity.fit import Fit, numbers, slope
from twinlens.parity.judge import Judge
from twinlens.parity.merged import Merged, merge
from twinlens.parity.rounding import difference, support, unmasked
from twinlens.parity.rows import Rows
from twinlens.parity.scale import Scale
from twinlens.parity.score import IMPOSSIBLE
from twinlens.sites import axes

_ROWS = 8
Coverage = dict[str, dict[str, str]]


def coverage(judge: Judge) -> Coverage:
    """By site and parameter, on the candidate's own tensors.

    A number: the relative change that would have stood out against rounding. A choice or an integer: whether each of
    its other values would have been seen. Costs a few forwards, so it is computed when it is asked for.
    """
    found: Coverage = {}
    for m in merge(judge.computed.spec, judge.candidate.sites, judge.weights, judge.meter):
        for site, parameter, words in [*_numbers(m), *_choices(m, judge)]:
            before = found.setdefault(site, {}).get(parameter)
            if before is None or words.startswith("not verified"):  # of several fields of one word, the worst is told
                found[site][parameter] = words
    return found


def _rows(m: Merged) -> Rows:
    length = m.sites["tokens"].shape[1]
    spread = torch.linspace(0, length - 1, min(_ROWS, length), device=m.value.device).long().unique()
    return Rows(spread if "p" in axes(m.target) else None, length)


def _numbers(m: Merged) -> list[tuple[str, str, str]]:
    chosen = [n for n in numbers(m.steps) if n.value is not None]
    if not chosen:
        return []
    rows = _rows(m)
    scale = Scale(m, Variant(), rows, m.native())
    fit = Fit(m.prepared(Variant(), rows), Variant(), scale.weights())
    at = torch.tensor([n.start for n in chosen], dtype=torch.float64)
    _, slopes = fit.columns(chosen, at)
    told: list[tuple[str, str, str]] = []
    for number, column, u in zip(chosen, slopes.T, at.tolist(), strict=True):
        length = float(column.norm())
        value = abs(float(number.value or 0.0)) or 1.0
        seen = abs(slope(number.kind, u)) / length / value if length > 0 else float("inf")
        words = f"to {4 * seen:.1g} of its value" if seen < 0.25 else "not verified: hardly acts on this probe"
        told.append((number.site, number.kind.parameter, words))
    return told


def _choices(m: Merged, judge: Judge) -> list[tuple[str, str, str]]:
    told: list[tuple[str, str, str]] = []
    native = m.native()
    for step in m.steps:
        for name, kind, now in kinds(step.op):
            tied = twins(m.steps, step.writes, name)
            if kind.name not in ("choice", "integer") or tied[0] != step.writes:
                continue
            alike = [v for v in _others(judge, m, step, name, kind, now) if _same(m, native, SetField(tied, name, v))]
            tells = f"; {kind.shown_by} would tell" if kind.shown_by else ""
            words = f"not verified: {', '.join(map(str, alike))} would look the same{tells}" if alike else "verified"
            told.append((step.writes, kind.parameter, words))
    return told


def _others(judge: Judge, m: Merged, step: Any, name: str, kind: Kind, now: Any) -> list[Any]:
    if kind.name == "choice":
        return [v for v in kind.alternatives if v != now]
    near = hypotheses.integers(judge.computed.spec, step, name, kind, now, ())[:3]
    return [*near, *([None] if kind.off and now is not None else [])]


def _same(m: Merged, native: torch.Tensor, change: SetField) -> bool:
    """Whether a change would leave the step as it is, to rounding."""
    try:
        other = m.native(Variant((change,)))
    except IMPOSSIBLE:
        return False
    if other.shape != native.shape:
        return False
    error, apart = difference(m.target, other, native), support(m.target, other, native, m.sites["mask"])
    size = unmasked(m.target, native.double()).norm()
    u = torch.finfo(native.dtype).eps / 2
    return apart == 0 and float(error.norm()) <= u * float(size)
