"""The second model of the report: Llama 3.2 in TransformerLens 2.7.0.

That version's table lists the model without its rotary settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from twinlens.comparison import Report, compare
from twinlens.first_case import checkpoints
from twinlens.first_case.case import HF
from twinlens.first_case.measure import Apart, apart
from twinlens.model import Model
from twinlens.parity.rounding import difference
from twinlens.subjects import Say

TL = "transformer-lens==2.7.0,transformers==4.43.2"
LENGTHS = (64, 2048)


@dataclass(frozen=True)
class Llama:
    """What was measured at one length of the prompt."""

    length: int
    tables: float
    """The largest difference of cos and sin."""
    apart: Apart
    scaling_tables: float
    scaling_logits: float
    """What the missing scaling alone would make, with the right base: by the native model."""
    report: Report
    after: Report


def run(folder: Path, say: Say, lengths: tuple[int, ...] = LENGTHS) -> list[Llama]:
    """Compare and mend at each length."""
    path = checkpoints.llama32(folder / "llama-3.2")
    return [_at(path, length, say) for length in lengths]


def _at(path: Path, length: int, say: Say) -> Llama:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(checkpoints.LLAMA.vocabulary, (1, length), generator=draw)
    report = compare(f"hf:{path}@{HF}", f"tl:{path}@{TL}", tokens=tokens, say=say)
    after = report.fix(order=True)
    judge = report.judge
    assert judge is not None
    a, b = judge.reference.sites, judge.candidate.sites
    waves = [f"rotary.hook_{wave}" for wave in ("cos", "sin")]
    tables = max(float(difference(w, a[w], b[w]).abs().max()) for w in waves)
    declared = report.declared
    assert declared is not None
    spec = declared.spec.set_fields(waves, "scaling", None)
    positions = torch.arange(length)[None]
    plain = [(declared.spec.at[w].op(positions) - spec.at[w].op(positions)).abs() for w in waves]
    logits = Model(spec, declared.weights)(tokens).double() - a["logits"].double()
    alone = max(float(t.max()) for t in plain), float(logits.abs().max())
    return Llama(length, tables, apart(declared.spec, a, b, judge.mask), *alone, report, after)
