"""The museum, whole: every exhibit at every level of visibility, in float32 and bfloat16: docs/museum.md.

What was found is kept in a file, so that an interrupted run goes on where it stopped; several processes share the work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bench import pages
from twinlens.errors import TwinlensError
from twinlens.museum import BESIDE, exhibits, named
from twinlens.museum.exhibit import Exhibit
from twinlens.museum.visit import LEVELS, compared, misses
from twinlens.report.table import Table
from twinlens.report.terminal import rendered

KEPT = Path("build/museum.jsonl")


@dataclass(frozen=True)
class Visit:
    """An exhibit at one level of visibility, in one dtype."""

    name: str
    level: str
    dtype: str

    def run(self) -> dict[str, Any]:
        """What is said of it, and whether that is right."""
        exhibit, start = named(self.name), time.perf_counter()
        said: dict[str, Any] = {"moves": moves(exhibit, self.dtype)}
        try:
            _, report = compared(exhibit, self.level, self.dtype)
        except TwinlensError as error:
            return said | {"misses": [f"refused: {error}"], "named": [], "seconds": time.perf_counter() - start}
        return said | {
            "verdict": report.verdict,
            "misses": misses(exhibit, report),
            "named": sorted({c.parameter for c in report.causes}),
            "causes": [f"{c.parameter} {c.reference} -> {c.candidate} at {c.site} {c.layers}" for c in report.causes],
            "gauges": len(report.gauges),
            "cost": [report.cost, report.diagnosis_cost],
            "seconds": round(time.perf_counter() - start, 2),
        }


def moves(exhibit: Exhibit, dtype: str) -> list[float]:
    """How far the fault moves the logits in float32, and how far the dtype alone does, as parts of their size."""
    if exhibit.calls is not None:
        return [1.0, 0.0]

    def logits(which: str, faulty: bool) -> Tensor:
        model = exhibit.reference(which)
        tokens, mask = exhibit.inputs(model)
        run = exhibit.candidate(model) if faulty else model
        given = {} if mask is None else {"attention_mask": mask}
        with torch.no_grad():
            return run(tokens, **given).logits.double()[(torch.ones_like(tokens) if mask is None else mask).bool()]

    plain = logits("float32", False)
    fine = "float32" if "float32" in exhibit.dtypes else dtype
    fault = (logits(fine, True) - (plain if fine == "float32" else logits(fine, False))).norm() / plain.norm()
    floor = 0.0 if dtype == "float32" else float((logits(dtype, False) - plain).norm() / plain.norm())
    return [float(fault), floor]


def visits(levels: Iterable[str], dtypes: Iterable[str], wing: str | None) -> Iterator[Visit]:
    """All that is to be run."""
    for level in levels:
        for dtype in dtypes:
            for exhibit in exhibits():
                if exhibit.calls is not None and level != "all":
                    continue  # what a call left cannot be known without its keys and values
                if dtype in exhibit.dtypes and level not in exhibit.hidden and wing in (None, exhibit.wing):
                    yield Visit(exhibit.name, level, dtype)


def several(size: int, count: int, seed: int) -> Iterator[Visit]:
    """Faults that are planted in one model together, drawn at random; each still has an effect beside the others."""
    draw = random.Random(seed)
    faults = [e for e in exhibits() if not e.benign and e.calls is None and "float32" in e.dtypes]
    found = set[str]()
    while len(found) < count:
        first = draw.choice(faults)
        others = [e for e in faults if e.goes_with(first)]
        some = draw.sample(others, size) if len(others) >= size else []
        names = sorted(e.name for e in some)
        parameters = {w.parameter for e in some for w in e.causes}
        if some and len(parameters) == sum(len(e.causes) for e in some) and BESIDE.join(names) not in found:
            if _all_act(names):
                found.add(BESIDE.join(names))
                yield Visit(BESIDE.join(names), "all", "float32")


def _all_act(names: list[str]) -> bool:
    """Whether all can be planted, and none undoes another, as two plants of one function would."""
    try:
        runs = [moves(named(BESIDE.join(n for n in names if n != left)), "float32")[0] for left in names]
        whole = moves(named(BESIDE.join(names)), "float32")[0]
    except Exception:  # the border: a plant may raise anything in a model that another has changed
        return False
    return all(abs(run - whole) > 1e-6 * whole for run in runs)


def _run(visit: Visit) -> tuple[Visit, dict[str, Any]]:
    torch.set_num_threads(1)
    try:
        return visit, visit.run()
    except Exception as error:  # a crash is a finding, not the end of the others
        crashed = f"crashed: {type(error).__name__}: {error}"
        return visit, {"misses": [crashed], "named": [], "seconds": 0.0, "moves": [1.0, 0.0]}


@cache
def kept() -> dict[Visit, dict[str, Any]]:
    """What was said before."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    return {Visit(**row["of"]): row["said"] for row in map(json.loads, lines)}


