"""Where on one path of a module's code sites are replaced, and one call in which they are."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from twinlens.capture.arguments import Arguments
from twinlens.capture.copies import beside, copies, following, readers_of
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
            alike, readers = beside(spec, placement, site), readers_of(spec, placement, site)
            if alike and readers:
                fed[site] = readers
            else:
                put[site], alike = copies(spec, placement, site), []
            node = placement.places[site].node
            others = [s for s, p in placement.places.items() if p.node != node or s in alike]
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
