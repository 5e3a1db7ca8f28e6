"""Finding a captured tensor by its value, in whatever layout it is held."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.capture.graph import Graph
from twinlens.capture.layout import TOLERANCE, Layout, Wanted, distance, layouts, tolerance, variants

LOWEST = -1e30
"""Below this, a score is a mask's: -inf and finfo.min are the same (finfo.min of float16 is never masked deeper)."""

COARSEST = 1.01 * max(TOLERANCE.values())
"""Norms farther apart than this, relative to their size, are not looked at."""


def lowest(scores: Tensor) -> float:
    """Where masks begin in the dtype of some scores."""
    return max(LOWEST, torch.finfo(scores.dtype).min / 2)


@dataclass(frozen=True)
class Match:
    """A node that holds a value, how it is laid out, how far it is from what was wanted."""

    node: int
    layout: Layout
    distance: float


def wanted(site: str, value: Tensor, mask: Tensor | None) -> Wanted:
    """A site's value with the entries that count: real rows, and of scores those that are not masked."""
    axes, counts = names.axes(site), None
    if axes[-1] == "s" and names.split(site)[1].endswith("scores"):
        counts = value > lowest(value)
    if axes[0] == "b" and bool((value == value[:1]).all()):
        mask = None  # a table of positions: padding changes nothing in it
    if mask is not None and not bool(mask.all()) and "p" in axes and value.shape[0] == mask.shape[0]:
        rows = mask.bool().reshape([mask.shape["bp".index(a)] if a in "bp" else 1 for a in axes])
        counts = rows.expand(value.shape) if counts is None else counts & rows
    return Wanted(value, axes, counts)


class Search:
    """The captured tensors of one call, found by size and norm first."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        self.graph, self.sizes = graph, sizes
        self.above = _ancestors(graph)
        self.twins: dict[int, set[int]] = _chosen(graph)
        """Nodes that hold the same site again: a norm done once for q, once for k, once for v; or that are told by the
        same choice: the largest scores, and where they stand."""
        self._norms: dict[int, float] = {}
        self._by_norm: dict[tuple[int, bool], tuple[list[float], list[int]]] = {}
        self._by_size: dict[tuple[int, bool], list[int]] = {}
        for node in graph.nodes:
            value = node.value
            if node.index in graph.live and value is not None and not value.is_complex() and value.dtype != torch.bool:
                self._by_size.setdefault((value.numel(), not value.is_floating_point()), []).append(node.index)

    def descends(self, node: int, of: Iterable[int]) -> bool:
        """Whether a node is, or descends from, each of these."""
        return all(
            self.above[node] >> i & 1 or (i in self.twins and any(self.above[node] >> t & 1 for t in self.twins[i]))
            for i in of
        )

    def moving(self, nodes: Iterable[int]) -> Iterator[int]:
        """Those that descend from the tokens: a table may be cut from its buffer anew for each use."""
        return (node for node in nodes if self.graph.nodes[node].tokens)

    def nodes(
        self, count: int, of: Iterable[int], before: Iterable[int] = (), *, whole: bool = False,
        size: float | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Nodes of `count` entries, `whole` numbers or not, of about a norm, that descend from `of`, and each of
        `before` from them.
        """
        above, needed, groups = tuple(before), 0, list[int]()
        for i in of:
            if i in self.twins:
                groups.append(1 << i | sum(1 << t for t in self.twins[i] if t != i))
            else:
                needed |= 1 << i
        for node in self._by_size.get((count, whole), ()) if size is None else self._of_norm(count, whole, size):
            bits = self.above[node]
            if (
                bits & needed == needed
                and all(bits & g for g in groups)
                and all(self.above[b] >> node & 1 for b in above)
            ):
                yield node

    def wanted(self, site: str, value: Tensor) -> Wanted:
        """A site's value with the entries that count in this call."""
        return wanted(site, value, self.graph.mask)

    def find(self, wanted: Wanted, of: Iterable[int], *, latest: bool = False) -> Match | None:
        """The node nearest to a value, if it is near enough; the earliest of equals, or the latest."""
        best: Match | None = None
        for match in self.matches(wanted, tuple(of)):
            closer = best is None or match.distance < best.distance
            if closer or (latest and best is not None and match.distance == best.distance):
                best = match
            if best is not None and best.distance == 0.0 and not latest:
                break
        return best

    def matches(self, wanted: Wanted, of: tuple[int, ...]) -> Iterator[Match]:
        """Every node that is near enough."""
        for form in variants(wanted):
            size = math.sqrt(float(form.value.float().square().sum())) if form.counts is None else None
            for node in self._sized(form, of, size):
                match = self._compare(node, form, size)
                if match is not None:
                    yield match

    def _sized(self, form: Wanted, of: tuple[int, ...], size: float | None) -> Iterator[int]:
        count = form.value.numel()
        yield from self.nodes(count, of, whole=not form.value.is_floating_point(), size=size)
        if "k" in form.axes:
            for copies in range(2, 1 + self.sizes["h"] // self.sizes["k"]):
                yield from self.nodes(count * copies, of, size=None if size is None else size * math.sqrt(copies))

    def _of_norm(self, count: int, whole: bool, size: float) -> Sequence[int]:
        """Nodes whose norm may be near to `size`, in the order of the call."""
        among = self._by_size.get((count, whole), [])
        if not math.isfinite(size):
            return among
        if (count, whole) not in self._by_norm:
            ranked = sorted((norm, node) for node in among if math.isfinite(norm := self.norm(node)))
            self._by_norm[count, whole] = [norm for norm, _ in ranked], [node for _, node in ranked]
        norms, nodes = self._by_norm[count, whole]
        off = COARSEST * size + 1e-30
        return sorted(nodes[bisect_left(norms, size - off) : bisect_right(norms, size + off)])

    def _compare(self, node: int, form: Wanted, size: float | None) -> Match | None:
        theirs = self.graph[node]
        close = tolerance(theirs, form.value)
        copies = theirs.numel() // form.value.numel()
        if size is not None and abs(self.norm(node) / math.sqrt(copies) - size) > close * size + 1e-30:
            return None
        sizes = dict(zip(form.axes, form.value.shape, strict=True))
        best: Match | None = None
        for layout in layouts(form.axes, tuple(form.value.shape), tuple(theirs.shape)):
            off = distance(layout.ours(theirs, sizes), form)
            if off <= close and (best is None or off < best.distance):
                best = Match(node, dataclasses.replace(layout, paired=form.paired), off)
            if off == 0.0:
                break
        return best

    def norm(self, node: int) -> float:
        """Root of the sum of squares."""
        if node not in self._norms:
            self._norms[node] = math.sqrt(float(self.graph[node].float().square().sum()))
        return self._norms[node]


CHOICES = frozenset(("topk", "sort", "max", "min"))


def _chosen(graph: Graph) -> dict[int, set[int]]:
    pairs = [
        {node.index, node.index - 1} for node in graph.nodes
        if node.function in CHOICES and node.slot == 1 and graph.nodes[node.index - 1].inputs == node.inputs
    ]  # fmt: skip
    return {i: pair for pair in pairs for i in pair}


def _ancestors(graph: Graph) -> list[int]:
    """For each node the set of nodes it descends from, as bits."""
    found: list[int] = []
    for node in graph.nodes:
        bits = 1 << node.index
        for i in node.inputs:
            bits |= found[i]
        found.append(bits)
    return found
