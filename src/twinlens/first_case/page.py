"""What was measured, as sentences and tables; for a terminal and as a page of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from twinlens.first_case import measure
from twinlens.first_case.case import CAP_OFF, HF, NORM, SCALE_AND_LAYERS, TL, Case, tried
from twinlens.first_case.checkpoints import Size
from twinlens.first_case.second import TL as SECOND_TL
from twinlens.first_case.second import Llama
from twinlens.report import terminal, words
from twinlens.report.table import Table

Part = str | Table


@dataclass(frozen=True)
class Measured:
    """All of a run."""

    size: Size
    length: int
    cases: list[Case]
    llama: list[Llama]
    checkpoint_unchanged: bool
    environments_unchanged: bool

    @property
    def as_promised(self) -> bool:
        """Every case ends identical, and nothing on disk was changed."""
        ends = [case.identical for case in self.cases]
        ends += [at.after.verdict == "identical" for at in self.llama]
        return all(ends) and self.checkpoint_unchanged and self.environments_unchanged


def text(of: Measured) -> str:
    """For a terminal, 100 columns wide."""
    lines: list[str] = []
    for title, parts in _sections(of):
        lines += ["", title.upper(), ""]
        for part in parts:
            if isinstance(part, Table):
                lines += [part.title, terminal.table_text(part), ""]
            else:
                lines += [*textwrap.wrap(part, terminal.WIDTH), ""]
    return "\n".join(lines)


def markdown(of: Measured) -> str:
    """The page; written by this function only."""
    lines = [
        "# The first case: Gemma-2 in TransformerLens 2.3.0",
        "",
        "*Written by `python -m twinlens.first_case --write docs/first-case.md`; every figure is "
        "from that run, except those said to be published.*",
    ]
    for title, parts in _sections(of):
        lines += ["", f"## {title}", ""]
        for part in parts:
            if isinstance(part, Table):
                lines += [f"**{part.title}**", "", *_rows(part), ""]
            else:
                lines += [part, ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(table: Table) -> Iterator[str]:
    for row in (table.columns, ("---",) * len(table.columns), *table.rows):
        yield f"| {' | '.join(row)} |"


def _sections(of: Measured) -> Iterator[tuple[str, list[Part]]]:
    yield "What is compared", list(_what(of))
    for case in of.cases:
        yield f"Against the {case.attention} path", list(_case(case))
    yield "Beside what was published", list(_published(of))
    if of.llama:
        yield "The second model: Llama 3.2 in TransformerLens 2.7.0", list(_llama(of.llama))
    yield "The end", list(_end(of))


def _what(of: Measured) -> Iterator[Part]:
    s = of.size
    yield (
        f"A Gemma-2 with random weights: {s.layers} layers, width {s.width}, {s.heads} query and "
        f"{s.kv_heads} key/value heads of {s.head_width}, vocabulary {s.vocabulary}, window "
        f"{s.window}; the meaning is that of the release (query_pre_attn_scalar 256, cap 50 on the "
        f"scores and 30 on the logits). The prompt: {of.length} random tokens, in float32."
    )
    yield f"Reference: transformers ({HF}). Candidate: TransformerLens ({TL}), its own table."
    scores = next((x for c in of.cases if (x := _scores(c)) is not None), None)
    if scores is not None:
        yield (
            f"Scores of the first layer: standard deviation {scores.std:.2f}, from "
            f"{scores.low:.1f} to {scores.high:.1f}, after the cap."
        )


def _scores(case: Case) -> measure.Spread | None:
    declared = case.report.declared
    assert declared is not None
    return measure.scores_spread(declared.spec, case.reference)


def _case(case: Case) -> Iterator[Part]:
    yield from _named(case)
    yield _stages(case)
    if case.attention == "eager":
        changed, total = tried(case, "product", "einsum")
        yield (
            f"Einsum for matmul in the scores, which was advised, was tried too: replayed on the "
            f"reference's own queries and keys it changes bits in {changed} of {total} layers."
        )
    yield _logits(case)
    yield _growth(case)
    left = sum(f.status != "equal" for f in case.after.findings)
    sites = len(case.after.findings)
    yield (
        f"After the fix: {case.after.verdict}, {sites - left} of {sites} sites equal bit for bit, "
        f"largest difference {max(f.largest for f in case.after.findings):g}. Everything taken "
        f"back, the candidate gives {'the' if case.taken_back else 'OTHER'} bits that it was "
        "shipped with."
    )


def _named(case: Case) -> Iterator[Table]:
    report = case.report
    depth = words.depth(report)
    for title, causes in (
        ("Causes", report.causes),
        ("The reference differs from its own config", report.reference_edits),
    ):
        rows = tuple((c.parameter, words.layers(c.layers, depth), words.change(c), c.status) for c in causes)
        if rows:
            yield Table(title, ("parameter", "layers", "reference → candidate", "status"), rows)
    rows = tuple((o.site, o.parameter, words.layers(o.layers, depth), words.change(o)) for o in report.orders)
    if rows:
        title = "Orders: other bits, same meaning"
        yield Table(title, ("site", "order", "layers", "reference → candidate"), rows)


def _stages(case: Case) -> Table:
    columns = ("mended", "logits", "last residual", "unequal", "site")
    rows = tuple(
        (
            stage.title,
            _of_logits(stage.apart),
            _of_residual(stage.apart),
            f"{len(stage.apart.unequal)} of {stage.apart.sites}",
            stage.apart.first,
        )
        for stage in case.stages
    )
    title = "Stages in TransformerLens: differences max / mean; sites unequal, and the first of them"
    return Table(title, columns, rows)


def _pair(a: float, b: float) -> str:
    return f"{_two(a)} / {_two(b)}"


def _two(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _logits(case: Case) -> Table:
    rows: list[tuple[str, ...]] = []
    named = [("reference", case.reference), ("candidate as shipped", case.candidate)]
    named += [(f"candidate: {s.title}", s.recording) for s in case.stages[1:]]
    for title, recording in named:
        spread = measure.Spread.of(recording.sites["logits"])
        p = measure.predictions(case.reference, recording)
        figures = f"{spread.low:.4f} to {spread.high:.4f}"
        kl = f"{_two(abs(p.kl_mean))} / {_two(abs(p.kl_max))}"
        rows.append((title, f"{spread.mean:.4f}", f"{spread.std:.4f}", figures, f"{p.top1:.1%}", kl))
    columns = ("logits", "mean", "std", "range", "same top-1", "KL per token, mean / max (nats)")
    return Table("Logits and predictions", columns, tuple(rows))


def _growth(case: Case) -> Table:
    declared = case.report.declared
    assert declared is not None
    spec = declared.spec
    by_stage = [measure.growth(spec, case.reference, s.recording) for s in case.stages[:-1]]
    every = range(spec.shape.layers)
    some = every if len(every) <= 8 else [*every][:: max(1, len(every) // 6)]
    rows = tuple(
        (s.title, *(_two(shares[n]) for n in some)) for s, shares in zip(case.stages[:-1], by_stage, strict=True)
    )
    columns = ("mended", *(f"layer {n}" for n in some))
    title = "Growth by layer: difference of the residual stream as a share of its size"
    return Table(title, columns, rows)


def _at(case: Case, *titles: str) -> measure.Apart:
    """The first of these stages that the case has."""
    by_title = {stage.title: stage.apart for stage in case.stages}
    return next(by_title[title] for title in titles if title in by_title)


def _of_logits(apart: measure.Apart) -> str:
    return _pair(apart.logits_max, apart.logits_mean)


def _of_residual(apart: measure.Apart) -> str:
    return _pair(apart.residual_max, apart.residual_mean)


PUBLISHED = "https://github.com/TransformerLensOrg/TransformerLens/issues/693"


def _published(of: Measured) -> Iterator[Part]:
    yield (
        f"TransformerLens issue 693 ({PUBLISHED}) compared the real gemma-2-2b-it. Its figures are "
        "those of other weights and another prompt: their order of magnitude is what can be "
        "compared, not their digits."
    )
    columns = ("", "published", *(f"{case.attention}, max / mean" for case in of.cases))
    shipped = [case.stages[0].apart for case in of.cases]
    causes = [_at(case, CAP_OFF, SCALE_AND_LAYERS) for case in of.cases]
    norm = [_at(case, NORM) for case in of.cases]
    rows = (
        ("logits as shipped", "0.1159 (mean)", *map(_of_logits, shipped)),
        ("logits, all causes mended", "–", *map(_of_logits, causes)),
        ("logits, and its orders", "6.6757e-05", *map(_of_logits, norm)),
        ("last residual, and its orders", "about 5e-4", *map(_of_residual, norm)),
    )
    yield Table("Published and measured", columns, rows)
    yield (
        "The published range of the logits, -19.6916 to 16.0789, is not reproduced: it is a "
        "property of the released weights, which are gated and not part of this project. Random "
        "weights give logits of another range, said above."
    )


def _llama(found: list[Llama]) -> Iterator[Part]:
    yield (
        f"A Llama with the rotary settings of Llama-3.2-1B (base 500000; llama3 scaling by 32 "
        f"from 8192 positions, heads of 64), narrower and with random weights, in {SECOND_TL}, "
        "whose entry for that model has neither the base nor the scaling: it rotates with base 10000."
    )
    rows = tuple(
        (
            f"{at.length}",
            _two(at.tables),
            _of_logits(at.apart),
            f"{_two(at.scaling_tables)}; {_two(at.scaling_logits)}",
            "; ".join(f"{c.parameter} {words.change(c)}" for c in at.report.causes),
            f"{at.after.verdict}, {sum(f.status == 'equal' for f in at.after.findings)} of {len(at.after.findings)}",
        )
        for at in found
    )
    columns = ("tokens", "cos, sin", "logits", "scaling alone", "named", "after the fix")
    title = "Differences max / mean; of the missing scaling alone: cos and sin; logits (max)"
    yield Table(title, columns, rows)


def _end(of: Measured) -> Iterator[Part]:
    for case in of.cases:
        yield f"{case.attention}: {case.after.verdict}."
    for at in of.llama:
        yield f"Llama 3.2 at {at.length} tokens: {at.after.verdict}."
    told = {True: "not changed", False: "CHANGED"}
    yield (
        f"Files of the checkpoint: {told[of.checkpoint_unchanged]} (SHA-256 of all of them). "
        f"Files of both environments: {told[of.environments_unchanged]} (names, sizes, times)."
    )
