"""A report for people, as plain text that fits 100 columns; colour only where a console asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from twinlens.parity.result import Result
from twinlens.report.rows import Page, page
from twinlens.report.table import Table

WIDTH = 100
UNBROKEN = ("exhibit", "family", "parameter", "site", "step", "status", "judged", "layer")
COLOURS = {"identical": "green", "rounding": "green", "different": "red"}


def text(report: Result) -> str:
    """The whole report without colours."""
    return _plain(_parts(page(report)))


def table_text(table: Table) -> str:
    """One table without its title."""
    return _plain([rendered(table)])


def _plain(parts: Iterable[RenderableType]) -> str:
    console = Console(width=WIDTH, file=(file := StringIO()), color_system=None)
    _print(parts, console)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def show(report: Result, console: Console) -> None:
    """Print it on a console, 100 columns wide."""
    _print(_parts(page(report)), console)


def _print(parts: Iterable[RenderableType], console: Console) -> None:
    for part in parts:
        console.print(part, highlight=False, markup=False, width=WIDTH)


def _parts(of: Page) -> Iterator[RenderableType]:
    verdict = Text(of.verdict.upper(), style=f"bold {COLOURS[of.verdict]}")
    yield verdict.append(f"  {of.sentence}", style="not bold default")
    yield Text()
    facts = RichTable.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, said in of.facts:
        facts.add_row(Text(name), Text(said))
    yield Padding(facts, (0, 0, 0, 2))
    for table in of.tables:
        yield Text()
        yield Text(table.title, style="bold")
        yield rendered(table)
        yield from _notes(table)


def rendered(table: Table) -> RichTable:
    """A table of rich."""
    made = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    numbered = table.numbered and bool(table.notes)
    for column in ("#", *table.columns) if numbered else table.columns:
        made.add_column(Text(column), overflow="fold", no_wrap=column in UNBROKEN)
    for n, row in enumerate(table.rows, 1):
        made.add_row(*(Text(cell) for cell in ((str(n), *row) if numbered else row)))
    return made


def _notes(table: Table) -> Iterator[RenderableType]:
    for n, note in enumerate(table.notes, 1):
        grid = RichTable.grid(padding=(0, 1))
        grid.add_row(Text(f"{n}" if table.numbered else ""), Text(note, style="dim"))
        yield grid
