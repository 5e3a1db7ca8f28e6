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

_RUNS = 8
"""So many times at most positions are told to begin anew."""
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
    for value, expression in _rules(given[real], found[real], int(merged.sites["slots"][0])):
        tensor = evaluate(expression, merged.sites, "positions")
        if torch.equal(tensor[real], found[real]):
            yield Feed(step.writes, "positions", tensor, value, expression)
            return
    told = _runs(found[0][real[0]].tolist())
    if told:
        yield Feed(step.writes, "positions", found, told)


def _rules(given: Tensor, found: Tensor, before: int) -> Iterator[tuple[int | str, str]]:
    """How positions may have been made of those that were given, as a value and an expression; `before` are slots that
    earlier calls left.
    """
    apart = int((found - given)[0])
    if apart:
        restarted = before > 0 and apart == -before
        value = "counted from 0 in each call" if restarted else apart
        yield value, f"maximum(positions {'-' if apart < 0 else '+'} {abs(apart)}, 0)"
    highest = int(found.max())
    yield f"{highest} at most", f"minimum(positions, {highest})"
    again = given[(found == 0) & (given > 0)]
    if len(again):
        yield f"from 0 again every {int(again.min())}", f"positions % {int(again.min())}"
    ones = given[found == 1]
    if len(ones) and int(ones.min()) > 1:
        yield f"one for {int(ones.min())} tokens each", f"positions // {int(ones.min())}"


def _runs(positions: list[int]) -> str:
    """In words, where positions count on from; none where that is too seldom."""
    begins = [i for i, p in enumerate(positions) if i == 0 or p != positions[i - 1] + 1]
    if len(begins) > _RUNS:
        return ""
    ends = [*begins[1:], len(positions)]
    return ", then ".join(f"{positions[i]} to {positions[j - 1]}" for i, j in zip(begins, ends, strict=True))


def _nearest(step: Step, merged: Merged) -> Tensor | None:
    """For each token the position whose row is nearest to what the run made."""
    last = _MORE * int(merged.sites["positions"].max()) + 2
    every = torch.arange(last, device=merged.value.device)[None]
    table = replayed([step], {**merged.sites, "positions": every}, merged.weights, merged.dtypes)[step.writes]
    ours, table = same_width(merged.value, table)
    if ours.ndim != 3 or ours.shape[:2] != merged.sites["positions"].shape:
        return None
    return torch.cdist(ours.double(), table.double().expand(len(ours), -1, -1)).argmin(-1)
