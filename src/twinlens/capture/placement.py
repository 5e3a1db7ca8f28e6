"""Where each site of a model is in the graph of a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from twinlens import sites as names
from twinlens.capture.graph import Graph
from twinlens.capture.layout import Layout
from twinlens.spec import Shape, Spec

VISIBLE = ("weight", "replay", "weight+replay", "provisional")


@dataclass(frozen=True)
class Place:
    """A site is the tensor of `node`, laid out as `layout` says. `evidence` is one of `VISIBLE`."""

    node: int
    layout: Layout
    evidence: str


@dataclass(frozen=True)
class Anchor:
    """The candidate's own tensor under a checkpoint's name, in the checkpoint's layout.

    `owner` is its qualified name in the module where it is one parameter or buffer, else None: it was cut
    out of, or computed from, others, whose names are in `made_of`.
    """

    name: str
    tensor: Tensor
    owner: str | None
    made_of: tuple[str, ...] = ()


@dataclass(eq=False)
class Placement:
    """Places by site; the constants that are tensors of the checkpoint; for each other site why it is not seen.

    `unseen`: site -> "hidden" (inside one kernel, or cut into its parts) or "missing".
    """

    graph: Graph
    places: dict[str, Place]
    anchors: dict[str, Anchor] = field(default_factory=dict[str, Anchor])
    unseen: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def nodes(self) -> frozenset[int]:
        """Every node that holds a site."""
        return frozenset(place.node for place in self.places.values())

    def evidence(self, spec: Spec) -> dict[str, str]:
        """Of every site of the spec."""
        return {
            site: self.places[site].evidence if site in self.places else self.unseen.get(site, "missing")
            for site in spec.sites
        }

    def reads(self, graph: Graph, shape: Shape) -> Iterator[tuple[str, Tensor]]:
        """Each site's tensor in our layout, from a call with the same graph."""
        sizes = sizes_of(shape, graph.tokens)
        for site, place in self.places.items():
            yield site, place.layout.ours(graph[place.node], sizes)


def sizes_of(shape: Shape, tokens: Tensor) -> dict[str, int]:
    """Sizes of the axes that are known before any tensor is seen."""
    return {
        "b": tokens.shape[0],
        "p": tokens.shape[1],
        "s": tokens.shape[1],
        "h": shape.heads,
        "k": shape.kv_heads,
        "e": shape.head_width,
    }


def shape_of(site: str, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
    """A site's shape as far as it is known."""
    return tuple(sizes.get(axis) for axis in names.axes(site))
