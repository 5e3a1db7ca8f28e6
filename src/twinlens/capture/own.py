"""The candidate's own tensors, under the checkpoint's names and in its layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from twinlens.capture.anchors import Anchors, Held
from twinlens.capture.graph import LEAF, Graph
from twinlens.capture.matching import role
from twinlens.capture.uses import Use, added, root
from twinlens.capture.wholes import wholes
from twinlens.spec import Spec, Step, Weight, Weights

_BLOCK = 4096
"""Rows of a table that are compared at once."""


def covers(held: Iterable[Held], rows: int) -> bool:
    """Whether the uses together hold every row once."""
    here = torch.cat([h.here for h in held])
    return bool(torch.equal(here.sort().values, torch.arange(rows)))


class OwnWeights:
    """The candidate's own tensors under the checkpoint's names and in its layout, where anchors gave them."""

    def __init__(self, graph: Graph, spec: Spec, weights: Weights, anchors: Anchors) -> None:
        self.graph, self.spec, self._reference, self.anchors = graph, spec, weights, anchors
        self.wholes = wholes(graph, spec, weights)
        self.found: dict[str, Tensor] = {name: graph[leaf] for name, leaf in self.wholes.items()}
        for step in spec.steps:
            for argument, weight in step.weights:
                if weight.name not in self.found:
                    own = self._own(step, argument, weight)
                    if own is not None:
                        self.found[weight.name] = own

    def __call__(self, name: str) -> Tensor:
        """The candidate's own where it was found, else the reference's."""
        return self.found[name] if name in self.found else self._reference(name)

    def _own(self, step: Step, argument: str, weight: Weight) -> Tensor | None:
        if argument in step.op.weight_axes:
            return None
        held = self.anchors.of(step)
        reference = weight.view(self._reference(weight.name))
        if not held or not covers(held, len(reference) if role(step) != "norm" else 1):
            return None
        if argument in ("W", "w"):
            own = self._as_held(held[0].use, self._matrix(held, reference))
            if role(step) == "norm":
                own = self._shift(held[0].use, own, reference, step)
            elif role(step) == "lookup":
                own = _unscaled(own, reference, step)
            elif any(root(self.graph, h.use.constant).function != LEAF for h in held) and _close(own, reference):
                own = reference  # made anew in each call, of what a checkpoint would hold as one
        else:
            own = self.bias(held)
        return None if own is None or own.shape != reference.shape else (own.T if weight.transposed else own)

    def _matrix(self, held: list[Held], reference: Tensor) -> Tensor:
        if len(held) == 1:
            matrix, here = held[0].use.matrix(self.graph), held[0].here
            if torch.equal(here, torch.arange(len(matrix))):
                return matrix.reshape(reference.shape) if reference.ndim == 1 else matrix
        parts = [h.use.matrix(self.graph)[h.there] for h in held]
        here = torch.cat([h.here for h in held])
        return torch.cat(parts)[here.argsort()]

    def _as_held(self, use: Use, matrix: Tensor) -> Tensor:
        """In the dtype of the parameter: a product that casts it computes in another precision, of the same weight."""
        leaf = root(self.graph, use.constant).value
        if leaf is None or leaf.dtype == matrix.dtype or not leaf.is_floating_point():
            return matrix
        plain = matrix.to(leaf.dtype)
        return plain if torch.equal(plain.to(matrix.dtype), matrix) else matrix

    def bias(self, held: list[Held]) -> Tensor | None:
        """What the code adds to a product or a norm, if it adds a constant."""
        parts: list[Tensor] = []
        for h in held:
            rows = len(h.use.matrix(self.graph))
            at = h.use.bias
            if at is None:
                count = rows if h.use.kind == "product" else self.graph[h.use.constant].numel()
                later = added(self.graph, h.use.out, count)
                at = later[1] if later else None
            if at is None or (self.graph[at].numel() != rows and h.use.kind == "product"):
                return None
            flat = self.graph[at].flatten()
            parts.append(flat if h.use.kind in ("norm", "scaling") else flat[h.there])
        if held[0].use.kind in ("norm", "scaling"):
            return parts[0]
        here = torch.cat([h.here for h in held])
        return torch.cat(parts)[here.argsort()]

    def _shift(self, use: Use, constant: Tensor, reference: Tensor, step: Step) -> Tensor:
        """A norm's weight from the factor in use: the checkpoint's, the code's own parameter, or the factor itself."""
        leaf, own = root(self.graph, use.constant), None
        if leaf.owner is not None and leaf.value is not None and leaf.value.numel() == reference.numel():
            own = leaf.value.reshape(reference.shape)
        if _close(constant, reference, step.op.folded):
            return own if own is not None and torch.equal(own, reference) else reference
        if own is not None:
            return own
        return step.op.unfolded(constant).to(reference.dtype)


def _unscaled(table: Tensor, reference: Tensor, step: Step) -> Tensor:
    """An embedding table whose factor was multiplied in beforehand holds the checkpoint's table."""
    row = reference[:1]
    folds = step.op.folded(row) is not row and table.shape == reference.shape
    return reference if folds and _close(table, reference, step.op.folded) else table


def _close(x: Tensor, reference: Tensor, fold: Callable[[Tensor], Tensor] = lambda w: w) -> bool:
    """Whether x is what a weight was folded into, but for the rounding of one multiplication or sum.

    In blocks of rows: an embedding of 256,000 rows fills memory several times over otherwise.
    """
    if x.numel() != reference.numel():
        return False
    rtol = 1e-6 if x.dtype == torch.float32 else 1e-2
    blocks = zip(x.reshape(reference.shape).split(_BLOCK), reference.split(_BLOCK), strict=True)
    return all(torch.allclose(a.float(), fold(b.float()), rtol=rtol, atol=0.0) for a, b in blocks)
