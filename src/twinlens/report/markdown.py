"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from twinlens.parity.result import Result
from twinlens.report.rows import page
from twinlens.report.table import Table


def text(report: Result) -> str:
    """The sentence, the facts as a list, the tables."""
    of = page(report)
    lines = [f"# {of.verdict}", "", of.sentence, ""]
    lines += [f"- **{name}**: {_escaped(said)}" for name, said in of.facts]
    for table in of.tables:
        lines += ["", f"## {table.title}", "", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> Iterator[str]:
    with_rows = table.numbered and bool(table.notes)
    yield _row((*table.columns, "evidence") if with_rows else table.columns)
    yield _row(("---",) * (len(table.columns) + with_rows))
    for n, row in enumerate(table.rows):
        yield _row((*row, table.notes[n]) if with_rows else row)
    if table.notes and not with_rows:
        yield ""
        yield from (_escaped(note) for note in table.notes)


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(said: str) -> str:
    """A bar would end the cell, an angle bracket begin HTML, a star emphasis."""
    for sign in ("\\", "|", "*", "_", "<"):
        said = said.replace(sign, f"\\{sign}")
    return " ".join(said.split())
