"""Where a place of one call is in another call of the same module that took another path: by the code around it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from twinlens.capture.graph import Graph
from twinlens.capture.placement import Placement

Pairs = dict[int, int]
"""Node of the one graph to node of the other."""


class Follower:
    """Finds the nodes of one graph in another, which has more of them, or fewer, or some in other places.

    No value is compared, so that this works for one token in one row as well as for any others.
    """

    def __init__(self, known: Graph, other: Graph) -> None:
        self.known, self.other = known, other
        self.pairs = _pairs(_kinds(known), _kinds(other))
        self.pairs[known.logits] = other.logits

    def __call__(self, node: int) -> int | None:
        """The same node in the other graph; None where there is none, or more than one that may be it.

        A tensor is what is read: of a sum that a loop makes, the one that is read after the loop.
        """
        read = {j for r in self.known.readers[node] if (j := self._read_by(r, node)) is not None}
        itself = self.pairs.get(node)
        at = next(iter(read)) if len(read) == 1 else itself if not read or itself in read else None
        return at if at is not None and self._alike(node, at) else None

    def reader(self, node: int) -> int | None:
        """A node that reads, and not what it gives."""
        return self.pairs.get(node)

    def placement(self, placement: Placement) -> Placement:
        """The places that are there, in the layouts that they had."""
        places = {s: replace(p, node=at) for s, p in placement.places.items() if (at := self(p.node)) is not None}
        return replace(placement, graph=self.other, places=places)

    def _read_by(self, reader: int, node: int) -> int | None:
        at = self.pairs.get(reader)
        if at is None:
            return None
        inputs, theirs = self.known.nodes[reader].inputs, self.other.nodes[at].inputs
        return theirs[inputs.index(node)] if len(inputs) == len(theirs) else None

    def _alike(self, node: int, at: int) -> bool:
        one, two = self.known.nodes[node], self.other.nodes[at]
        return (one.function, one.slot) == (two.function, two.slot)


def _kinds(graph: Graph) -> list[int]:
    """What each node is by itself: its function and those, or the names, of what it reads."""
    named = [node.owner or node.function for node in graph.nodes]
    return [hash((named[n.index], n.function, n.slot, *[named[i] for i in n.inputs])) for n in graph.nodes]


def _pairs(known: Sequence[int], other: Sequence[int]) -> Pairs:
    """Nodes that are the only ones of their kind on both sides, in an order that both have; between them, what a
    comparison of texts finds. A parameter has a name, so that every product is such a node.
    """
    pairs: Pairs = {}
    start, begin = 0, 0
    for i, j in (*_only_ones(known, other), (len(known), len(other))):
        blocks = SequenceMatcher(None, known[start:i], other[begin:j], autojunk=False).get_matching_blocks()
        pairs |= {start + a + n: begin + b + n for a, b, size in blocks for n in range(size)}
        if i < len(known):
            pairs[i] = j
        start, begin = i + 1, j + 1
    return pairs


def _only_ones(known: Sequence[int], other: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The longest run of them that is in order on both sides."""
    once = [{k for k, n in Counter(kinds).items() if n == 1} for kinds in (known, other)]
    at = {kind: j for j, kind in enumerate(other)}
    found = [(i, at[kind]) for i, kind in enumerate(known) if kind in once[0] and kind in once[1]]
    ends, last, before = list[int](), list[int](), list[int]()
    for n, (_, j) in enumerate(found):
        length = bisect_left(ends, j)
        ends[length:] = [j, *ends[length + 1 :]]
        last[length:] = [n, *last[length + 1 :]]
        before.append(last[length - 1] if length else -1)
    run, n = list[int](), last[-1] if last else -1
    while n >= 0:
        run.append(n)
        n = before[n]
    return (found[n] for n in reversed(run))
