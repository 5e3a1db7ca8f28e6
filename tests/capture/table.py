"""The alignment table: every candidate, and where its sites were placed.

`python -m tests.capture.table [part of a name]` prints it; without a name it writes docs/alignment.md.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.capture.faults import Candidate, build, planted
from tests.capture.ports import ports
from twinlens import sites as names
from twinlens.capture import Graph, Placement, align, trace
from twinlens.capture.recorder import probe
from twinlens.inputs import given
from twinlens.sites import split
from twinlens.spec import Spec, evaluate

DOCS = Path(__file__).parents[2] / "docs"
EVIDENCE = ("weight+replay", "weight", "replay", "provisional", "hidden", "missing")


@dataclass
class Row:
    """One candidate: how many sites by evidence, and those that were placed wrongly."""

    name: str
    dtype: str
    evidence: dict[str, str]
    wrong: list[str]

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.evidence.values())

    @property
    def placed(self) -> int:
        return len(self.evidence) - self.counts["hidden"] - self.counts["missing"]

    def with_evidence(self, kind: str) -> list[str]:
        return [site for site, e in self.evidence.items() if e == kind]


def row(c: Candidate) -> Row:
    """Align a candidate and hold every placed site against the truth."""
    tokens, _ = probe(c.spec, None)
    graph = trace(c.module, tokens)
    placement = align(graph, c.spec, c.weights.__getitem__)
    truth = evaluate(c.truth.steps, given(graph.tokens, graph.mask), c.truth_weights.__getitem__, keep=c.truth.sites)
    check_truth(c, graph[graph.logits], truth["logits"])
    return judged(c.name, graph, placement, c.spec, truth, c.absent)


def judged(
    name: str,
    graph: Graph,
    placement: Placement,
    spec: Spec,
    truth: dict[str, Tensor],
    absent: frozenset[str] = frozenset(),
) -> Row:
    wrong = [
        site
        for site, seen in placement.reads(graph, spec.shape)
        if site not in truth or split(site)[1] in absent or not right(site, seen, truth[site], spec.dtype)
    ]
    return Row(name, str(spec.dtype).removeprefix("torch."), placement.evidence(spec), wrong)


def check_truth(c: Candidate, theirs: Tensor, ours: Tensor) -> None:
    off = float((theirs.float() - ours.float()).norm() / ours.float().norm())
    if off > (2e-3 if theirs.dtype == torch.float32 else 0.15):
        raise AssertionError(f"{c.name}: the truth's logits are {off:.2e} away; it cannot judge")


def right(site: str, seen: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    """Whether a placed tensor is the site's: the truth, up to rounding that grew over the layers."""
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


def port_row(name: str, module: torch.nn.Module, spec: Spec, weights: dict[str, Tensor]) -> Row:
    """A port that notes its own tensors under our names as it runs."""
    tokens, _ = probe(spec, None)
    graph = trace(module, tokens)
    placement = align(graph, spec, weights.__getitem__)
    seen = dict(placement.reads(graph, spec.shape))
    truth = {
        site: value.reshape(seen[site].shape) if value.numel() == seen[site].numel() else value
        for site, value in module.truth.items()
        if site in seen
    }
    return judged(name, graph, placement, spec, truth)


def rows(only: str = "") -> Iterator[Row]:
    for fault in planted():
        if only in fault.name:
            for dtype in (torch.float32, torch.bfloat16):
                yield row(build(fault, dtype))
    for name, module, spec, weights in ports():
        if only in name:
            yield port_row(name, module, spec, weights)


def line(r: Row) -> str:
    counts = " | ".join(str(r.counts[kind]) for kind in EVIDENCE)
    return f"| {r.name} | {r.dtype} | {r.placed} of {len(r.evidence)} | {counts} | {len(r.wrong)} |"


HEAD = """# Where sites are found

A candidate is any torch module; nothing of it is known beforehand. `tests/capture/table.py` writes this page.
Each placed tensor is held against what the site truly is: for a planted fault the declaration with the same
fault, whose logits must agree first; for a port what it notes itself; for TransformerLens its own hooks.
A site that no tensor holds (inside a kernel, or left out by the fault) is *hidden* or *missing*, never wrong.

"""
COLUMNS = f"| candidate | dtype | placed | {' | '.join(EVIDENCE)} | wrong |\n|{'---|' * 10}\n"


def page(found: list[Row], foreign: list[str]) -> str:
    wrong, places = sum(len(r.wrong) for r in found), sum(r.placed for r in found)
    total = f"**{len(found)} candidates, {places} sites placed, {wrong} wrong.**\n\n"
    text = HEAD + total + COLUMNS + "\n".join(map(line, found)) + "\n"
    if foreign:
        text += "\n## Other implementations, each in its own environment\n\n"
        text += "`tests/capture/foreign.py` printed these.\n\n" + COLUMNS + "\n".join(foreign) + "\n"
    return text


def main() -> None:
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    found: list[Row] = []
    for r in rows(only):
        found.append(r)
        print(line(r), *r.wrong[:4], flush=True)
    print(f"{sum(len(r.wrong) for r in found)} wrong")
    if not only:
        kept = Path(__file__).with_name("foreign.json")
        foreign = json.loads(kept.read_text()) if kept.exists() else []
        (DOCS / "alignment.md").write_text(page(found, foreign))


if __name__ == "__main__":
    main()
