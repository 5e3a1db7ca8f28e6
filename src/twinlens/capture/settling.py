"""From where a value was found to the tensor that is read: it may be cast, or multiplied, once more on the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from twinlens.capture.graph import Graph
from twinlens.capture.uses import FACTORS, MOVES, TURNS, by_a_number
from twinlens.fields import kinds
from twinlens.ops import Append
from twinlens.spec import Spec, Step

CASTS = frozenset(("to", "float", "double", "half", "bfloat16", "type", "type_as"))
"""Functions that change the dtype of entries."""


def settled(graph: Graph, node: int, dtype: torch.dtype, *, factors: bool, coarser: bool = True) -> int:
    """The tensor that is read for the one in which a site's value was found.

    While nobody else reads it, a cast of it is the same site, up to where it has the dtype that is declared: what
    is cast from there on is the next step's own precision. So is the product with a number, where `factors` says
    that the steps which read the site have none of their own that it could be. With `coarser` false a rounding to less
    than what is declared is the next step's, too: a cache's.
    """
    last = node
    for at in _changed(graph, node, factors=factors):
        if not coarser and is_coarser(graph[at].dtype, dtype):
            break
        if graph[at].dtype == dtype:
            last = at
    return last


def is_coarser(a: torch.dtype, b: torch.dtype) -> bool:
    """Whether a dtype holds less of a number than another one."""
    return not a.is_floating_point or torch.finfo(a).eps > torch.finfo(b).eps


def rounds(spec: Spec, site: str) -> bool:
    """Whether it is kept in a cache, which may have a precision of its own."""
    return any(isinstance(s.op, Append) for s in spec.readers.get(site, ()))


def unwidened(graph: Graph, node: int, dtype: torch.dtype) -> int:
    """The tensor of the declared dtype of which a product reads a cast: a wider one is the product's own precision."""
    at = node
    while graph.nodes[at].function in CASTS and graph[at].dtype != dtype:
        at = graph.nodes[at].inputs[0]
        if graph[at].shape != graph[node].shape or not graph[at].is_floating_point():
            return node
    return at if graph[at].dtype == dtype else node


def multiplies(spec: Spec, step: Step) -> bool:
    """Whether a step that reads the site has a number, so that a factor on the way may be its own."""
    return any(kind.name == "number" for s in spec.readers.get(step.writes, ()) for _, kind, _ in kinds(s.op))


def _changed(graph: Graph, node: int, *, factors: bool) -> Iterator[int]:
    """What a tensor becomes, entry by entry, while it has one reader."""
    at = node
    while True:
        readers = [r for r in graph.readers[at] if r in graph.live]
        if at == graph.logits or len(readers) != 1:
            return
        [reader] = readers
        function, shape = graph.nodes[reader].function, graph[at].shape
        moved = (function in MOVES and function not in TURNS) or function in CASTS
        scaled = factors and function in FACTORS and by_a_number(graph, reader, at)
        if graph[reader].shape != shape or graph.nodes[reader].inputs[0] != at or not (moved or scaled):
            return
        yield reader
        at = reader
