"""Where on one path of a module's code sites are replaced, and one call in which they are."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from twinlens.capture.align import Aligner
from twinlens.capture.arguments import Arguments
from twinlens.capture.follow import Follower
from twinlens.capture.graph import Graph
from twinlens.capture.lines import Line, line_at_work
from twinlens.capture.placement import Placement, sizes_of
from twinlens.capture.search import wanted
from twinlens.capture.tracer import Replacement, Tracer
from twinlens.capture.values import near
from twinlens.errors import CaptureError
from twinlens.sites import by_slot
from twinlens.spec import Spec, Weights, evaluate

Value = Callable[[Mapping[str, Tensor]], Tensor]
"""From the sites so far, in our layout, and the inputs, to the value that a site shall have."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Of each site that is replaced, the nodes that hold it, or those that read it where others read it as it is.

    `shown` are the sites that its value may be computed from.
    """

    placement: Placement
    put: Mapping[str, list[int]]
    fed: Mapping[str, list[int]]
    shown: Mapping[str, list[str]]
    first: Plan | None = None
    """From which this one was followed, by the code alone; None of one that was placed by values."""
    later: bool = False
    """Whether it is of calls that go on from what earlier ones left."""

    @property
    def sites(self) -> list[str]:
        """Those that are replaced."""
        return [*self.put, *self.fed]

    @property
    def origin(self) -> Plan:
        """The one that was placed by values."""
        return self.first or self

    @classmethod
    def of(
        cls, placement: Placement, spec: Spec, sites: list[str], *, later: bool = False,
        unread: Mapping[str, Collection[str]] | None = None,
    ) -> Plan:  # fmt: skip
        """On the path on which the sites were placed; `unread` are those that a site is not to be computed from."""
        put, fed, shown = dict[str, list[int]](), dict[str, list[int]](), dict[str, list[str]]()
        for site in sites:
            beside, readers = _beside(spec, placement, site), _readers(spec, placement, site)
            if beside and readers:
                fed[site] = readers
            else:
                put[site], beside = copies(spec, placement, site), []
            node = placement.places[site].node
            others = [s for s, p in placement.places.items() if p.node != node or s in beside]
            without = (unread or {}).get(site, ())
            shown[site] = [s for s in others if s not in without and not by_slot(s)]  # a cache may be what is mended
        return cls(placement.without_values(), put, fed, shown, later=later)

    def on(self, graph: Graph) -> Plan | None:
        """On another path; None where a site is not there, or something that reads it."""
        at = Follower(self.placement.graph, graph)
        placement = at.placement(self.placement)
        put = {site: [at(n) for n in nodes] for site, nodes in self.put.items()}
        fed = {site: [at.reader(n) for n in nodes] for site, nodes in self.fed.items()}
        if not {*put, *fed} <= placement.places.keys() or any(None in n for n in (*put.values(), *fed.values())):
            return None
        known = [{s: [n for n in nodes if n is not None] for s, nodes in d.items()} for d in (put, fed)]
        shown = {site: [s for s in shown if s in placement.places] for site, shown in self.shown.items()}
        return Plan(placement.without_values(), known[0], known[1], shown, self.origin, self.later)

    def expected(self) -> set[int]:
        """Keys of the nodes at which something is replaced."""
        nodes = self.placement.graph.nodes
        return {nodes[n].key for places in (*self.put.values(), *self.fed.values()) for n in places}

    def holds(self, graph: Graph) -> bool:
        """Whether a call took this path to its end: a loop that went on longer met each of these nodes, too."""
        own = self.placement.graph
        same_end = graph.nodes[graph.logits].key == own.nodes[own.logits].key
        return same_end and self.expected() <= graph.at.keys()


class Run:
    """One call of a grafted module by a plan."""

    def __init__(self, module: Any, spec: Spec, plan: Plan, values: Mapping[str, Value], call: Arguments) -> None:
        self.spec, self.plan, self.values, self.call, self.module = call.steps(spec), plan, values, call, module
        self.inputs = call.inputs(spec)
        self.sizes = sizes_of(spec.shape, call.tokens, later=call.before is not None)
        placement, functions, fed = plan.placement, dict[int, Replacement](), dict[int, tuple[int, Replacement]]()
        nodes = placement.graph.nodes
        for site, these in plan.put.items():
            functions |= {nodes[n].key: self._function(site, nodes[n].key) for n in these}
        for site, these in plan.fed.items():
            key = placement.key(site)
            fed |= {nodes[n].key: (key, self._function(site, key)) for n in these}
        self.tracer = Tracer(module, call.tokens, call.mask, placement.keys(), functions, fed)
        self.made: dict[str, Tensor] = {}
        """What was put in, in our layout."""
        self.lines: dict[str, Line | None] = {}
        """Where the code computes what was replaced."""

    def __call__(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What the forward returns."""
        with torch.no_grad(), self.tracer:
            return forward(*args, **kwargs)

    def complete(self, graph: Graph) -> bool:
        """Whether the call took the path of the plan, so that every site was replaced where it is read."""
        return self.plan.holds(graph) and self.plan.expected() <= self.tracer.replaced

    def found(self, tensors: Mapping[int, Tensor], sites: list[str]) -> Mapping[str, Tensor]:
        """These sites, as far as they are there yet, and the inputs."""
        return Shown(self, {s: tensors[k] for s in sites if (k := self.plan.placement.key(s)) in tensors})

    def agreeing(self, graph: Graph, weights: Weights) -> set[str]:
        """Of the sites that are computed from what was put in, those that are what their steps make of it."""
        found = self.showed(graph)
        return {s for site in self.plan.sites for s in self.checks(site) if self._agrees(s, found, weights)}

    def showed(self, graph: Graph) -> Mapping[str, Tensor]:
        """The sites of the call as they are read, so that another call can go on from them."""
        tensors = {n.key: n.value for n in graph.nodes if n.value is not None}
        sites = [s for s in self.plan.placement.places if not by_slot(s)]
        return ChainMap(self.made, cast("dict[str, Tensor]", self.found(tensors, sites)))

    def checks(self, site: str) -> list[str]:
        """The sites that show whether one was put in the right place: the nearest that are computed from it."""
        return [s for s in following(self.spec, self.plan.placement, site) if self.call.can(self.spec.at[s])]

    def _agrees(self, site: str, found: Mapping[str, Tensor], weights: Weights) -> bool:
        steps = self.spec.between(site, [s for s in found if s != site])
        if site not in found or not all(self.call.can(s) for s in steps):
            return False
        try:
            reads = {r: found[r] for s in steps for r in s.reads if r in found}
            theirs = found[site]
            value = self._asked(site, evaluate(steps, reads, weights, keep=[site])[site], theirs)
        except (RuntimeError, ValueError):  # a tensor that cannot be what it was taken for
            return False
        return theirs.shape == value.shape and near(theirs, wanted(site, value, self.call.mask))

    def _asked(self, site: str, value: Tensor, like: Tensor) -> Tensor:
        """Of logits those of the last positions, where no more were asked for."""
        last = self.call.last
        return value[:, -last:] if site == "logits" and last is not None and like.shape[1] == last else value

    def _function(self, site: str, key: int) -> Replacement:
        place, shown = self.plan.placement.places[site], self.plan.shown[site]

        def replaced(tensors: Mapping[int, Tensor]) -> Tensor:
            try:
                like = tensors[key]
                value = self._asked(site, self.values[site](self.found(tensors, shown)), like)
                theirs = place.layout.fitted(like, self.sizes).theirs(value, like)
            except (RuntimeError, KeyError, ValueError) as error:
                raise CaptureError(
                    f"{site} cannot be computed by its graft for tokens of shape {list(self.call.tokens.shape)} "
                    f"({error}); call the module as it was compared."
                ) from error
            self.made[site] = value
            self.lines[site] = line_at_work()
            return theirs

        return replaced


