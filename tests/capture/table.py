"""The alignment table: every candidate, and where its sites were placed. `python -m tests.capture.table`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.capture.faults import Candidate, build, planted
from twinlens import sites as names
from twinlens.capture import align, trace
from twinlens.capture.align import inputs_of
from twinlens.capture.recorder import probe
from twinlens.sites import split
from twinlens.spec import evaluate


@dataclass
class Row:
    name: str
    counts: Counter[str]
    wrong: list[str]
    missing: list[str]
    provisional: list[str]


def row(c: Candidate, mask: Tensor | None = None) -> Row:
    """Align a candidate and hold every placed site against the truth."""
    tokens, padding = probe(c.spec, mask)
    graph = trace(c.module, tokens, mask=padding)
    placement = align(graph, c.spec, c.weights.__getitem__)
    truth = evaluate(c.truth.steps, inputs_of(graph), c.truth_weights.__getitem__, keep=c.truth.sites)
    check_truth(c, graph[graph.logits], truth["logits"])
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    seen = dict(placement.reads(graph, c.spec.shape))
    evidence = placement.evidence(c.spec)
    for site in c.spec.sites:
        if site not in seen:
            counts[evidence[site]] += 1
        elif split(site)[1] in c.absent or not right(site, seen[site], truth[site], c.spec.dtype):
            wrong.append(site)
        else:
            counts["right"] += 1
    missing = [s for s, e in evidence.items() if e == "missing"]
    return Row(c.name, counts, wrong, missing, [s for s, e in evidence.items() if e == "provisional"])


def check_truth(c: Candidate, theirs: Tensor, ours: Tensor) -> None:
    off = float((theirs.float() - ours.float()).norm() / ours.float().norm())
    if off > (2e-3 if theirs.dtype == torch.float32 else 0.15):
        raise AssertionError(f"{c.name}: the truth's logits are {off:.2e} away; the table cannot judge by it")


def right(site: str, seen: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    """Whether a placed tensor is the site's: equal to the truth up to rounding that has grown over the layers."""
    if names.axes(site)[-1] == "r" and seen.shape[-1] != truth.shape[-1]:
        truth = truth[..., : seen.shape[-1]]
    if seen.shape != truth.shape:
        return False
    x, y = seen.float(), truth.float()
    if site.endswith("scores"):
        allowed = y > -1e30
        if not bool((x[~allowed] < -1e4).all()):
            return False
        x, y = x[allowed], y[allowed]
    close = 5e-3 if dtype == torch.float32 else 0.15
    return float((x - y).norm()) <= close * float(y.norm()) + 1e-6


def main() -> None:
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    total: Counter[str] = Counter()
    for fault in planted():
        if only not in fault.name:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            try:
                r = row(build(fault, dtype))
            except Exception as error:
                print("TRUTH", fault.name, dtype, type(error).__name__, str(error)[:300])
                continue
            total.update(r.counts)
            total["WRONG"] += len(r.wrong)
            flag = "  <<<<" if r.wrong else ""
            print(
                f"{fault.name:45} {str(dtype)[6:]:9} {dict(r.counts)} miss {r.missing[:3]} "
                f"prov {r.provisional[:3]} WRONG {r.wrong[:4]}{flag}"
            )
    print(total)


if __name__ == "__main__":
    main()
