"""How often the verdict is wrong, and how small a fault it sees: docs/calibration.md.

Clean pairs: a tiny model of one family against itself with one part computed in another way: another attention
kernel, products in two parts or in float64, norms by division, softmax by exp and sum, all of them together; in
float32, bfloat16 and float16; plain, left-padded, one row, and long. Nothing of them may be called different.

Planted faults: each number of a family's declaration, in all layers, off by 1e-7 to 10 % of its value. One counts as a
fault where it moves the logits, computed in float64, by more than 99.9 % of the clean pairs of its dtype do.

What was done is kept in a file, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import twinlens
from bench import pages
from tests.parity.faults import during
from tests.tiny import ALL, EAGER_ONLY, left_padded, random_tokens
from twinlens.fields import kind_of, kinds
from twinlens.inputs import prepare
from twinlens.report.table import Table
from twinlens.report.terminal import rendered
from twinlens.spec import evaluate, exact

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEPT = Path("build/calibration")

_matmul = torch.matmul


def _halves(x: Tensor, y: Tensor) -> Tensor:
    """A product as the sum of two."""
    half = x.shape[-1] // 2
    if half == 0 or y.ndim < 2:
        return _matmul(x, y)
    return _matmul(x[..., :half], y[..., :half, :]) + _matmul(x[..., half:], y[..., half:, :])


def products(dot: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], None]:
    """Every product with a weight by another function of x and Wᵀ."""

    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        y = dot(x, self.weight.mT)
        return y if self.bias is None else y + self.bias

    def conv(self: Any, x: Tensor) -> Tensor:
        return dot(x, self.weight) + self.bias

    def change(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.forward = MethodType(linear, module)
            elif isinstance(module, Conv1D):
                module.forward = MethodType(conv, module)

    return change


def _softmax(x: Tensor, dim: int = -1, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """In float32 inside, as torch's is: in half precision scores of tens are off by parts of 1: no rounding."""
    wide = x.float()
    e = (wide - wide.amax(dim, keepdim=True)).exp()
    return (e / e.sum(dim, keepdim=True)).to(dtype or x.dtype)


def _all(model: Any) -> None:
    for change in (WAYS["products in two parts"], WAYS["norms by division"], WAYS["softmax by exp and sum"]):
        change(model)


WAYS: dict[str, Callable[[Any], None]] = {
    "sdpa": lambda model: model.set_attn_implementation("sdpa"),
    "products in two parts": products(_halves),
    "products in float64": products(lambda x, w: _matmul(x.double(), w.double()).to(x.dtype)),
    "attention in two parts": lambda model: during(model, torch, matmul=_halves),
    "norms by division": lambda model: during(model, torch, rsqrt=lambda x: 1.0 / x.sqrt()),
    "softmax by exp and sum": lambda model: during(model, F, softmax=_softmax),
    "all of these": _all,
}
SHAPES: dict[str, Callable[[Any, int], tuple[Tensor, Tensor | None]]] = {
    "plain": lambda m, seed: (random_tokens(m, 2, 40, seed), None),
    "padded": lambda m, seed: left_padded(m, (40, 17), seed),
    "one row": lambda m, seed: (random_tokens(m, 1, 23, seed), None),
    "long": lambda m, seed: (random_tokens(m, 1, 120, seed), None),
}


@dataclass(frozen=True)
class Pair:
    """Which pair it is."""

    family: str
    seed: int
    dtype: str
    way: str
    shape: str

    def run(self) -> dict[str, Any]:
        """What is said of it."""
        model: Any = ALL[self.family](self.seed, dtype=DTYPES[self.dtype])
        other = copy.deepcopy(model)
        WAYS[self.way](other)
        tokens, mask = SHAPES[self.shape](model, self.seed)
        start = time.perf_counter()
        report = twinlens.compare(model, other, tokens=tokens, mask=mask)
        return told(report) | {"moved": moved(report), "seconds": round(time.perf_counter() - start, 2)}


def told(report: twinlens.Report) -> dict[str, Any]:
    """What a report says, as JSON."""
    return {
        "verdict": report.verdict,
        "causes": [f"{c.parameter} at {c.site}: {c.reference} → {c.candidate}" for c in report.causes],
        "unexplained": [f"{u.site} ({u.ratio.wide:.3g}, {u.ratio.tight:.3g})" for u in report.unexplained],
    }


