"""A lint for people, and as JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import Any

import twinlens
from twinlens.families.values import short
from twinlens.lint.result import Lint, Row
from twinlens.report import as_json
from twinlens.report.table import Table
from twinlens.report.terminal import WIDTH, table_text
from twinlens.report.words import counted, some

FORMAT = 1


def sentence(of: Lint) -> str:
    """The verdict as somebody would say it."""
    names, tried = [row.key for row in of.mattering], [row for row in of.rows if row.read != "not tried"]
    if names:
        are = "is" if len(names) == 1 else "are"
        return f"{len(names)} of {counted(len(tried), 'key')} {are} not in effect: {some(names)}."
    if of.besides:
        return "Every key that counts is in effect, and yet something else is computed than the config says."
    unread = [row for row in tried if row.read != "yes"]
    return f"Of {counted(len(tried), 'key')} every one that counts is in effect; {len(unread)} are not read."


def text(of: Lint) -> str:
    """The whole of it: the keys that matter first, each with its reason beneath."""
    lines = _wrapped(f"{of.verdict.upper()}  {sentence(of)}", "")
    lines += ["", *(f"  {name:<14}  {said}" for name, said in _facts(of))]
    for table in tables(of):
        lines += ["", table.title, table_text(table)]
        lines += [line for n, note in enumerate(table.notes, 1) for line in _wrapped(f"{n} {note}", "  ")]
    return "\n".join(lines)


def _wrapped(said: str, indent: str) -> list[str]:
    return textwrap.wrap(said, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _facts(of: Lint) -> list[tuple[str, str]]:
    return [
        ("checkpoint", of.checkpoint),
        ("implementation", of.implementation),
        ("prompt", counted(of.tokens, "token")),
        *(("besides", line) for line in of.besides),
        *([("not compared", of.uncompared)] if of.uncompared else []),
    ]


def tables(of: Lint) -> list[Table]:
    """Keys that matter, and the others; those that were not tried last, in short."""
    tried = [row for row in of.rows if not row.matters and row.read != "not tried"]
    untried = [row for row in of.rows if not row.matters and row.read == "not tried"]
    columns = ("key", "checkpoint says", "read", "effective")
    bad = of.mattering
    made = [
        Table("What matters", columns, tuple(_cells(row) for row in bad), tuple(row.why for row in bad)),
        Table("What does not", (*columns, "why"), tuple((*_cells(row), row.why) for row in tried)),
        Table(
            "What was not tried", ("key", "checkpoint says", "why"), tuple((r.key, _said(r), r.why) for r in untried)
        ),
    ]
    return [table for table in made if table.rows]


def _cells(row: Row) -> tuple[str, ...]:
    same = _said(row) if row.read == "yes" or "happens to fit" in row.why else "–"
    return (row.key, _said(row), row.read, same if row.effective is None else row.effective)


def _said(row: Row) -> str:
    value = short(row.says) if not isinstance(row.says, str) else row.says
    return {"None": "null", "True": "true", "False": "false"}.get(value, value)


def as_text(of: Lint) -> str:
    """One JSON object."""
    head: dict[str, Any] = {"twinlens": {"version": twinlens.__version__, "format": FORMAT}}
    told = {
        "checkpoint": of.checkpoint, "implementation": of.implementation, "verdict": of.verdict,
        "sentence": sentence(of), "tokens": of.tokens, "besides": of.besides, "uncompared": of.uncompared,
        "keys": [{**asdict(row), "says": _plain(row.says)} for row in of.rows],
    }  # fmt: skip
    return json.dumps(head | told, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """A value of a config, which came out of JSON; numbers that it does not know in words."""
    if isinstance(value, dict):
        return {str(name): _plain(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [_plain(inside) for inside in value]
    return as_json.plain(value)
