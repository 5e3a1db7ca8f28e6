"""Calibrates the constants of twinlens.parity.rounding on pairs of honest implementations.

Half of the pairs are transformers' own code: its eager kernel against its sdpa kernel, or with parts of its modules
computed in another way. The other half are ports by hand. Each step is judged as `compare` judges it, on what the
candidate itself gave it: the ratios below are those against which WIDE and TIGHT are held. Then the constants are
tried on pairs of other seeds, in which nothing may be called different and nothing accused.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import twinlens
from bench import pages
from bench.ports import ROOTS, SERIAL, SOFTMAXES, Port, Ways
from twinlens.museum.hands import attention, modeling, norms
from twinlens.museum.tiny import FAMILIES, random_tokens
from twinlens.parity.judge import Judge
from twinlens.parity.merged import merge
from twinlens.parity.rounding import TIGHT, WIDE, Ratio, equal
from twinlens.parity.score import Scorer
from twinlens.recording import Recording
from twinlens.sites import generic, split

DTYPES = (torch.float32, torch.bfloat16)
CALIBRATED, HELD_OUT, QUICK = 7, 4, 2
LENGTH = 40


@dataclass(frozen=True)
class Pair:
    """A reference and an honest candidate: another setting of it, or a recording of a port."""

    family: str
    dtype: torch.dtype
    seed: int
    kind: str
    reference: Any
    candidate: Any
    tokens: Tensor
    said: str

    @property
    def name(self) -> str:
        """Which it is."""
        return f"{self.family}, {str(self.dtype).removeprefix('torch.')}, seed {self.seed}, {self.kind}"


def pairs(seeds: Iterable[int]) -> Iterator[Pair]:
    """For each seed, family and dtype: changed transformers code, a port by hand, and the other kernel."""
    for seed in seeds:
        for family, build in FAMILIES.items():
            for dtype in DTYPES:
                model: Any = build(seed, dtype=dtype)
                tokens = random_tokens(model, length=LENGTH, seed=seed)
                ways = Ways.number(seed, dtype)
                head = (family, dtype, seed)
                yield Pair(*head, "changed", model, changed(model, ways), tokens, f"{ways}")
                ways = Ways.number(seed + 3, dtype)
                port = Port(model.config, dict(model.state_dict()), ways)(tokens)
                yield Pair(*head, "port", model, Recording.from_tensors(port, tokens), tokens, f"{ways}")
                if family != "gemma2":  # transformers refuses sdpa for it
                    yield Pair(*head, "sdpa", model, build(seed, dtype=dtype, attn="sdpa"), tokens, "sdpa")


def changed(model: Any, ways: Ways) -> Any:
    """A copy of a transformers model, its products, norms and attention computed in other ways."""
    # An inner axis that is turned round within the call is another layout: for the ports, which name their sites.
    product = "two parts" if ways.product == "from the end" else ways.product
    made, dot, kind = copy.deepcopy(model), SERIAL[product], model.config.model_type

    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        y = dot(x, self.weight)
        return y if self.bias is None else y + self.bias

    def conv(self: Any, x: Tensor) -> Tensor:
        return dot(x, self.weight.T) + self.bias

    def norm(self: Any, x: Tensor) -> Tensor:
        wide, eps = x.float(), float(getattr(self, "variance_epsilon", getattr(self, "eps", 0.0)))
        if kind == "gpt2":
            wide = wide - wide.mean(-1, keepdim=True)
        n = ROOTS[ways.root](wide, wide.pow(2).mean(-1, keepdim=True) + eps)
        if kind == "llama":
            return self.weight * n.to(x.dtype)
        if kind == "gemma2":
            return (n * (1.0 + self.weight.float())).to(x.dtype)
        return (n * self.weight.float() + self.bias.float()).to(x.dtype)

    for module in made.modules():
        if isinstance(module, nn.Linear):
            module.forward = MethodType(linear, module)
        elif isinstance(module, Conv1D):
            module.forward = MethodType(conv, module)
    for module in norms(made) + [m for m in made.modules() if isinstance(m, nn.LayerNorm)]:
        module.forward = MethodType(norm, module)

    def score(q: Tensor, k: Tensor, c: float) -> Tensor:
        half = math.ceil(q.shape[-1] / 2)
        if ways.scale == "query":
            return (q * c) @ k.mT
        if ways.scale == "both":
            return (q[..., :half] @ k[..., :half].mT + q[..., half:] @ k[..., half:].mT) * c
        return torch.einsum("bhpe,bhse->bhps", q, k) / (1.0 / c)

    def soften(s: Tensor) -> Tensor:
        return SOFTMAXES[ways.softmax](s.float()).to(s.dtype)

    def read(a: Tensor, v: Tensor) -> Tensor:
        half = a.shape[-1] // 2
        return a[..., :half] @ v[..., :half, :] + a[..., half:] @ v[..., half:, :]

    modeling(made, eager_attention_forward=attention(score=score, soften=soften, read=read))
    return made


@dataclass(frozen=True)
class Row:
    """One step of one pair, whose bits differ."""

    pair: Pair
    site: str
    merged: int
    ratio: Ratio


def rows(pair: Pair) -> tuple[twinlens.Report, list[Row]]:
    """The comparison, and both ratios of every step of the candidate that is not equal to its replay."""
    report = twinlens.compare(pair.reference, pair.candidate, tokens=pair.tokens)
    judge = report.judge
    assert isinstance(judge, Judge)
    found = list[Row]()
    spec = judge.computed.spec
    for m in merge(spec, judge.candidate.sites, judge.weights, judge.meter):
        native = m.native()
        if native.dtype == m.value.dtype and equal(m.target, native, m.value, m.sites["mask"]):
            continue
        ratio = Scorer(m, spec).base.ratio
        found.append(Row(pair, m.target, len(m.steps), ratio))
    return report, found


def kind_of(row: Row) -> str:
    """The site within any layer, and how many steps were merged to see it."""
    name = split(generic(row.site))[1].removeprefix("blocks.L.")
    return name if row.merged == 1 else f"{name} (of {row.merged} steps)"


def percentile(values: list[float], share: float) -> float:
    """The least value that this share does not exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def table(found: list[Row], dtype: torch.dtype) -> list[tuple[str, ...]]:
    """By kind of site: steps, the largest of either ratio and of the lesser of WIDE's and TIGHT's share."""
    by = defaultdict[str, list[Row]](list)
    for row in found:
        if row.pair.dtype == dtype:
            by[kind_of(row)].append(row)
    made = list[tuple[str, ...]]()
    for kind, of in sorted(by.items(), key=lambda item: -max(r.ratio.wide for r in item[1])):
        wide, tight = [r.ratio.wide for r in of], [r.ratio.tight for r in of]
        used = max(min(r.ratio.wide / WIDE, r.ratio.tight / TIGHT) for r in of)
        cells = [f"{v:.2f}" for v in (percentile(wide, 0.999), max(wide), percentile(tight, 0.999), max(tight), used)]
        made.append((kind, str(len(of)), *cells))
    return made