class Shown(Mapping[str, Tensor]):
    """Sites in our layout, each made when it is asked for: most are not."""

    def __init__(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        self._run, self._tensors = run, tensors

    def __getitem__(self, site: str) -> Tensor:
        run = self._run
        if site in run.inputs:
            return run.inputs[site]
        tensor, layout = self._tensors[site], run.plan.placement.places[site].layout
        return layout.fitted(tensor, run.sizes).ours(tensor, run.sizes)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._run.inputs, *self._tensors))

    def __len__(self) -> int:
        return len(self._run.inputs) + len(self._tensors)


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


def _beside(spec: Spec, placement: Placement, site: str) -> list[str]:
    """Sites that are the same tensor as this one, and not because they are computed from it.

    A norm that is left out gives what it was given: the residual stream, which others read as it is. One table may
    serve where two are declared.
    """
    if Aligner.is_copy(spec.at[site]):
        return []
    node, after, pending = placement.places[site].node, {site}, [site]
    while pending:
        new = {s.writes for s in spec.readers.get(pending.pop(), ())} - after
        after |= new
        pending.extend(new)
    return [s for s, p in placement.places.items() if p.node == node and s not in after]


def _readers(spec: Spec, placement: Placement, site: str) -> list[int]:
    """The nodes that read a site's tensor on the way to the sites that are computed from it."""
    graph, node = placement.graph, placement.places[site].node
    ends = [placement.places[s].node for s in following(spec, placement, site)]
    near, above = _leading(spec, placement, site).union(ends), graph.above(ends)
    readers = graph.readers[node]
    return [r for r in readers if r in near] or [r for r in readers if r in above]


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

    Two sites may be alike where one has what is the other's: such a copy leads to other sites, and is none.
    """
    nodes, leading = _alike(placement, site), _leading(spec, placement, site)
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
