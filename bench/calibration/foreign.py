"""Clean pairs against implementations that we did not write, under the weights of our tiny models."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import twinlens
from bench.calibration.implementations import IMPLEMENTATIONS, reachable
from bench.calibration.implementations.row import Logits, Row
from bench.calibration.kept import DTYPES, SHAPES, is_clean, moved, told
from twinlens.museum.tiny import ALL
from twinlens.report.table import Table

UNMASKED = ("plain", "one row", "long", "three rows")
"""Most of them know no mask of padding."""


@dataclass(frozen=True)
class Foreign:
    """Which pair it is: `model` is a row of the implementation's table."""

    implementation: str
    model: str
    seed: int
    dtype: str
    shape: str

    @property
    def row(self) -> Row:
        """What is declared of the other side."""
        return IMPLEMENTATIONS[self.implementation][self.model]

    def run(self) -> dict[str, Any]:
        """What is said of it."""
        reachable()
        model: Any = ALL[self.row.family](self.seed, dtype=DTYPES[self.dtype], **self.row.config)
        tokens, _ = SHAPES[self.shape](model, self.seed)
        with torch.no_grad():
            other = self.row.build(model)
            if isinstance(other, Logits):
                other = twinlens.Recording.from_tensors({"logits": other.of(tokens)}, tokens=tokens)
        start = time.perf_counter()
        report = twinlens.compare(model, other, tokens=tokens)
        seen = {"sites": len(report.findings), "unmatched": len(report.unmatched)}
        return told(report) | seen | {"moved": moved(report), "seconds": round(time.perf_counter() - start, 2)}


def foreign(seeds: range) -> Iterator[Foreign]:
    """All of them, seed by seed."""
    for seed in seeds:
        for implementation, rows in IMPLEMENTATIONS.items():
            for name, row in rows.items():
                for dtype in row.dtypes:
                    for shape in UNMASKED:
                        yield Foreign(implementation, name, seed, dtype, shape)


def table(found: dict[Foreign, dict[str, Any]]) -> Table:
    """By implementation and dtype."""
    rows = list[tuple[str, ...]]()
    for implementation, models in IMPLEMENTATIONS.items():
        for dtype in ("float32", "bfloat16"):
            these = {p: s for p, s in found.items() if (p.implementation, p.dtype) == (implementation, dtype)}
            if not these:
                continue
            families = sorted({models[p.model].family for p in these})
            verdicts = Counter("wrong" if not is_clean(s) else s["verdict"] for s in these.values())
            counts = ", ".join(f"{n} {v}" for v, n in sorted(verdicts.items()))
            sites = sorted(s["sites"] for s in these.values())
            span = f"{sites[0]} to {sites[-1]}" if sites[0] < sites[-1] else f"{sites[0]}"
            rows.append((implementation, dtype, ", ".join(families), str(len(these)), counts, span))
    heads = ("implementation", "dtype", "families", "pairs", "verdicts", "sites compared")
    return Table("Clean pairs against implementations that we did not write", heads, tuple(rows))


def left_out() -> Iterator[str]:
    """Where a row says why it has no bfloat16."""
    for implementation, rows in IMPLEMENTATIONS.items():
        for why in dict.fromkeys(row.why for row in rows.values() if row.why):
            names = ", ".join(name for name, row in rows.items() if row.why == why)
            yield f"- {implementation}, {names}: float32 only: {why}"