def page(found: list[Row], held: list[Row], wrong: list[str], counts: tuple[int, int], said: str) -> str:
    """docs/rounding.md."""
    text = [
        "# What rounding is",
        "",
        "A step is *rounding* where its error is within `WIDE` times `u · √(n Σ (Wᵢ xᵢ)²)`, or what that is for other",
        "operations (`Op.magnitude`), or within `TIGHT` times the error that the step itself makes against float64 on",
        "the same input. In 16 bits n is 8 at most, since a sum is made in 32 whatever is stored, and angles round by",
        "none of it. Errors and scales are root mean squares over a row or a column; the worst row or column",
        "counts. Where the declared kernel computes several steps at once and a run shows what is between, the last of",
        "them is judged from the site right before it: the others are judged at their own. Where several steps are",
        "judged as one, and 16 bits are stored on the way, what is carried through them is what each was seen to err.",
        "Rows of few entries (the log-probability of a chosen token) are then judged together. Both constants come",
        "from honest pairs; `.venv/bin/python -m bench.rounding` measures them anew.",
        "",
        said,
        "",
        f"**Constants: WIDE = {WIDE:g}, TIGHT = {TIGHT:g}.** Of {len(found)} steps whose bits differed in "
        f"{counts[0]} pairs, the largest wide ratio was {max(r.ratio.wide for r in found):.2f} and the largest tight "
        f"ratio {max(r.ratio.tight for r in found):.2f}. A step needs only one of the two.",
        "",
    ]
    heads = ("step", "seen", "wide: 99.9 %", "largest", "tight: 99.9 %", "largest", "of what is allowed")
    for dtype in DTYPES:
        text += [f"## {str(dtype).removeprefix('torch.')}", "", *pages.rows(heads, table(found, dtype)), ""]
    text += ["## Held out", ""]
    largest = max((r.ratio.wide for r in held), default=0.0)
    text += [
        f"{counts[1]} pairs of other seeds, {len(held)} steps whose bits differed, largest wide ratio {largest:.2f}: "
        f"{len(wrong)} pairs were called different or had a cause.",
        "",
        *(f"- {w}" for w in wrong),
    ]
    return "\n".join(text).rstrip() + "\n"