def measured(wanted: list[Visit], workers: int) -> dict[Visit, dict[str, Any]]:
    """What is said of each visit, from the file where it was said before."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    known = dict(kept())
    todo = [v for v in wanted if v not in known]
    with KEPT.open("a", encoding="utf-8") as file, multiprocessing.get_context("spawn").Pool(workers) as pool:
        for visit, said in track(pool.imap_unordered(_run, todo), "museum", total=len(todo), transient=True):
            known[visit] = said
            print(json.dumps({"of": asdict(visit), "said": said}), file=file, flush=True)
    return {v: known[v] for v in wanted}


def is_above(said: dict[str, Any]) -> bool:
    """Whether the fault is larger than what the dtype alone does."""
    fault, floor = said["moves"]
    return fault > floor


def summary(found: dict[Visit, dict[str, Any]]) -> Table:
    """How many are named rightly with nothing else accused, by level and dtype."""
    faults = {e.name for e in exhibits() if not e.benign}
    rows = list[tuple[str, ...]]()
    for level in LEVELS:
        for dtype in ("float32", "bfloat16"):
            these = {v: s for v, s in found.items() if (v.level, v.dtype) == (level, dtype)}
            wrong = [s for v, s in these.items() if v.name in faults and is_above(s)]
            right = [s for s in wrong if not s["misses"]]
            benign = [s for v, s in these.items() if v.name not in faults]
            if these:
                cost = [s["cost"][1] for v, s in these.items() if v.name in faults and "cost" in s]
                rows.append((
                    level, dtype, f"{len(right)} of {len(wrong)}", f"{100 * len(right) / max(len(wrong), 1):.0f} %",
                    f"{sum(bool(s['named']) or s.get('verdict') == 'different' for s in benign)} of {len(benign)}",
                    f"{sorted(cost)[len(cost) // 2]:.1f}, {max(cost):.0f}" if cost else "",
                ))  # fmt: skip
    heads = ("seen", "dtype", "named, with value and layers, nothing else", "", "benign accused", "cost: median, most")
    return Table("What is named", heads, tuple(rows))


def together(groups: dict[int, list[dict[str, Any]]]) -> Table:
    """Faults that are drawn at random and planted together: all named and nothing else, or all but one."""
    rows = list[tuple[str, ...]]()
    for size, said in groups.items():
        unnamed = [sum(m.startswith("not named") for m in s["misses"]) for s in said]
        right = sum(not s["misses"] for s in said)
        rows.append((f"{size}", f"{right} of {len(said)}", f"{sum(n == 0 for n in unnamed)}", f"{sum(unnamed)}"))
    heads = ("faults", "named, nothing else", "all named", "not named, of all")
    return Table("Several at once, all sites, float32", heads, tuple(rows))


def confusion(found: dict[Visit, dict[str, Any]], level: str) -> Table:
    """What was planted against what was named."""
    planted = {e.name: e.causes for e in exhibits()}
    counts = Counter[tuple[str, str]]()
    for visit, said in found.items():
        if (visit.level, visit.dtype) != (level, "float32"):
            continue
        wanted = sorted({w.parameter if isinstance(w.parameter, str) else w.parameter[0] for w in planted[visit.name]})
        for one in wanted or ["nothing"]:
            for other in said["named"] or ["nothing"]:
                counts[one, other] += 1
    by = dict[str, list[str]]()
    for (one, other), n in counts.most_common():
        by.setdefault(one, []).append(f"{other} {n}")
    rows = tuple((one, ", ".join(others)) for one, others in sorted(by.items()))
    return Table(f"Planted and named, {level}, float32", ("planted", "named"), rows)


def each(found: dict[Visit, dict[str, Any]]) -> Table:
    """Every exhibit, and where it is named."""

    def mark(name: str, level: str, dtype: str) -> str:
        said = found.get(Visit(name, level, dtype))
        return "" if said is None else "yes" if not said["misses"] else "no" if is_above(said) else "below"

    rows = tuple(
        (e.name, e.family, "benign" if e.benign else ", ".join(
            w.parameter if isinstance(w.parameter, str) else w.parameter[0] for w in e.causes
        ), *(mark(e.name, level, dtype) for dtype in ("float32", "bfloat16") for level in LEVELS))
        for e in exhibits()
    )  # fmt: skip
    heads = ("exhibit", "family", "parameter", *(f"{level}" for level in LEVELS), *(f"{x}, bf16" for x in LEVELS))
    return Table("Every exhibit", heads, rows)


def left(found: dict[Visit, dict[str, Any]]) -> list[str]:
    """What is not named, and what was said instead."""
    return [
        f"- {v.name}, {v.level}, {v.dtype}: {'; '.join(said['misses'])[:240]}"
        for v, said in found.items()
        if said["misses"] and is_above(said)
    ]


def main() -> int:
    """Run what is not known yet, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", nargs="*", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--wing", help="only this one")
    parser.add_argument("--several", type=int, default=40, help="pairs, and triples, of faults in one model")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kept", action="store_true", help="of what earlier runs have kept, and run nothing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page")
    asked = parser.parse_args()
    wanted = list(visits(asked.levels, asked.dtypes, asked.wing))
    wanted = [v for v in wanted if v in kept()] if asked.kept else wanted
    groups = {size: list(several(size, asked.several, seed=size)) for size in (2, 3)} if asked.several else {}
    everything = measured([*wanted, *(v for group in groups.values() for v in group)], asked.workers)
    found = {v: everything[v] for v in wanted}
    shown = [
        summary(found),
        *([together({n: [everything[v] for v in group] for n, group in groups.items()})] if groups else []),
        *(confusion(found, level) for level in asked.levels),
        each(found),
    ]
    console = Console(highlight=False, width=140)
    for table in shown[:-1]:
        console.print(rendered(table))
    rest = left(found)
    console.print(*rest, sep="\n", markup=False)
    if asked.write:
        count = len(list(exhibits()))
        seen = dict.fromkeys(f"{v.level} in {v.dtype}" for v in wanted)
        what = f"seen: {', '.join(seen)}"
        said = (
            f"{count} exhibits; {what}; {pages.conditions()}. Cost is in forward-equivalents of the diagnosis. Below "
            "the floor, and not counted, is a fault that moves logits by less than the dtype alone does. Exhibits of "
            "several calls are run with all sites: what a call left cannot be known without its keys and values."
        )
        after = ["Not named, with the faults that are larger than what the dtype alone does:", "", *rest]
        asked.write.write_text(pages.page("Museum", "make museum", said, shown, after), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
