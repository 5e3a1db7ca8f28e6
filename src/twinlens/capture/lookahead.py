"""Placing a site whose own step is at fault, by what the steps after it make of each tensor it could be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.capture.layout import Layout, Wanted, distance, held_shapes, layouts, tolerance
from twinlens.capture.search import LOWEST, Match
from twinlens.capture.values import centred, equal, near, parallel
from twinlens.fields import kinds
from twinlens.spec import Step

if TYPE_CHECKING:
    from twinlens.capture.align import Aligner

DEEPEST = 3
"""Steps that are looked through after the one in question: scores, pattern and what heads read."""
MOST = 60
"""Tensors that are tried at most for one site: between two products there are fewer of one shape."""
KERNELS = {
    "scaled_dot_product_attention": ("Scores", "Softmax"),
    "layer_norm": ("Normalize",),
    "rms_norm": ("Normalize",),
    "native_layer_norm": ("Normalize",),
}
"""Torch functions that compute several steps at once, and the operations whose sites they hide."""


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


class Lookahead:
    """Tries candidates for a site against the steps that read it."""

    def __init__(self, aligner: Aligner) -> None:
        self.a = aligner
        self.looked_through = {name for node in aligner.graph.nodes for name in KERNELS.get(node.function, ())}
        self._upstream = _upstream(aligner.spec.steps)

    def agrees(self, site: str, match: Match) -> bool:
        """Whether what follows is computed from this tensor."""
        value = match.layout.ours(self.a.graph[match.node], self.a.sizes)
        return self._judge({site: Guess(match.node, match.layout, value)}, loose=False).hits > 0

    def place(self, step: Step, expected: Tensor | None) -> None:
        """Place a site by what follows, or leave it missing."""
        steps, options = self._options(step, expected)
        for loose in (False, True):
            best = self._best(steps, options, loose=loose)
            if best is not None:
                for s, guess in zip(steps, best, strict=True):
                    self.a.put(s.writes, guess.node, guess.layout, "provisional")
                return

    def reconsider(self, step: Step, value: Tensor) -> None:
        """Move a site that replays to where what follows fits better: an embedding that is scaled once more."""
        place = self.a.places[step.writes]
        now = Guess(place.node, place.layout, self.a.values[step.writes])
        verdict = self._judge({step.writes: now}, loose=False)
        options = [(guess,) for guess in self._guesses(step, value)]
        best = self._best((step,), options, loose=False)
        if best is not None and not _same(step.writes, best[0], now):
            if self._judge({step.writes: best[0]}, loose=False).hits > verdict.hits:
                self.a.put(step.writes, best[0].node, best[0].layout, "provisional")

    def _options(self, step: Step, expected: Tensor | None) -> tuple[tuple[Step, ...], list[tuple[Guess, ...]]]:
        guesses = list(self._guesses(step, expected))
        partner = self._partner(step)
        if partner is None:
            return (step,), [(guess,) for guess in guesses]
        value = self.a.expected(partner.writes, self.a.values)
        pairs = product(guesses, self._guesses(partner, value))
        return (step, partner), [(one, other) for one, other in pairs if _agree(one, other)]

    def _partner(self, step: Step) -> Step | None:
        """A step of the same operation whose result meets this one's: they fail together."""
        for reader in self.a.spec.readers.get(step.writes, ()):
            for read in reader.reads:
                other = self.a.spec.at.get(read)
                if (
                    other is not None
                    and read != step.writes
                    and read not in self.a.places
                    and type(other.op) is type(step.op)
                    and not self.a.is_copy(other)
                ):
                    return other
        return None

    # --- what a site could be -------------------------------------------------------------------

    def _guesses(self, step: Step, expected: Tensor | None) -> Iterator[Guess]:
        """Tensors of the site's shape between what it is made of and what is known to follow."""
        shape = self._shape(step, expected)
        if shape is None:
            return
        before = self._after(step.writes)
        of = tuple(self.a.search.moving(self.a.places[r].node for r in self._sources(step)))
        foreign = self._foreign(step)
        found = 0
        for sizes in held_shapes(names.axes(step.writes), shape):
            for node in self.a.search.nodes(prod(sizes), of, before):
                if self.a.search.above[node] & foreign:
                    continue
                for guess in self._held(step.writes, node, sizes):
                    yield guess
                    found += 1
                    if found >= MOST:
                        return

    def _held(self, site: str, node: int, sizes: tuple[int, ...]) -> Iterator[Guess]:
        axes, theirs = names.axes(site), self.a.graph[node]
        named = dict(zip(axes, sizes, strict=True)) | {"b": self.a.sizes["b"]}
        for layout in layouts(axes, sizes, tuple(theirs.shape)):
            yield Guess(node, layout, layout.ours(theirs, named))

    def _shape(self, step: Step, expected: Tensor | None) -> tuple[int, ...] | None:
        if expected is not None:
            return tuple(expected.shape)
        known = self.a.sizes | {"d": self.a.spec.shape.d_model}
        axes = names.axes(step.writes)
        return tuple(known[a] for a in axes) if all(a in known for a in axes) else None

    def _sources(self, step: Step) -> set[str]:
        """Placed sites that the step is computed from, through those that are not placed."""
        steps = self.a.spec.between(step.writes, self.a.values)
        return {r for s in steps for r in s.reads if r in self.a.places}

    def _foreign(self, step: Step) -> int:
        """Products that a site cannot descend from, since no step before it makes them; as bits."""
        upstream, bits = self._upstream[step.writes], 0
        for site, nodes in self.a.product_nodes.items():
            if site not in upstream and site != step.writes:
                for node in nodes:
                    bits |= 1 << node
        return bits

    def _after(self, site: str) -> set[int]:
        """Nodes of the nearest known sites downstream: the site must lead to each of them."""
        found, seen = set[int](), set[str]()
        pending = [s.writes for s in self.a.spec.readers.get(site, ())]
        while pending:
            at = pending.pop(0)
            if at in seen:
                continue
            seen.add(at)
            place = self.a.known(at)
            if place is not None and at != "logits":
                found.add(place.node)
            elif len(seen) < 24:
                pending.extend(s.writes for s in self.a.spec.readers.get(at, ()))
        return found or {self.a.graph.logits}

    # --- what the steps after it say ------------------------------------------------------------

    def _best(
        self, steps: Sequence[Step], options: Sequence[tuple[Guess, ...]], *, loose: bool
    ) -> tuple[Guess, ...] | None:
        """The option that makes most of what follows replay; None where others do so too."""
        judged: list[tuple[Verdict, tuple[Guess, ...]]] = []
        for option in options:
            trial = {s.writes: g for s, g in zip(steps, option, strict=True)}
            verdict = self._judge(trial, loose=loose)
            if verdict.hits:
                judged.append((verdict, option))
        if not judged:
            return None
        top = max(verdict.rank for verdict, _ in judged)
        tied = [option for verdict, option in judged if verdict.rank == top]
        for number, step in enumerate(steps):
            first = tied[0][number]
            if not all(_same(step.writes, first, other[number]) for other in tied[1:]):
                return None
        if not steps[0].writes.endswith("scores"):
            return tied[0]
        return [option for option in tied if equal(option[0].value, tied[0][0].value)][-1]

    def _judge(self, trial: Trial, *, loose: bool) -> Verdict:
        """Replay what follows on these tensors. `loose`: to a captured tensor up to a factor."""
        given = {**self.a.values, **{site: guess.value for site, guess in trial.items()}}
        hits = misses = 0
        seen = set[str](trial)
        pending = [(s, 0) for site in trial for s in self.a.spec.readers.get(site, ())]
        while pending:
            step, depth = pending.pop(0)
            if step.writes in seen or step.writes == "logits":
                continue
            seen.add(step.writes)
            copy = self.a.is_copy(step)
            if not copy and self._replays(step, given, trial, loose=loose):
                hits += 1
                continue
            misses += not copy and not self._looked_through(step)
            if depth < DEEPEST and (copy or self._looked_through(step)):
                pending.extend((s, depth + 1) for s in self.a.spec.readers.get(step.writes, ()))
        return Verdict(hits, misses)

    def _looked_through(self, step: Step) -> bool:
        return self.a.known(step.writes) is None and type(step.op).__name__ in self.looked_through

    def _replays(self, step: Step, given: Mapping[str, Tensor], trial: Trial, *, loose: bool) -> bool:
        """Whether the step, on what is on trial, gives a tensor that was captured."""
        merged = self.a.spec.between(step.writes, given)
        if not any(read in trial for s in merged for read in s.reads):
            return False
        if loose:
            return len(merged) == 1 and self._up_to_a_factor(step, given, trial)
        value = self.a.expected(step.writes, given)
        if value is None:
            return False
        wanted = self.a.search.wanted(step.writes, value)
        if any(g.value.shape == value.shape and near(g.value, wanted) for g in trial.values()):
            return False  # a norm of what is normalised already: no evidence that it was not before
        known = self.a.known(step.writes)
        if known is not None:
            theirs = known.layout.ours(self.a.graph[known.node], self.a.sizes)
            return theirs.shape == value.shape and near(theirs, wanted)
        own = [guess.node for guess in trial.values()]
        match = self.a.search.find(wanted, self.a.search.moving(own))
        return match is not None and match.node not in own

    def _up_to_a_factor(self, step: Step, given: Mapping[str, Tensor], trial: Trial) -> bool:
        """Whether the step without its optional parts is some tensor times a number.

        It looks past a second fault in the step that reads: a wrong scale, a cap, a window.
        """
        off = {name: None for name, kind, _ in kinds(step.op) if kind.off}
        if not off:
            return False
        plain = replace(step, op=step.op.replace(**off))
        value = plain(given, self.a.own)
        wanted = self.a.search.wanted(step.writes, value)
        of = tuple(self.a.search.moving(guess.node for guess in trial.values()))
        for node in self.a.search.nodes(value.numel(), of):
            theirs = self.a.graph[node]
            for layout in layouts(wanted.axes, tuple(value.shape), tuple(theirs.shape)):
                if parallel(layout.ours(theirs, self.a.sizes), wanted):
                    return True
        return False


def _agree(one: Guess, other: Guess) -> bool:
    """Whether two tensors can meet: axes of one name are of one size."""
    sizes = dict(zip(one.layout.site, one.value.shape, strict=True))
    theirs = zip(other.layout.site, other.value.shape, strict=True)
    return all(sizes.get(axis, size) == size for axis, size in theirs)


def _upstream(steps: Sequence[Step]) -> dict[str, set[str]]:
    """For each site those that it is computed from, near and far."""
    found: dict[str, set[str]] = {}
    for step in steps:
        found[step.writes] = {s for r in step.reads for s in (r, *found.get(r, ()))}
    return found


def _same(site: str, one: Guess, other: Guess) -> bool:
    """Equal values, or, of scores, equal up to a constant for each row, which no softmax sees."""
    if one.value.shape != other.value.shape:
        return False
    x, y = one.value.float(), other.value.float()
    if site.endswith("scores"):
        seen = x > LOWEST
        if not torch.equal(seen, y > LOWEST):
            return False
        x, y = (centred(t, seen) for t in (x, y))
    return distance(x, Wanted(y, names.axes(site))) <= tolerance(one.value, other.value)
