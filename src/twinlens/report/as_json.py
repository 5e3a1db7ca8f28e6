"""A report as JSON: everything, in plain types, under keys that stay.

JSON knows neither NaN nor infinity; they are written as "NaN", "Infinity" and "-Infinity", which
Python's `float` reads as well as JavaScript's `Number`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import twinlens
from twinlens.parity.result import Cause, Finding, Order, Result
from twinlens.parity.rounding import Ratio
from twinlens.report import words
from twinlens.report.rows import sentence

FORMAT = 1


def text(report: Result, *, after_fix: Result | None = None) -> str:
    """One JSON object; `after_fix` is the comparison of the mended candidate, under that key."""
    said = {"twinlens": {"version": twinlens.__version__, "format": FORMAT}, **data(report)}
    if after_fix is not None:
        said["after_fix"] = data(after_fix)
    return json.dumps(said, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def data(report: Result) -> dict[str, Any]:
    """Everything that a report holds."""
    reference, candidate = words.sides(report) or (None, None)
    return {
        "reference": reference,
        "candidate": candidate,
        "verdict": report.verdict,
        "sentence": sentence(report),
        "explained": report.explained,
        "exact": report.exact,
        "first_difference": report.first_difference,
        "scope": report.scope,
        "causes": [_cause(c) for c in report.causes],
        "orders": [_order(o) for o in report.orders],
        "gauges": list(report.gauges),
        "flips": report.flips,
        "unexplained": [
            {"site": u.site, "ratio": _ratio(u.ratio), "nearest": list(u.nearest)} for u in report.unexplained
        ],
        "unmatched": list(report.unmatched),
        "assumed": list(report.assumed),
        "reference_edits": [_cause(c) for c in report.reference_edits],
        "reference_orders": [_order(o) for o in report.reference_orders],
        "unsteady": list(report.unsteady),
        "pairs": list(report.pairs),
        "asked": list(report.asked),
        "training": list(report.training),
        "calls": [
            {
                "verdict": r.verdict,
                "first_difference": r.first_difference,
                "findings": [_finding(f) for f in r.findings],
            }
            for r in report.calls
        ],
        "mended": list(report.mended),
        "findings": [_finding(f) for f in report.findings],
        "cost": plain(report.cost),
        "diagnosis_cost": plain(report.diagnosis_cost),
    }


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers stay numbers, what is neither is said in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _cause(cause: Cause) -> dict[str, Any]:
    interval = None if cause.interval is None else [plain(float(end)) for end in cause.interval]
    return {
        "site": cause.site,
        "seen_at": cause.seen_at,
        "parameter": cause.parameter,
        "reference": plain(cause.reference),
        "candidate": plain(cause.candidate),
        "interval": interval,
        "layers": list(cause.layers),
        "status": cause.status,
        "evidence": cause.evidence,
    }


def _order(order: Order) -> dict[str, Any]:
    return {
        "site": order.site,
        "parameter": order.parameter,
        "reference": plain(order.reference),
        "candidate": plain(order.candidate),
        "layers": list(order.layers),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    errors = {k: plain(v) for k, v in vars(finding).items() if k != "ratio"}
    return errors | {"ratio": None if finding.ratio is None else _ratio(finding.ratio)}


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return {"wide": plain(ratio.wide), "tight": plain(ratio.tight), "support": ratio.support}
