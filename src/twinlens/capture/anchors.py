"""Which constant of a call is used as which tensor of the checkpoint.

Uses of one kind are numbered by order of execution, so that a weight that stands in a wrong layer, or is
another one altogether, keeps the place in which it is used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from twinlens.capture.graph import Graph
from twinlens.capture.matching import Matcher, references, role
from twinlens.capture.uses import Use, root, uses
from twinlens.spec import Spec, Step, Weights


@lru_cache(maxsize=65536)
def generic(name: str) -> str:
    """A weight's name without the layer's number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "L", name)


@dataclass(frozen=True)
class Held:
    """Rows `there` of the matrix of a use are rows `here` of a checkpoint's tensor (None: all, in order)."""

    use: Use
    there: Tensor
    here: Tensor
    again: tuple[Use, ...] = ()
    """Further uses of the same constant."""


@dataclass
class Anchors:
    """For each tensor of the checkpoint the uses that hold its rows."""

    held: dict[tuple[str, str], list[Held]] = field(default_factory=dict[tuple[str, str], "list[Held]"])
    """By (name, "product" | "lookup" | "norm")."""

    def of(self, step: Step) -> list[Held]:
        """Where the weight of a step is used."""
        for argument, weight in step.weights:
            if argument in ("W", "w"):
                return self.held.get((weight.name, role(step)), [])
        return []


@dataclass
class _Member:
    use: Use
    layer: int | None = None
    kinds: tuple[str, ...] | None = None
    kind: Tensor | None = None
    row: Tensor | None = None
    again: list[Use] = field(default_factory=list[Use])


