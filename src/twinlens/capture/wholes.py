"""Weights that code holds as the checkpoint does: a matrix for each expert, a number for each head or expert.

They are no matrix whose rows could be told apart, so that each is one leaf of its shape; which one is said by the
order in which leaves of one name are first used, and by their entries where several names have the shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinlens.capture.anchors import generic
from twinlens.capture.graph import LEAF, Graph, Node
from twinlens.spec import Spec, Weights

_SAMPLE = 64


def wholes(graph: Graph, spec: Spec, weights: Weights) -> dict[str, int]:
    """For each such weight, by its name, the leaf that holds it."""
    groups: dict[tuple[tuple[int, ...], str], list[Node]] = {}
    for node in graph.nodes:
        if node.function == LEAF and node.index in graph.live and node.value is not None and node.value.ndim:
            groups.setdefault((tuple(node.value.shape), generic(f".{node.owner}")), []).append(node)
    found: dict[str, int] = {}
    for names in _kinds(spec):
        tensors = [weights(name) for name in names]
        fit = [g for (shape, _), g in groups.items() if shape == tuple(tensors[0].shape) and len(g) == len(names)]
        if len(fit) > 1 and not any(_alike(t, n.value) for g in fit for t, n in zip(tensors, g, strict=True)):
            fit = [g for g in fit if not _is_another(g, spec, weights)]
        likes = [sum(map(_alike, tensors, (n.value for n in g))) for g in fit]
        best = [g for g, like in zip(fit, likes, strict=True) if like == max(likes) and (like or len(fit) == 1)]
        if len(best) == 1:
            found.update(zip(names, (n.index for n in best[0]), strict=True))
    return found


def _is_another(group: list[Node], spec: Spec, weights: Weights) -> bool:
    """Whether the leaves hold a weight that is told by its rows: a router's is as wide as a bias of its experts."""
    rest = {w.name for s in spec.steps for a, w in s.weights if a not in s.op.weight_axes}
    return all(any(_alike(weights(name), node.value) for name in rest) for node in group)


def _kinds(spec: Spec) -> Iterator[list[str]]:
    """Their names in the order of the spec, those that differ in their layer together."""
    kinds: dict[str, list[str]] = {}
    for step in spec.steps:
        for argument, weight in step.weights:
            if argument in step.op.weight_axes:
                kinds.setdefault(generic(weight.name), []).append(weight.name)
    yield from kinds.values()


def _alike(x: Tensor, y: Tensor | None) -> bool:
    if y is None or x.shape != y.shape:
        return False
    return x.data_ptr() == y.data_ptr() or torch.equal(x.flatten()[:_SAMPLE].float(), y.flatten()[:_SAMPLE].float())
