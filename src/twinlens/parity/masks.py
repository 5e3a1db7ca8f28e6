"""A mask that no field says: as the scores of a run show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from twinlens.parity.merged import Merged
from twinlens.parity.rebuilt import AGAIN, Rebuilt
from twinlens.parity.rounding import by_rows, masked

_FEW = 4
"""So many keys at most are told one by one."""


def as_seen(merged: Merged, native: Tensor) -> Iterator[Rebuilt]:
    """What the run hides at visible scores, where that is not what the declared step hides."""
    step, site = merged.steps[-1], merged.target
    theirs, ours = masked(site, merged.value), masked(site, native)
    if not step.op.takes_mask or theirs is None or ours is None or theirs.shape != ours.shape:
        return
    parts = {"hidden": theirs & ~ours, "seen": ours & ~theirs}
    apart = {word: by_rows(site, x.any(1, keepdim=True), merged.sites["mask"]) for word, x in parts.items()}
    told = [f"{word}: {_keys(x)}" for word, x in apart.items() if bool(x.any())]
    if told:
        given = f"candidate:allowed{AGAIN}"
        row, seen = dataclasses.replace(step, reads=(*step.reads, given)), (~theirs).any(1, keepdim=True)
        words = "masked as its scores show it"
        yield Rebuilt(site, (row,), "attn.mask", site, "as declared", "; ".join(told), words, ((given, seen),))


def _keys(entries: Tensor) -> str:
    """Which keys, and from how many queries; [queries, keys]."""
    keys = entries.any(0).nonzero().flatten().tolist()
    named = ", ".join(map(str, keys)) if len(keys) <= _FEW else f"{keys[0]} to {keys[-1]}"
    return f"keys {named} of {int(entries.any(1).sum())} queries"
