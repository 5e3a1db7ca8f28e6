"""Placing a site whose own step is at fault, by what the steps after it make of each tensor it could be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from twinlens import sites as names
from twinlens.capture.guesses import Guess, Trial, Verdict, agree, same, turned, upstream
from twinlens.capture.layout import held_shapes, layouts
from twinlens.capture.search import Match
from twinlens.capture.unseen import KERNELS
from twinlens.capture.values import equal, near, parallel
from twinlens.fields import kinds
from twinlens.spec import Step, evaluate

if TYPE_CHECKING:
    from twinlens.capture.align import Aligner

DEEPEST = 3
"""Steps that are looked through after the one in question: scores, pattern and what heads read."""
MOST = 60
"""Tensors that are tried at most for one site: between two products there are fewer of one shape."""


class Lookahead:
    """Tries candidates for a site against the steps that read it."""

    def __init__(self, aligner: Aligner) -> None:
        self.a = aligner
        self.looked_through = {name for node in aligner.graph.nodes for name in KERNELS.get(node.function, ())}
        self._upstream = upstream(aligner.spec.steps)

    def agrees(self, site: str, match: Match) -> bool:
        """Whether what follows is computed from this tensor."""
        value = match.layout.ours(self.a.graph[match.node], self.a.sizes)
        return self.judge({site: Guess(match.node, match.layout, value)}, loose=False).hits > 0

    def leads_elsewhere(self, step: Step, match: Match, value: Tensor) -> bool:
        """Place a part of a product by what follows, where what follows is made from another part than was found."""
        now = Guess(match.node, match.layout, match.layout.ours(self.a.graph[match.node], self.a.sizes))
        if any(self.judge({step.writes: now}, loose=loose).hits for loose in (False, True)):
            return False
        self.place(step, value)
        return step.writes in self.a.places

    def place(self, step: Step, expected: Tensor | None) -> None:
        """Place a site by what follows, or leave it missing."""
        steps, options = self._options(step, expected)
        for loose in (False, True):
            best = self.best(steps, options, loose=loose)
            if best is not None:
                for s, guess in zip(steps, best, strict=True):
                    self.a.put(s.writes, guess.node, guess.layout, "provisional")
                return

    def reconsider(self, step: Step, value: Tensor) -> None:
        """Move a site that replays to where what follows fits better: an embedding that is scaled once more."""
        place = self.a.places[step.writes]
        now = Guess(place.node, place.layout, self.a.values[step.writes])
        verdict = self.judge({step.writes: now}, loose=False)
        if self.a.is_copy(step):
            elsewhere = verdict.misses if verdict.hits else self._is_read(step.writes)
            if not elsewhere:
                return
        options = [(guess,) for guess in self.guesses(step, value)]
        best = self.best((step,), options, loose=False)
        if best is not None and not same(step.writes, best[0], now):
            if self.judge({step.writes: best[0]}, loose=False).hits > verdict.hits:
                self.a.put(step.writes, best[0].node, best[0].layout, "provisional")

    def _is_read(self, site: str) -> bool:
        """Whether a step that reads a site is known, or one that is looked through."""
        readers = self.a.spec.readers.get(site, ())
        return any(self.a.known(s.writes) or (self._looked_through(s) and self._is_read(s.writes)) for s in readers)

    def _options(self, step: Step, expected: Tensor | None) -> tuple[tuple[Step, ...], list[tuple[Guess, ...]]]:
        guesses = self._distinct(step, expected)
        partner = self._partner(step)
        if partner is None:
            return (step,), [(guess,) for guess in guesses]
        value = self.a.expected(partner.writes, self.a.values)
        pairs = product(guesses, self._distinct(partner, value))
        return (step, partner), [(one, other) for one, other in pairs if agree(one, other)]

    def _distinct(self, step: Step, expected: Tensor | None) -> list[Guess]:
        """What a site could be; of parts, which are moved on their way and not changed, each value once, and of tables,
        which are cut anew for each layer.
        """
        guesses = list(self.guesses(step, expected))
        if not step.op.cuts and "tokens" in self._upstream[step.writes]:
            return guesses
        once: list[Guess] = []
        for guess in guesses:
            if not any(equal(guess.value, other.value) for other in once):
                once.append(guess)
        return once

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

    def guesses(self, step: Step, expected: Tensor | None) -> Iterator[Guess]:
        """Tensors of the site's shape between what it is made of and what is known to follow."""
        shape = self._shape(step, expected)
        if shape is None:
            return
        before = self._after(step.writes)
        of = tuple(self.a.search.moving(self.a.places[r].node for r in self._sources(step)))
        foreign = self._foreign(step)
        found, alike = 0, "tokens" not in self._upstream[step.writes]
        for sizes in held_shapes(names.axes(step.writes), shape, alike=alike):
            for node in self.a.search.nodes(prod(sizes), of, before, whole=step.op.chooses):
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

    def best(
        self, steps: Sequence[Step], options: Sequence[tuple[Guess, ...]], *, loose: bool
    ) -> tuple[Guess, ...] | None:
        """The option that makes most of what follows replay; None where others do so too."""
        judged: list[tuple[Verdict, tuple[Guess, ...]]] = []
        for option in options:
            trial = {s.writes: g for s, g in zip(steps, option, strict=True)}
            verdict = self.judge(trial, loose=loose)
            if verdict.hits:
                judged.append((verdict, option))
        if not judged:
            return None
        top = max(verdict.rank for verdict, _ in judged)
        tied = [option for verdict, option in judged if verdict.rank == top]
        for number, step in enumerate(steps):
            first = tied[0][number]
            if not all(same(step.writes, first, other[number]) for other in tied[1:]):
                return None
        if not steps[0].writes.endswith("scores"):
            return tied[0]
        return [option for option in tied if equal(option[0].value, tied[0][0].value)][-1]

    def judge(self, trial: Trial, *, loose: bool) -> Verdict:
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
            cuts = all(s is step or s.op.cuts for s in merged)
            return cuts and self._up_to_a_factor(step, merged, given, trial)
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
        return match is not None and match.node not in own and not turned(match.layout)

    def _up_to_a_factor(self, step: Step, merged: Sequence[Step], given: Mapping[str, Tensor], trial: Trial) -> bool:
        """Whether the step without its optional parts is some tensor times a number.

        It looks past a second fault in the step that reads: a wrong scale, a cap, a window.
        """
        off = {name: None for name, kind, _ in kinds(step.op) if kind.off}
        if not off:
            return False
        plain = replace(step, op=step.op.replace(**off))
        value = evaluate([plain if s is step else s for s in merged], given, self.a.own, keep=[step.writes])[
            step.writes
        ]
        wanted = self.a.search.wanted(step.writes, value)
        of = tuple(self.a.search.moving(guess.node for guess in trial.values()))
        for node in self.a.search.nodes(value.numel(), of):
            theirs = self.a.graph[node]
            for layout in layouts(wanted.axes, tuple(value.shape), tuple(theirs.shape)):
                if not turned(layout) and parallel(layout.ours(theirs, self.a.sizes), wanted):
                    return True
        return False
