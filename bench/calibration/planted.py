"""Planted faults: each number of a family's declaration, in all layers, off by 1e-7 to 10 % of its value.

One counts as a fault where it moves the logits, computed in float64, by more than 99.9 % of the clean pairs of its
dtype do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import twinlens
from bench.calibration.clean import Pair
from bench.calibration.kept import DTYPES, told
from twinlens.fields import kind_of, kinds
from twinlens.inputs import prepare
from twinlens.museum.tiny import ALL, random_tokens
from twinlens.report.table import Table
from twinlens.spec import evaluate, exact


@dataclass(frozen=True)
class Planted:
    """A number of a declaration that is off in every step that has it alike."""

    family: str
    seed: int
    dtype: str
    op: str
    field: str
    value: float
    off: float
    """Relative to its value."""

    def run(self) -> dict[str, Any]:
        """What is said of it, and what it does to the logits in float64."""
        model: Any = ALL[self.family](self.seed, dtype=DTYPES[self.dtype])
        native = twinlens.load(model)
        faulty, sites = self.planted(native)
        tokens = random_tokens(model, 2, 40, self.seed)
        start = time.perf_counter()
        report = twinlens.compare(native, faulty, tokens=tokens)
        parameter = kind_of(native.spec.at[sites[0]].op, self.field).parameter
        close = 0.5 * abs(self.off * self.value)
        named = [
            c for c in report.causes
            if c.parameter == parameter and isinstance(c.candidate, float)
            and abs(c.candidate - self.value * (1 + self.off)) <= close
        ]  # fmt: skip
        return told(report) | {
            "parameter": parameter,
            "named": len(named) > 0,
            "others": len(report.causes) - len(named),
            "moves": effect(native, faulty, tokens),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def planted(self, native: twinlens.Model) -> tuple[twinlens.Model, list[str]]:
        """The model with the fault, and the sites of the steps that have it."""
        sites = [
            s.writes for s in native.spec.steps
            if type(s.op).__name__ == self.op and getattr(s.op, self.field) == self.value
        ]  # fmt: skip
        spec = native.spec.set_fields(sites, self.field, self.value * (1 + self.off))
        return twinlens.Model(spec, native.weight), sites


def effect(one: twinlens.Model, other: twinlens.Model, tokens: Tensor) -> float:
    """How far the logits of two models are apart in float64, as a part of their size."""
    x, y = (
        evaluate(exact(m.spec.steps), prepare(m.spec, tokens), lambda n, m=m: m.weight(n).double(), keep=["logits"])[
            "logits"
        ]
        for m in (one, other)
    )
    return float((x - y).norm() / x.norm())


OFF = tuple(10.0**-k for k in range(7, 0, -1))


def faults(seeds: range) -> Iterator[Planted]:
    """Each number field of each family, once for all steps that have the same value."""
    for seed in seeds:
        for family in ALL:
            native = twinlens.load(model := ALL[family](seed))
            found = {
                (type(s.op).__name__, name, float(value))
                for s in native.spec.steps
                for name, kind, value in kinds(s.op)
                if kind.name == "number" and not kind.read and value not in (None, 0.0)
            }
            for op, name, value in sorted(found):
                much = Planted(family, seed, "float32", op, name, value, 0.1)
                if effect(native, much.planted(native)[0], random_tokens(model, 2, 40, seed)) == 0.0:
                    continue  # a number of a scaling that is off
                for dtype in ("float32", "bfloat16"):
                    yield from (replace(much, dtype=dtype, off=off) for off in OFF)


def curves(found: dict[Planted, dict[str, Any]], clean: dict[Pair, dict[str, Any]]) -> Iterator[Table]:
    """By dtype: how many faults of each size count as one, are seen, are named rightly; the smallest of each number."""
    for dtype in ("float32", "bfloat16"):
        moved = sorted(said["moved"] for pair, said in clean.items() if pair.dtype == dtype)
        most = moved[int(0.999 * (len(moved) - 1))]
        rows = list[tuple[str, ...]]()
        for off in OFF:
            these = [s for p, s in found.items() if (p.dtype, p.off) == (dtype, off)]
            counts = [s for s in these if s["moves"] > most]
            seen = [s for s in counts if s["verdict"] == "different"]
            named = [s for s in seen if s["named"] and not s["others"]]
            false = [s for s in these if s["causes"] and (not s["named"] or s["others"])]
            rows.append((f"{off:.0e}", *(str(len(x)) for x in (these, counts, seen, named, false))))
        heads = ("off by", "planted", "count", "of these seen", "named, nothing else", "another name, of all")
        yield Table(f"Faults in {dtype}; one counts that moves the logits by more than {most:.1e}", heads, tuple(rows))
        title = f"Named, the change right to its half, {dtype}"
        yield by(found, dtype, f"{title}, by parameter", "parameter", lambda p, s: s["parameter"])
        yield by(found, dtype, f"{title}, by family", "family", lambda p, s: p.family)


def by(
    found: dict[Planted, dict[str, Any]], dtype: str, title: str, head: str,
    kind: Callable[[Planted, dict[str, Any]], str],
) -> Table:  # fmt: skip
    """Of each kind how many faults of each size were named; and the smallest size of which one was."""
    rows = list[tuple[str, ...]]()
    for one in sorted({kind(p, s) for p, s in found.items()}):
        of = [(p, s) for p, s in found.items() if p.dtype == dtype and kind(p, s) == one]
        sizes = [[bool(s["named"]) for p, s in of if p.off == off] for off in OFF]
        least = next((f"{off:.0e}" for off, these in zip(OFF, sizes, strict=True) if any(these)), "none")
        rows.append((one, *(f"{sum(these)} of {len(these)}" for these in sizes), least))
    return Table(title, (head, *(f"{off:.0e}" for off in OFF), "smallest"), tuple(rows))