def complaint(pair: Pair, report: twinlens.Report) -> str | None:
    """What a report says of an honest pair that it should not."""
    if report.verdict != "different" and not report.causes:
        return None
    causes = ", ".join(f"{c.parameter} at {c.site}" for c in report.causes) or "no cause"
    worst = max(
        (f for f in report.findings if f.status in ("different", "explained") and f.ratio),
        key=lambda f: min(f.ratio.wide / WIDE, f.ratio.tight / TIGHT) if f.ratio else 0.0,
        default=None,
    )
    at = f", {worst.site} {worst.ratio}" if worst else ""
    return f"{pair.name}: {report.verdict}{at}, {causes} ({pair.said})"


def main() -> None:
    """Calibrate, hold out, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} seeds each")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page as Markdown")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    count, more = (QUICK, QUICK) if asked.quick else (CALIBRATED, HELD_OUT)
    kept: tuple[list[Row], list[Row]] = ([], [])
    wrong: tuple[list[str], list[str]] = ([], [])
    totals = [0, 0]
    for part, seeds in enumerate((range(count), range(100, 100 + more))):
        for pair in pairs(seeds):
            try:
                report, found = rows(pair)
            except RuntimeError as error:
                wrong[part].append(f"{pair.name}: failed, {error} ({pair.said})")
                print(wrong[part][-1], flush=True)
                continue
            kept[part].extend(found)
            totals[part] += 1
            said = complaint(pair, report)
            if said:
                wrong[part].append(said)
            worst = max(found, key=lambda r: min(r.ratio.wide / WIDE, r.ratio.tight / TIGHT), default=None)
            at = f"worst {worst.site} {worst.ratio.wide:.2f} {worst.ratio.tight:.2f}" if worst else "no bit differs"
            print(f"{pair.name}: {report.verdict}, {at}", said or "", flush=True)
    setting = (
        "Pairs: gpt2, llama and gemma2 with random weights (`src/twinlens/museum/tiny.py`), float32 and bfloat16, "
        f"{LENGTH} tokens, "
        f"seeds 0 to {count - 1}, torch {torch.__version__}, one thread."
    )
    text = page(kept[0], kept[1], wrong[1], (totals[0], totals[1]), setting)
    print(text)
    print(f"calibration complaints: {wrong[0]}")
    if asked.write:
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        asked.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
