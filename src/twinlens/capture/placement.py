"""Where each site of a model is in the graph of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from twinlens.capture.graph import Graph, Node
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
    later: bool = False
    """Whether earlier calls left slots."""
    path: list[Node] = field(default_factory=list[Node])
    """What the last call made that held these places, without its tensors."""

    def keys(self, sites: Collection[str] | None = None) -> frozenset[int]:
        """Keys of the nodes that hold these sites, or any."""
        return frozenset(self.key(s) for s in self.places if sites is None or s in sites)

    def key(self, site: str) -> int:
        """The key of the node that holds a site, in any call that runs the same code."""
        return self.graph.nodes[self.places[site].node].key

    def holds(self, graph: Graph) -> bool:
        """Whether another call computed the logits, and every site, by the same code from the same constants."""
        logits = self.graph.nodes[self.graph.logits].key == graph.nodes[graph.logits].key
        return logits and self.keys() <= graph.at.keys()

    def followed(self, graph: Graph) -> None:
        """Keep which way a call took that holds these places."""
        if len(self.path) != len(graph.nodes) or any(
            a.key != b.key for a, b in zip(self.path, graph.nodes, strict=True)
        ):
            self.path = bare(graph.nodes)

    def evidence(self, spec: Spec) -> dict[str, str]:
        """Of every site of the spec."""
        return {
            site: self.places[site].evidence if site in self.places else self.unseen.get(site, "missing")
            for site in spec.sites
        }

    def is_sure(self, spec: Spec) -> bool:
        """Whether no site is missing or provisional, so that a module that was mended shows no more than this."""
        return set(self.evidence(spec).values()) <= {"weight", "replay", "weight+replay", "hidden"}

    def of(self, graph: Graph) -> Placement:
        """The same places in a graph that repeats this one, with its own constants."""
        theirs, own = ({node.owner: node.value for node in g.nodes if node.owner} for g in (self.graph, graph))
        anchors = {
            name: _moved(anchor, theirs.get(anchor.owner or ""), own.get(anchor.owner or ""))
            for name, anchor in self.anchors.items()
        }
        return dataclasses.replace(self, graph=graph, anchors=anchors)

    def without_values(self) -> Placement:
        """The same places; of the probe only the shape of its graph is kept."""
        return dataclasses.replace(self, graph=dataclasses.replace(self.graph, nodes=bare(self.graph.nodes)))

    def reads(self, graph: Graph, shape: Shape, sites: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """These sites' tensors, or all, in our layout, from a call of the same code."""
        sizes = sizes_of(shape, graph.tokens, later=self.later)
        for site, place in self.places.items():
            if sites is None or site in sites:
                yield site, place.layout.ours(graph[graph.at[self.key(site)]], sizes)


def bare(nodes: Iterable[Node]) -> list[Node]:
    """The same nodes without their tensors."""
    return [node if node.value is None else node.with_value(None) for node in nodes]


def _moved(anchor: Anchor, theirs: Tensor | None, own: Tensor | None) -> Anchor:
    """The same view of another module's constant; the tensor itself, which is equal, where it is no view of one."""
    if theirs is None or own is None or theirs.stride() != own.stride() or _memory(anchor.tensor) != _memory(theirs):
        return anchor
    start = own.storage_offset() + anchor.tensor.storage_offset() - theirs.storage_offset()
    view = own.detach().as_strided(anchor.tensor.shape, anchor.tensor.stride(), start)
    return dataclasses.replace(anchor, tensor=view)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def sizes_of(shape: Shape, tokens: Tensor, *, later: bool = False) -> dict[str, int]:
    """Sizes of the axes that are known before any tensor is seen; `later`: earlier calls left slots, in each layer
    its own number of them.
    """
    called = {"b": tokens.shape[0], "p": tokens.shape[1]} | ({} if later else {"s": tokens.shape[1]})
    return called | {axis: size for axis, size in shape.axes.items() if axis not in ("d", "v")}