def moved(report: twinlens.Report) -> float:
    """How far the logits are apart, as a part of their size."""
    last = report.findings[-1]
    return last.total / last.size if last.size else 0.0


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


def pairs(seeds: range) -> Iterator[Pair]:
    """All of them, seed by seed."""
    for seed in seeds:
        for family in ALL:
            for dtype in DTYPES:
                for number, way in enumerate(WAYS):
                    if way == "sdpa" and family in EAGER_ONLY:
                        continue
                    shape = list(SHAPES)[(seed + number + len(dtype)) % len(SHAPES)]  # each way sees each in turn
                    yield Pair(family, seed, dtype, way, shape)


def measured(wanted: list[Any], kept: Path) -> dict[Any, dict[str, Any]]:
    """What is said of each, from the file where it was said before."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {type(wanted[0])(**row["of"]): row["said"] for row in map(json.loads, lines)}
    with kept.open("a", encoding="utf-8") as file:
        for pair in track([p for p in wanted if p not in known], kept.stem, transient=True):
            known[pair] = pair.run()
            print(json.dumps({"of": asdict(pair), "said": known[pair]}), file=file, flush=True)
    return {pair: known[pair] for pair in wanted}


def is_clean(said: dict[str, Any]) -> bool:
    """Nothing different, nothing accused."""
    return said["verdict"] != "different" and not said["causes"]


def table(found: dict[Pair, dict[str, Any]]) -> Table:
    """By the part that is computed in another way, and dtype."""
    rows = list[tuple[str, ...]]()
    for way in WAYS:
        cells = [way]
        for dtype in DTYPES:
            these = [said for pair, said in found.items() if (pair.way, pair.dtype) == (way, dtype)]
            verdicts = Counter("wrong" if not is_clean(s) else s["verdict"] for s in these)
            cells.append(", ".join(f"{n} {v}" for v, n in sorted(verdicts.items())))
        rows.append(tuple(cells))
    return Table("Clean pairs", ("computed in another way", *DTYPES), tuple(rows))


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
        yield smallest(found, dtype)


def smallest(found: dict[Planted, dict[str, Any]], dtype: str) -> Table:
    """For each parameter how many of its numbers were seen at which size."""
    rows = list[tuple[str, ...]]()
    for parameter in sorted({s["parameter"] for s in found.values()}):
        cells = [parameter]
        for off in OFF:
            these = [s for p, s in found.items() if (p.dtype, p.off, s["parameter"]) == (dtype, off, parameter)]
            cells.append(f"{sum(s['named'] for s in these)} of {len(these)}")
        rows.append(tuple(cells))
    heads = ("parameter", *(f"{off:.0e}" for off in OFF))
    return Table(f"Named, the change right to its half, {dtype}", heads, tuple(rows))


def main() -> int:
    """Compare, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(200, 203), metavar=("FIRST", "END"))
    parser.add_argument("--planted", type=int, nargs=2, default=(300, 301), metavar=("FIRST", "END"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables as Markdown")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    clean = measured(list(pairs(range(*asked.seeds))), KEPT / "clean.jsonl")
    planted = measured(list(faults(range(*asked.planted))), KEPT / "planted.jsonl")
    wrong = [
        f"- {pair.family}, seed {pair.seed}, {pair.dtype}, {pair.way}, {pair.shape}: "
        f"{said['verdict']}, {said['causes']}, {said['unexplained']}"
        for pair, said in clean.items()
        if not is_clean(said)
    ]
    shown = [table(clean), *curves(planted, clean)]
    console = Console(highlight=False, width=120)
    for each in shown:
        console.print(rendered(each))
    said = (
        f"{len(clean)} clean pairs of seeds {asked.seeds[0]} to {asked.seeds[1] - 1}, {len(wrong)} wrong; "
        f"{len(planted)} faults of seeds {asked.planted[0]} to {asked.planted[1] - 1}; {pages.conditions()}. The "
        "constants of rounding are those of [another page](rounding.md), from gpt2, llama and gemma2 with other seeds, "
        "frozen before. The second side of a clean pair is transformers' own code with a part written otherwise, "
        "that of a fault the native model; nobody else's are among them yet."
    )
    console.print(said, *wrong, sep="\n", markup=False)
    if asked.write:
        asked.write.write_text(pages.page("Calibration", "make calibrate", said, shown, wrong), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
