"""Pages of docs/ that a command makes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import transformers

from twinlens.report.table import Table


def page(title: str, command: str, said: str, tables: Iterable[Table], after: Sequence[str] = ()) -> str:
    """The text of a page: on what it was measured, then its tables."""
    parts = [f"# {title}", "", f"`{command}` prints these tables; this page is one run of it.", "", said, ""]
    for table in tables:
        parts += [f"## {table.title}", "", *rows(table.columns, table.rows), ""]
    return "\n".join([*parts, *after, *([""] if after else [])])


def rows(columns: Iterable[str], cells: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown."""
    return [row(heads := list(columns)), row("---" for _ in heads), *map(row, cells)]


def row(cells: Iterable[str]) -> str:
    """One line of it."""
    return f"| {' | '.join(cells)} |"


def conditions() -> str:
    """Versions and machine."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}; {os.cpu_count()} cores ({_processor()}), load {load} at the end"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
