"""Numbers, layers and values in the words of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from twinlens.parity.result import Cause, Finding, Order, Result
from twinlens.sites import split

_BETWEEN_DOTS = re.compile(r"\.(\d+)\.")


def number(value: float) -> str:
    """Six digits: 14.9666; powers of ten where a number is small or large."""
    return f"{value:.6g}"


def small(value: float) -> str:
    """An error, in two digits; 0 is exactly zero."""
    return "0" if value == 0 else f"{value:.1e}"


def value(of: Any, parameter: str) -> str:
    """What one side has: `None` is an absent tensor or norm, a dtype taken as it comes, else a field that is off."""
    if of is None and parameter.endswith("dtype"):
        return "as it comes in"
    if of is None:
        return "absent" if parameter in ("weight", "bias", "norm.missing") else "off"
    return number(of) if isinstance(of, float) else str(of)


def named(cause: Cause) -> str:
    """`= sqrt(224)`, with which the evidence of an estimate begins; empty where it has no name."""
    said = cause.evidence.partition("; ")[0]
    return said if said.startswith("= ") else ""


def closed_form(cause: Cause) -> str:
    """The same where it says more than the digits: not `= 1e4` of 10000."""
    said = named(cause)
    try:
        float(said.removeprefix("= "))
    except ValueError:
        return said
    return ""


def change(of: Cause | Order) -> str:
    """`16 → 14.9666 = sqrt(224)`; of a weight that both have, its name."""
    if of.reference == of.candidate and isinstance(of.reference, str):
        return of.reference
    name = f" {said}" if isinstance(of, Cause) and (said := closed_form(of)) else ""
    left, right = value(of.reference, of.parameter), value(of.candidate, of.parameter)
    return f"{left} → {right}{name}"


def precision(cause: Cause) -> str:
    """`± 6e-08` relative to the value, from the interval of an estimate."""
    if cause.interval is None or not isinstance(cause.candidate, float):
        return ""
    low, high = cause.interval
    half = (high - low) / 2
    return f"± {half / abs(cause.candidate):.0e} of it" if cause.candidate else f"± {half:.0e}"


def ranges(layers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    runs = groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(pairs) for _, pairs in runs)]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def layers(of: Sequence[int], depth: int) -> str:
    """`all layers`, or ranges; `–` where no layer is meant."""
    if not of:
        return "–"
    return "all layers" if depth > 1 and len(set(of)) == depth else ranges(of)


def depth(report: Result) -> int:
    """How many layers the model has: a `Report` is told by its declaration, else by the sites."""
    # A bare Result declares nothing, and an arrow from here to `comparison` would make a ring.
    declared: Any = getattr(report, "declared", None)
    if declared is not None:
        return int(declared.spec.shape.layers)
    return len({layer for f in report.findings if (layer := split(f.site)[0]) is not None})


def sides(report: Result) -> tuple[str, str] | None:
    """The names of reference and candidate, where a `Report` knows them."""
    subjects: Any = getattr(report, "sides", None)  # as in `depth`
    return None if subjects is None else (str(subjects[0].name), str(subjects[1].name))


def counted(count: int, thing: str) -> str:
    """`1 cause`, `2 causes`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def by_layer(lines: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Lines that are alike but for the first number between dots, `blocks.3.attn`, as one."""
    groups: dict[str, list[int]] = {}
    for line in lines:
        number = _BETWEEN_DOTS.search(line)
        groups.setdefault(_BETWEEN_DOTS.sub(".L.", line, count=1), []).extend(
            [] if number is None else [int(number[1])]
        )
    return list(groups.items())


def some(of: Sequence[str], first: int = 4) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(of) - first} more" if len(of) > first else ""
    return ", ".join(of[:first]) + more


def relative(error: float, finding: Finding) -> float:
    """An error as a share of the size of the site's tensor."""
    return error / finding.size if finding.size else error
