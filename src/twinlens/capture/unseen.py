"""Why a site has no place: it is hidden, inside one kernel or cut into its parts, or it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from twinlens.capture.uses import MOVES
from twinlens.spec import Step

if TYPE_CHECKING:
    from twinlens.capture.align import Aligner

KERNELS = {
    "scaled_dot_product_attention": ("Scores", "Softmax"),
    "layer_norm": ("Normalize",),
    "rms_norm": ("Normalize",),
    "native_layer_norm": ("Normalize",),
}
"""Torch functions that compute several steps at once, and the operations whose sites they hide."""
_FAR = 8
"""Places after a site that are looked at."""


def unseen(a: Aligner) -> dict[str, str]:
    """For each site that has no place "hidden" or "missing"."""
    return {s.writes: _reason(a, s) for s in a.spec.steps if s.writes not in a.places}


def _reason(a: Aligner, step: Step) -> str:
    """Hidden where what comes after it was made from what comes before in one kernel, or from all its parts."""
    before = a.below(step.writes, a.values)
    for node in _places_after(a, step.writes):
        at = a.graph.nodes[node]
        while at.function in MOVES and at.inputs:
            at = a.graph.nodes[at.inputs[0]]
        if at.function in KERNELS and a.search.descends(at.index, before):
            return "hidden"
    readers = a.spec.readers.get(step.writes, ())
    cut = len(readers) > 1 and all(s.writes in a.places for s in readers) and bool(a.anchors.of(step))
    return "hidden" if cut else "missing"


def _places_after(a: Aligner, site: str) -> Iterator[int]:
    """The next nodes that are placed, of all that read a site."""
    found, pending = 0, [s.writes for s in a.spec.readers.get(site, ())]
    while pending:
        at = pending.pop()
        if at in a.places:
            found += 1
            yield a.places[at].node
        elif found < _FAR:
            pending.extend(s.writes for s in a.spec.readers.get(at, ()))
