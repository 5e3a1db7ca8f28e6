"""Where a site is, when its tensor is made several times, or is that of another site as well."""

from __future__ import annotations

import torch

from twinlens.capture.align import Aligner
from twinlens.capture.placement import Placement
from twinlens.sites import by_slot
from twinlens.spec import Spec


def following(spec: Spec, placement: Placement, site: str) -> list[str]:
    """The nearest visible sites that are computed from one, whatever is a choice or the same tensor left out."""
    node, after, pending = placement.places[site].node, list[str](), [s.writes for s in spec.readers.get(site, ())]
    while pending:
        at = pending.pop()
        place = placement.places.get(at)
        if place is not None and place.node != node and not spec.at[at].op.chooses and not by_slot(at):
            after.append(at)
        else:  # hidden, handed on as it is, or kept in a cache
            pending.extend(s.writes for s in spec.readers.get(at, ()))
    return list(dict.fromkeys(after))


def beside(spec: Spec, placement: Placement, site: str) -> list[str]:
    """Sites that are the same tensor as this one, and not because they are computed from it.

    A norm that is left out gives what it was given: the residual stream, which others read as it is. One table may
    serve where two are declared.
    """
    if Aligner.is_copy(spec.at[site]):
        return []
    node, after = placement.places[site].node, _after(spec, site)
    return [s for s, p in placement.places.items() if p.node == node and s not in after]


def _after(spec: Spec, site: str) -> set[str]:
    """A site, and all that are computed from it."""
    after, pending = {site}, [site]
    while pending:
        new = {s.writes for s in spec.readers.get(pending.pop(), ())} - after
        after |= new
        pending.extend(new)
    return after


def _has_a_double(spec: Spec, placement: Placement, site: str) -> bool:
    """Whether another site has the same values, and neither is computed from the other: two tables that are one."""
    graph, places = placement.graph, placement.places
    own, after = graph[places[site].node], _after(spec, site)
    return any(
        s not in after and graph[p.node].shape == own.shape and torch.equal(graph[p.node], own)
        and site not in _after(spec, s)
        for s, p in places.items()
    )  # fmt: skip


def readers_of(spec: Spec, placement: Placement, site: str) -> list[int]:
    """The nodes that read a site's tensor on the way to the sites that are computed from it."""
    graph, node = placement.graph, placement.places[site].node
    ends = [placement.places[s].node for s in following(spec, placement, site)]
    above = graph.above(ends)
    near = above & _leading(spec, placement, site).union(ends) if _has_a_double(spec, placement, site) else above
    return [r for r in graph.readers[node] if r in near]


def _leading(spec: Spec, placement: Placement, site: str) -> set[int]:
    """Nodes from which the nearest sites that are computed from one are made, without any other site between."""
    graph, places = placement.graph, placement.places
    others = {p.node for s, p in places.items() if not spec.at[s].op.chooses and not by_slot(s)}
    own = graph[places[site].node]
    ends = {n for n in others if not (graph[n].shape == own.shape and torch.equal(graph[n], own))}
    pending = [i for s in following(spec, placement, site) for i in graph.nodes[places[s].node].inputs]
    found = set[int]()
    while pending:
        node = pending.pop()
        if node not in found and node not in ends:
            found.add(node)
            pending.extend(graph.nodes[node].inputs)
    return found


def copies(spec: Spec, placement: Placement, site: str) -> list[int]:
    """The nodes that hold a site, each made anew: an implementation may compute one thing several times.

    Where another site has the same values, a copy is whose it leads to.
    """
    nodes = _alike(placement, site)
    if len(nodes) == 1 or not _has_a_double(spec, placement, site):
        return nodes
    leading = _leading(spec, placement, site)
    return [n for n in nodes if n in leading] or nodes


def _alike(placement: Placement, site: str) -> list[int]:
    graph, node = placement.graph, placement.places[site].node
    kept = graph[node]
    same = [
        n.index
        for n in graph.nodes[node + 1 :]
        if n.function == graph.nodes[node].function
        and n.value is not None
        and n.value.shape == kept.shape
        and n.index in graph.live
        and torch.equal(n.value, kept)
    ]
    below = graph.below([node])
    found = [node]
    for index in same:
        if index not in below:
            found.append(index)
            below |= graph.below([index])
    return found
