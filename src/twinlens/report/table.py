"""A table before anybody prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table, with a note for each row beneath it.

    Attributes:
        title: what it is.
        columns: their heads.
        rows: text, one for each column.
        notes: too long for a column; the n-th belongs to the n-th row where they are numbered.
        numbered: whether notes belong to rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    numbered: bool = True