class Numbering:
    """Puts the uses of one kind into layers."""

    def __init__(self, graph: Graph, spec: Spec, weights: Weights) -> None:
        self.graph, self.spec = graph, spec
        self.known = references(spec, weights)
        self.names: dict[tuple[str, str], list[str]] = {}
        for r in self.known:
            self.names.setdefault((r.what, generic(r.name)), []).append(r.name)
        self.matcher = Matcher(graph, self.known)

    def anchors(self) -> Anchors:
        """All of them."""
        found = Anchors()
        unlike: list[list[_Member]] = []
        for group in self._groups():
            by_kind = self._kinds(group)
            for members in by_kind.values():
                self._number(found, members)
            if not by_kind:
                unlike.append(group)
        for group in unlike:
            self._by_elimination(found, group)
        self._put_norms_in_order(found)
        return found

    def _put_norms_in_order(self, found: Anchors) -> None:
        """Which norm one is, the products around it say, and not its weight: that may be another norm's.

        Only where between all products there are as many norms as the spec has there.
        """
        named = {n: held[0] for (n, what), held in found.held.items() if what == "norm" and len(held) == 1}
        placed = dict[str, Held]()
        for (before, after), names in self._between_products(found).items():
            here = [h for h in named.values() if before < h.use.out < after]
            if len(here) != len(names) or not set(names) <= named.keys():
                return
            placed.update(zip(names, sorted(here, key=lambda h: h.use.out), strict=True))
        found.held.update({(name, "norm"): [held] for name, held in placed.items()})

    def _between_products(self, found: Anchors) -> dict[tuple[int, int], list[str]]:
        """The weights of norms in the order of the spec, by the last product before and the first one after them."""
        steps = [(s, [h.use.out for h in found.of(s)]) for s in self.spec.steps if role(s) in ("product", "norm")]
        products = [outs if role(s) == "product" else [] for s, outs in steps]
        gaps: dict[tuple[int, int], list[str]] = {}
        for i, (step, _) in enumerate(steps):
            if role(step) == "norm":
                before = max((o for outs in products[:i] for o in outs), default=-1)
                after = min((o for outs in products[i:] for o in outs), default=len(self.graph.nodes))
                gaps.setdefault((before, after), []).append(dict(step.weights)["w"].name)
        return gaps

    def _by_elimination(self, found: Anchors, group: list[_Member]) -> None:
        """Constants that are like nothing, where one kind of their shape is left and as many of it."""
        use = group[0].use
        what = "norm" if use.kind == "scaling" else use.kind
        shape = use.matrix(self.graph).shape
        kinds = tuple({
            generic(r.name) for r in self.known
            if r.what == what and r.matrix.shape == shape and (r.name, what) not in found.held
        })  # fmt: skip
        if len(kinds) != 1 or len(group) != len(self.names[what, kinds[0]]):
            return
        rows = torch.arange(shape[0])
        self._number(found, [_Member(m.use, None, kinds, torch.zeros_like(rows), rows, m.again) for m in group])

    def _groups(self) -> Iterator[list[_Member]]:
        groups: dict[object, dict[int, _Member]] = {}
        for use in uses(self.graph):
            leaf = root(self.graph, use.constant)
            name = generic(f".{leaf.owner}") if leaf.owner else None
            key = (use.kind, tuple(self.graph[use.constant].shape), use.rows, name)
            group = groups.setdefault(key, {})
            if leaf.index in group:  # one weight that is used again for the same: a norm for q, for k, for v
                group[leaf.index].again.append(use)
            else:
                group[leaf.index] = self._member(use)
        yield from (self._apart(list(group.values())) for group in groups.values())

    def _apart(self, group: list[_Member]) -> list[_Member]:
        """With each use by itself, in the order of the call, where only so there are as many as layers: some of them
        share a module.
        """
        kinds = next((m.kinds for m in group if m.kinds), ())
        what = "norm" if group[0].use.kind == "scaling" else group[0].use.kind
        wanted = len(self.names.get((what, kinds[0]), ())) if kinds else 0
        every = [use for m in group for use in (m.use, *m.again)]
        if not len(group) < wanted == len(every):
            return group
        return [self._member(use) for use in sorted(every, key=lambda use: use.out)]

    def _member(self, use: Use) -> _Member:
        match = self.matcher.match(use)
        if match is None:
            return _Member(use)
        number, owners, rows = match
        order = list(dict.fromkeys(owners.tolist()))
        kinds = tuple(dict.fromkeys(generic(self.known[n].name) for n in order))
        kind = torch.zeros_like(owners)
        for n in order:
            kind[owners == n] = kinds.index(generic(self.known[n].name))
        name = self.known[number].name
        what = self.known[number].what
        layer = self.names[what, generic(name)].index(name)
        return _Member(use, layer, kinds, kind, rows)

    def _kinds(self, group: list[_Member]) -> dict[object, list[_Member]]:
        """Members by what they hold; those that are like nothing belong where the order of the others says."""
        found: dict[object, list[_Member]] = {}
        keys = [self._key(m) for m in group]
        distinct = list(dict.fromkeys(k for k in keys if k is not None))
        if not distinct:
            return {}
        examples = {k: next(m for m, key in zip(group, keys, strict=True) if key == k) for k in distinct}
        main = self._period(keys, distinct, len(group))
        for place, (member, key) in enumerate(zip(group, keys, strict=True)):
            chosen = main[place % len(main)] if main else key
            if chosen is None:
                continue
            if chosen != key:
                like = examples[chosen]
                again = member.again
                member = _Member(member.use, None, like.kinds, like.kind, like.row, again)
            found.setdefault(chosen, []).append(member)
        return found

    def _period(self, keys: list[object], distinct: list[object], count: int) -> list[object] | None:
        """The order of kinds within a layer, if the group repeats it layer by layer."""
        layers = self.spec.shape.layers
        if count % layers:
            return None
        length = count // layers
        period: list[object] = []
        for place in range(length):
            votes = Counter(k for k in keys[place::length] if k is not None)
            if not votes:
                return None
            period.append(votes.most_common(1)[0][0])
        return period if len(set(period)) == length else None

    def _key(self, member: _Member) -> object:
        if member.kinds is None or member.row is None or member.kind is None:
            return None
        return member.kinds, int(member.row[0]), len(member.row)

    def _number(self, found: Anchors, members: list[_Member]) -> None:
        like = members[0]
        assert like.kinds is not None and like.kind is not None and like.row is not None
        for number, kind in enumerate(like.kinds):
            what = "norm" if like.use.kind in ("norm", "scaling") else like.use.kind
            names = self.names[what, kind]
            for member, name in _layers(members, names):
                assert member.kind is not None and member.row is not None
                there = (member.kind == number).nonzero()[:, 0]
                here = member.row[there]
                found.held.setdefault((name, what), []).append(Held(member.use, there, here, tuple(member.again)))


def _layers(members: Sequence[_Member], names: Sequence[str]) -> Iterator[tuple[_Member, str]]:
    """By order of execution where there are as many as layers; else only where values say an order that rises."""
    if len(members) == len(names):
        yield from zip(members, names, strict=True)
        return
    seen = [m.layer for m in members if m.layer is not None]
    if seen == sorted(set(seen)):
        yield from ((m, names[m.layer]) for m in members if m.layer is not None)
