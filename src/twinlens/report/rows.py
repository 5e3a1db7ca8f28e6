"""What a report says, as rows: a sentence, facts, tables. Renderers only print them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twinlens.parity.result import Cause, Finding, Order, Result
from twinlens.report import words
from twinlens.report.picture import picture
from twinlens.report.table import Table
from twinlens.sites import generic, split

MOST = 12
"""Rows of a table for people; JSON has them all."""


@dataclass(frozen=True)
class Page:
    """The whole of a report.

    Attributes:
        verdict: one word.
        sentence: the same for somebody who reads nothing else.
        facts: what is said in one line each, by name.
        tables: the rest.
    """

    verdict: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]


def page(report: Result) -> Page:
    """The rows of a report."""
    tables = (
        *_mended(report),
        *_calls(report),
        *_causes(report),
        *_reference(report),
        *_unexplained(report),
        *_orders("Orders: other bits, same meaning", report.orders, report),
        *_orders("Orders of the reference against its declaration", report.reference_orders, report),
        *_steps(report),
        *picture(report.findings),
    )
    return Page(report.verdict, sentence(report), tuple(_facts(report)), tables)


def sentence(report: Result) -> str:
    """The verdict as somebody would say it."""
    sites = words.counted(len(report.findings), "site")
    if report.verdict == "identical":
        return f"The same model: equal bit for bit at all {sites} that both show."
    if report.verdict == "rounding":
        first = next((f.site for f in report.findings if f.status != "equal"), "one site")
        orders = " The orders below make them equal." if report.exact else ""
        return f"The same model up to rounding: no step errs by more. Bits differ first at {first}.{orders}"
    return f"Not the same model: {_why(report)}."


def _why(report: Result) -> str:
    if not report.causes:
        return "something differs, and no change that was tried reproduces it"
    causes = words.counted(len(report.causes), "cause")
    if report.explained == "different":
        return f"{causes} found, and a part that they do not explain"
    all_of_it = "explains all of it" if len(report.causes) == 1 else "explain all of it"
    if report.explained == "identical":
        exactly = "bit for bit"
    else:
        exactly = "with the orders below bit for bit" if report.exact else "to rounding"
    return f"{causes} {all_of_it}, {exactly}"


def _facts(report: Result) -> Iterator[tuple[str, str]]:
    if (sides := words.sides(report)) is not None:
        yield from zip(("reference", "candidate"), sides, strict=True)
    yield "compared", report.scope
    if report.first_difference is not None:
        yield "first difference", report.first_difference
    if (logits := _finding(report, "logits")) is not None and logits.total:
        share = words.small(words.relative(logits.total, logits))
        most = words.number(logits.largest)
        yield "logits", f"apart by at most {most}, in the mean square by {share} of their size"
    for side in report.unsteady:
        yield "not steady", f"a second run of the {side} gives other logits; switch off what is random in it"
    for side in report.training:
        yield "training", f"the {side} is in training mode and drops out; it was compared without, as after eval()"
    for line in report.gauges:
        yield "gauge", line
    for line in report.pairs:
        yield "not told apart", line
    for line in report.asked:
        yield "asked", line
    if report.flips:
        yield "flips", f"{words.counted(report.flips, 'token')} took another expert within rounding"
    if report.assumed:
        count = words.counted(len(report.assumed), "weight")
        yield (
            "assumed",
            f"{count} not seen, taken to be the reference's: {words.some(report.assumed)}",
        )
    if report.unmatched:
        yield (
            "unmatched",
            f"{words.counted(len(report.unmatched), 'site')}: {words.some(report.unmatched)}",
        )
    if report.cost:
        diagnosis = f"{report.diagnosis_cost:.2g} of them for the diagnosis"
        yield "cost", f"{report.cost:.2g} forward-equivalents of replaying, {diagnosis}"


def _finding(report: Result, site: str) -> Finding | None:
    return next((f for f in report.findings if f.site == site), None)


def _mended(report: Result) -> Iterator[Table]:
    if report.mended:
        depth = words.depth(report)
        rows = tuple((words.layers(n, depth), what) for what, n in words.by_layer(report.mended))
        yield Table("Mended before this comparison", ("layers", "what"), rows)


def _calls(report: Result) -> Iterator[Table]:
    """Where several calls were compared, what each one shows."""
    if report.calls:
        rows = tuple(
            (str(i), r.verdict, r.first_difference or "", words.counted(len(r.causes), "cause") if r.causes else "")
            for i, r in enumerate(report.calls)
        )
        yield Table("Calls, each with what those before it left", ("call", "verdict", "first difference", ""), rows)


def _causes(report: Result) -> Iterator[Table]:
    if report.causes:
        yield _of_causes("Causes", report.causes, report, "reference → candidate")


def _reference(report: Result) -> Iterator[Table]:
    """The reference is taken as it computes; where its own config says otherwise is said here."""
    if report.reference_edits:
        title = "The reference differs from its own config"
        yield _of_causes(title, report.reference_edits, report, "config → as it computes")


def _of_causes(title: str, causes: Sequence[Cause], report: Result, change: str) -> Table:
    depth = words.depth(report)
    rows = tuple((c.parameter, c.site, words.layers(c.layers, depth), words.change(c), c.status) for c in causes)
    columns = ("parameter", "site", "layers", change, "status")
    return Table(title, columns, rows, notes=tuple(_evidence(c) for c in causes))


def _evidence(cause: Cause) -> str:
    rest = cause.evidence.removeprefix(words.named(cause)).removeprefix("; ")
    seen = f"seen at {cause.seen_at}" if cause.seen_at != cause.site else ""
    return "; ".join(part for part in (words.precision(cause), seen, rest) if part)


def _orders(title: str, orders: Sequence[Order], report: Result) -> Iterator[Table]:
    if orders:
        depth = words.depth(report)
        rows = tuple((o.parameter, o.site, words.layers(o.layers, depth), words.change(o)) for o in orders)
        yield Table(title, ("parameter", "site", "layers", "reference → candidate"), rows)


def _unexplained(report: Result) -> Iterator[Table]:
    if report.unexplained:
        rows = tuple(
            (u.site, f"{u.ratio.tight:.3g}", str(u.ratio.support or ""), words.some(u.nearest, 3))
            for u in report.unexplained[:MOST]
        )
        more = len(report.unexplained) - MOST
        notes = (f"and {words.counted(more, 'site')} more",) if more > 0 else ()
        columns = ("site", "error / rounding", "masked by one", "came nearest")
        yield Table("Not explained", columns, rows, notes=notes, numbered=False)


def _steps(report: Result) -> Iterator[Table]:
    """The steps whose replay differs in bits, alike layers in one row."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        if finding.status not in ("equal", "innocent"):
            groups.setdefault((generic(finding.site), finding.status), []).append(finding)
    if groups:
        depth = words.depth(report)
        rows = tuple((site, status, _layers(of, depth), _most(of), _ratio(of)) for (site, status), of in groups.items())
        columns = ("step", "judged", "layers", "injected / size", "error / rounding")
        yield Table("Steps that compute other bits on the same inputs", columns, rows)


def _layers(findings: Sequence[Finding], depth: int) -> str:
    seen = [layer for f in findings if (layer := split(f.site)[0]) is not None]
    return words.layers(seen, depth)


def _most(findings: Sequence[Finding]) -> str:
    return words.small(max(words.relative(f.injected, f) for f in findings))


def _ratio(findings: Sequence[Finding]) -> str:
    ratios = [f.ratio.tight for f in findings if f.ratio is not None]
    return f"{max(ratios):.3g}" if ratios else "–"
