"""Positions that a run used, read off a table: each row of what it made is the row of some position."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinlens.inputs import evaluate
from twinlens.parity.changes import Feed
from twinlens.parity.merged import Merged, replayed
from twinlens.parity.rounding import same_width
from twinlens.spec import Step

_MORE = 2
"""How many times as far as the positions that were given a run may have gone."""


def read_off(step: Step, merged: Merged) -> Iterator[Feed]:
    """The positions of a run that counted them from elsewhere; its step must be seen by itself."""
    if step.writes != merged.target or len(step.reads) != step.reads.count("positions"):
        return
    given = merged.sites["positions"]
    found = _nearest(step, merged)
    real = merged.sites["mask"].bool()
    if found is None or not bool(real.any()):
        return
    apart = (found - given)[real].unique().tolist()
    if len(apart) == 1 and apart[0]:
        before = int(merged.sites["slots"][0])
        restarted = before > 0 and apart[0] == -before
        expression = f"maximum(positions {'-' if apart[0] < 0 else '+'} {abs(apart[0])}, 0)"
        tensor = evaluate(expression, merged.sites, "positions")
        yield Feed(
            step.writes, "positions", tensor, "counted from 0 in each call" if restarted else apart[0], expression
        )


def _nearest(step: Step, merged: Merged) -> Tensor | None:
    """For each token the position whose row is nearest to what the run made."""
    last = _MORE * int(merged.sites["positions"].max()) + 2
    every = torch.arange(last, device=merged.value.device)[None]
    table = replayed([step], {**merged.sites, "positions": every}, merged.weights, merged.dtypes)[step.writes]
    ours, table = same_width(merged.value, table)
    if ours.ndim != 3 or ours.shape[:2] != merged.sites["positions"].shape:
        return None
    return torch.cdist(ours.double(), table.double().expand(len(ours), -1, -1)).argmin(-1)
