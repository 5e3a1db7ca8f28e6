"""What a site could be, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.capture.layout import Layout, Wanted, distance, tolerance
from twinlens.capture.search import LOWEST
from twinlens.capture.values import centred
from twinlens.spec import Step


@dataclass(frozen=True)
class Guess:
    """A tensor that a site could be."""

    node: int
    layout: Layout
    value: Tensor


@dataclass(frozen=True)
class Verdict:
    """How many of the steps that follow replay to a captured tensor, and how many to none."""

    hits: int
    misses: int

    @property
    def rank(self) -> tuple[int, int]:
        """More hits first, then fewer misses."""
        return self.hits, -self.misses


Trial = Mapping[str, Guess]


def turned(layout: Layout) -> bool:
    """Whether keys stand before queries: such scores are as well those of k with q, and no evidence for either."""
    held = [axis for group in layout.groups for axis in group]
    return {"p", "s"} <= set(held) and held.index("s") < held.index("p")


def agree(one: Guess, other: Guess) -> bool:
    """Whether two tensors can meet: axes of one name are of one size."""
    sizes = dict(zip(one.layout.site, one.value.shape, strict=True))
    theirs = zip(other.layout.site, other.value.shape, strict=True)
    return all(sizes.get(axis, size) == size for axis, size in theirs)


def upstream(steps: Sequence[Step]) -> dict[str, set[str]]:
    """For each site those that it is computed from, near and far."""
    found: dict[str, set[str]] = {}
    for step in steps:
        found[step.writes] = {s for r in step.reads for s in (r, *found.get(r, ()))}
    return found


def same(site: str, one: Guess, other: Guess) -> bool:
    """Equal values, or, of scores, equal up to a constant for each row, which no softmax sees."""
    if one.value.shape != other.value.shape:
        return False
    x, y = one.value.float(), other.value.float()
    if site.endswith("scores"):
        seen = x > LOWEST
        if not torch.equal(seen, y > LOWEST):
            return False
        if bool((seen.sum(-1) > 1).any()):  # of one key alone a softmax sees nothing
            x, y = (centred(t, seen) for t in (x, y))
    return distance(x, Wanted(y, names.axes(site))) <= tolerance(one.value, other.value)
