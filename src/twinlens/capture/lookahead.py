"""Placing a site whose own step is at fault, by what the steps after it make of each tensor it could be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.capture.layout import Layout, Wanted, distance, layouts, tolerance
from twinlens.capture.search import Match
from twinlens.spec import Step

if TYPE_CHECKING:
    from twinlens.capture.align import Aligner

DEEPEST = 3
"""Steps that are looked through after the one in question."""
MOST = 40
"""Tensors that are tried at most for one site: within a block there are fewer of one shape."""


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
    error: float

    @property
    def rank(self) -> tuple[int, int]:
        return self.hits, -self.misses


class Lookahead:
    """Tries candidates for a site against the steps that read it."""

    def __init__(self, aligner: Aligner) -> None:
        self.a = aligner

    def agrees(self, site: str, match: Match) -> bool:
        """Whether what follows is computed from this tensor."""
        value = match.layout.ours(self.a.graph[match.node], self.a.sizes)
        return self.judge({site: (match.node, value)}).hits > 0

    def place(self, step: Step, expected: Tensor | None) -> None:
        """Place a site by what follows, or leave it missing."""
        guesses = list(self._guesses(step, expected))
        partner = self._partner(step)
        if partner is None:
            options: list[tuple[Guess, ...]] = [(g,) for g in guesses]
            steps = (step,)
        else:
            others = list(self._guesses(partner, self.a.expected(partner.writes, self.a.values)))
            options, steps = list(product(guesses, others)), (step, partner)
        best = self._best(steps, options)
        if best is not None:
            for s, guess in zip(steps, best, strict=True):
                self.a.put(s.writes, guess.node, guess.layout, "provisional")

    def _best(self, steps: Sequence[Step], options: Sequence[tuple[Guess, ...]]) -> tuple[Guess, ...] | None:
        judged: list[tuple[Verdict, tuple[Guess, ...]]] = []
        for option in options:
            trial = {s.writes: (g.node, g.value) for s, g in zip(steps, option, strict=True)}
            verdict = self.judge(trial)
            if verdict.hits:
                judged.append((verdict, option))
        if not judged:
            return None
        top = max(v.rank for v, _ in judged)
        tied = [option for v, option in judged if v.rank == top]
        for site_at, step in enumerate(steps):
            if not all(self._same(step.writes, tied[0][site_at], other[site_at]) for other in tied[1:]):
                return None
        latest = steps[0].writes.endswith("scores")
        return self._masked(tied)[-1] if latest else tied[0]

    def _masked(self, tied: list[tuple[Guess, ...]]) -> list[tuple[Guess, ...]]:
        """Of scores that differ by a constant for each row, the first value; of equal ones all."""
        first = tied[0][0]
        return [t for t in tied if distance(t[0].value, self.a.search.wanted("logits", first.value)) == 0.0] if False else [
            t for t in tied if _equal(t[0].value, first.value)
        ]

    def _same(self, site: str, one: Guess, other: Guess) -> bool:
        """Equal values, or, of scores, equal up to a constant for each row, which no softmax sees."""
        if one.value.shape != other.value.shape:
            return False
        x, y = one.value.float(), other.value.float()
        if site.endswith("scores"):
            seen = (x > -1e30) & (y > -1e30)
            if not torch.equal(x > -1e30, y > -1e30):
                return False
            x, y = (_centred(t, seen) for t in (x, y))
        return distance(x, Wanted(y, names.axes(site))) <= tolerance(one.value, other.value)

    def _guesses(self, step: Step, expected: Tensor | None) -> Iterator[Guess]:
        """Tensors of the site's shape between what it is made of and what is known to come after."""
        axes = names.axes(step.writes)
        shape = self._shape(step, expected)
        if shape is None:
            return
        before = self._after(step.writes)
        of = tuple(self.a.places[r].node for r in self._sources(step))
        found = 0
        for sizes in self._shapes(axes, shape):
            for node in self.a.search.nodes(prod(sizes), of, before):
                theirs = self.a.graph[node]
                for layout in layouts(axes, sizes, tuple(theirs.shape)):
                    named = dict(zip(axes, sizes, strict=True)) | {"b": self.a.sizes["b"]}
                    yield Guess(node, layout, layout.ours(theirs, named))
                    found += 1
                    if found >= MOST:
                        return

    def _shapes(self, axes: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        yield shape
        if "r" in axes:  # tables may be half as wide, and without a batch
            half = (*shape[:-1], shape[-1] // 2)
            yield from (half, (1, *shape[1:]), (1, *half[1:]))

    def _shape(self, step: Step, expected: Tensor | None) -> tuple[int, ...] | None:
        if expected is not None:
            return tuple(expected.shape)
        width = {"d": self.a.spec.shape.d_model, "v": self.a.spec.shape.vocabulary}
        known = self.a.sizes | width
        axes = names.axes(step.writes)
        return tuple(known[a] for a in axes) if all(a in known for a in axes) else None

    def _sources(self, step: Step) -> set[str]:
        """Placed sites that the step is computed from, through those that are not placed."""
        steps = self.a.spec.between(step.writes, self.a.values)
        return {r for s in steps for r in s.reads if r in self.a.places}

    def _after(self, site: str) -> set[int]:
        """Nodes of the nearest known sites downstream: the site must lead to each of them."""
        found, seen = set[int](), set[str]()
        pending = [s.writes for s in self.a.spec.readers.get(site, ())]
        while pending:
            at = pending.pop()
            if at in seen:
                continue
            seen.add(at)
            node = self.a.operands.get(at) or self.a.places.get(at)
            if node is not None and at != "logits":
                found.add(node.node)
            elif len(seen) < 24:
                pending.extend(s.writes for s in self.a.spec.readers.get(at, ()))
        return found or {self.a.graph.logits}

    def _partner(self, step: Step) -> Step | None:
        """A step of the same operation whose result meets this one's: they fail together."""
        for reader in self.a.spec.readers.get(step.writes, ()):
            for read in reader.reads:
                other = self.a.spec.at.get(read)
                if other and read != step.writes and read not in self.a.places and type(other.op) is type(step.op):
                    if not self._sources(other) or self._sources(other) - self._sources(step) or True:
                        return other
        return None

    def judge(self, trial: Mapping[str, tuple[int, Tensor]]) -> Verdict:
        """Replay what follows on these tensors."""
        given = {**self.a.values, **{site: value for site, (_, value) in trial.items()}}
        hits = misses = 0
        error = 0.0
        seen = set[str](trial)
        pending = [(s, 0) for site in trial for s in self.a.spec.readers.get(site, ())]
        while pending:
            step, depth = pending.pop(0)
            if step.writes in seen or step.writes == "logits":
                continue
            seen.add(step.writes)
            off = None if self._copies(step) else self._replays(step, given, trial)
            if off is not None and off >= 0:
                hits, error = hits + 1, error + off
            elif step.writes in self.a.operands or step.writes in self.a.places:
                misses += 0 if self._copies(step) else 1
            elif depth < DEEPEST:
                pending.extend((s, depth + 1) for s in self.a.spec.readers.get(step.writes, ()))
        return Verdict(hits, misses, error)

    def _copies(self, step: Step) -> bool:
        return len(step.reads) == 1 and not step.weights and type(step.op).__name__ == "Add"

    def _replays(
        self, step: Step, given: Mapping[str, Tensor], trial: Mapping[str, tuple[int, Tensor]]
    ) -> float | None:
        """How far the replayed step is from a captured tensor; None where there is none."""
        value = self.a.expected(step.writes, given)
        if value is None or not self._uses(step.writes, given, trial):
            return None
        wanted = self.a.search.wanted(step.writes, value)
        known = self.a.operands.get(step.writes) or self.a.places.get(step.writes)
        if known is not None:
            theirs = known.layout.ours(self.a.graph[known.node], self.a.sizes)
            off = distance(theirs, wanted) if theirs.shape == value.shape else float("inf")
            return off if off <= tolerance(theirs, value) else None
        of = [node for node, _ in trial.values()]
        match = self.a.search.find(wanted, of)
        return None if match is None or match.node in of else match.distance

    def _uses(self, site: str, given: Mapping[str, Tensor], trial: Mapping[str, object]) -> bool:
        """Whether a replay reads what is on trial at all."""
        return any(r in trial for s in self.a.spec.between(site, given) for r in s.reads)


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | ((x < -1e30) & (y < -1e30))).all())


def _centred(x: Tensor, seen: Tensor) -> Tensor:
    x = x.masked_fill(~seen, 0.0)
    return (x - x.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)).masked_fill(~seen, 0.0)
