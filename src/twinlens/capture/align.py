"""Placing sites: by the weights that a call uses, and by replaying each step on the call's own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.capture.anchors import Anchors, Held, Numbering
from twinlens.capture.changed import changed_before
from twinlens.capture.graph import Graph
from twinlens.capture.layout import Layout, layouts
from twinlens.capture.lookahead import Lookahead
from twinlens.capture.matching import role
from twinlens.capture.own import OwnWeights
from twinlens.capture.placement import Anchor, Place, Placement, sizes_of
from twinlens.capture.search import Match, Search, lowest
from twinlens.capture.settling import multiplies, rounds, settled, unwidened
from twinlens.capture.unseen import unseen
from twinlens.capture.uses import SUMS, Use, added, root
from twinlens.capture.values import near
from twinlens.errors import CaptureError
from twinlens.inputs import given
from twinlens.ops import Add, Branch
from twinlens.spec import Spec, Step, Weights, evaluate

FARTHEST = 14
"""Steps that are merged at most to look through hidden sites: a whole attention has eleven."""


def align(
    graph: Graph, spec: Spec, weights: Weights, inputs: Mapping[str, Tensor] | None = None
) -> Placement:  # fmt: skip
    """Where each site of `spec` is in a call's graph; `weights` are the checkpoint's.

    `inputs` are those of a call with a cache, what earlier calls left among them.
    """
    with torch.no_grad():
        return Aligner(graph, spec, weights, inputs).run()


class Aligner:
    """One alignment: what is placed so far, and its values."""

    def __init__(
        self, graph: Graph, spec: Spec, weights: Weights, inputs: Mapping[str, Tensor] | None = None
    ) -> None:  # fmt: skip
        self.graph, self.spec, self.later = graph, spec, inputs is not None
        self.sizes = sizes_of(spec.shape, graph.tokens, later=self.later)
        self.search = Search(graph, self.sizes)
        self.anchors: Anchors = Numbering(graph, spec, weights).anchors()
        self.own = OwnWeights(graph, spec, weights, self.anchors)
        self.places: dict[str, Place] = {}
        self.values: dict[str, Tensor] = (
            given(graph.tokens, graph.mask, changes=spec.inputs) if inputs is None else dict(inputs)
        )
        self.operands: dict[str, Place] = {}
        """Sites that a placed product reads: known even where nothing replays to them."""
        self.product_nodes = {step.writes: [h.use.out for h in self.anchors.of(step)] for step in spec.steps}

    def run(self) -> Placement:
        """Products first, then every site in order, then what only later steps can tell."""
        self._logits()
        for step in self.spec.steps:
            held = self.anchors.of(step)
            if held and role(step) != "lookup":
                self._product(step, held)
        ahead = Lookahead(self)
        idle = self._idle()
        for step in self.spec.steps:
            if step.writes not in self.places and step.writes not in idle:
                self._walk(step, ahead)
        return Placement(self.graph, self._ordered(), self._anchors(), unseen(self), self.later)

    def _idle(self) -> set[str]:
        """Sites inside layers of which no weight is used: what is like them belongs to the layers around."""
        ran = {names.split(s.writes)[0] for s in self.spec.steps if self.anchors.of(s)}
        ends = {"hook_resid_pre", "hook_resid_post"}
        within = {s: names.split(s) for s in self.spec.sites}
        return {s for s, (layer, name) in within.items() if layer is not None and layer not in ran and name not in ends}

    def put(self, site: str, node: int, layout: Layout, evidence: str) -> None:
        """Place a site."""
        self.places[site] = Place(node, layout, evidence)
        self.values[site] = layout.ours(self.graph[node], self.sizes)

    def _logits(self) -> None:
        value, tokens = self.graph[self.graph.logits], self.graph.tokens
        if value.ndim != 3 or tuple(value.shape[:2]) != tuple(tokens.shape):
            raise CaptureError(
                f"the logits have shape {list(value.shape)} where [{tokens.shape[0]}, {tokens.shape[1]}, vocabulary] "
                "was expected for these tokens; return logits of every position."
            )
        layout = Layout(names.axes("logits"), (("b",), ("p",), ("v",)))
        self.put("logits", self.graph.logits, layout, "weight" if self.anchors.of(self.spec.at["logits"]) else "replay")

    def known(self, site: str) -> Place | None:
        """Where a site is, if it is placed or a placed product reads it."""
        return self.operands.get(site) or self.places.get(site)

    @staticmethod
    def is_copy(step: Step) -> bool:
        """A step that gives its read another name: as declared, it hands on the tensor itself."""
        if isinstance(step.op, Branch):
            return step.op.factor == 1.0
        return isinstance(step.op, Add) and len(step.reads) == 1

    # --- products -------------------------------------------------------------------------------

    def _product(self, step: Step, held: list[Held]) -> None:
        """A product's operand is the site that its step reads; what it gives is the site that it writes."""
        read, first = step.reads[0], held[0].use
        if first.kind == "norm":  # the normalised tensor is inside
            self._norm(step, first)
            return
        operand = self._operand(read, unwidened(self.graph, first.x, self.spec.dtype), first.over)
        if operand is not None:
            self._twins(read, self.operands.setdefault(read, operand), held)
        if step.writes in self.places or operand is None:
            return
        x = operand.layout.ours(self.graph[operand.node], self.sizes)
        match = self._given(step, {read: x}, held)
        if match is not None:
            at = settled(
                self.graph, match.node, self.spec.dtype, factors=False, coarser=not rounds(self.spec, step.writes)
            )
            self.put(step.writes, self._with_adapters(at, first.x, step), match.layout, "weight+replay")

    def _twins(self, site: str, operand: Place, held: list[Held]) -> None:
        """Other operands that hold the same values are the same site."""
        value = self.graph[operand.node]
        same = {operand.node} | ({self.places[site].node} if site in self.places else set())
        for use in (use for h in held for use in (h.use, *h.again)):
            node = unwidened(self.graph, use.x, self.spec.dtype)
            theirs = self.graph[node]
            if theirs.shape == value.shape and theirs.dtype == value.dtype and torch.equal(theirs, value):
                same.add(node)
        for node in same if len(same) > 1 else ():
            self.search.twins.setdefault(node, set()).update(same)

    def _with_adapters(self, out: int, x: int, step: Step) -> int:
        """A product with what else is made of its operand and added to it: a low-rank adapter that is not merged."""
        for reader in self.graph.readers[out]:
            node = self.graph.nodes[reader]
            others = [i for i in node.inputs if i != out]
            if node.function in SUMS and len(others) == 1 and self.graph[reader].shape == self.graph[out].shape:
                above = self.search.above[others[0]]
                if above >> x & 1 and not above >> out & 1:
                    self.own.found.pop(step.weights[0][1].name, None)  # what is in use is no tensor of the call
                    return self._with_adapters(reader, x, step)
        return out

    def _given(self, step: Step, reads: Mapping[str, Tensor], held: list[Held]) -> Match | None:
        """Where the step's result is, with its bias or, if the code adds another or none, without."""
        outs = [h.use.out for h in held]
        of = outs if len(outs) == 1 else []
        dtype = next((self.own(w.name).dtype for name, w in step.weights if name == "W"), None)
        values = self.values | {r: x if dtype is None else x.to(dtype) for r, x in reads.items()}

        def find(value: Tensor) -> Match | None:
            return self.search.find(self.search.wanted(step.writes, value), of)

        value = step(values, self.own)
        if all(name != "b" for name, _ in step.weights):
            bias = self.own.bias(held)
            if bias is None or bias.numel() != value[0, 0].numel():
                return find(value)
            return find(value + bias.reshape(value[0, 0].shape)) or find(value)
        match = find(value)
        if match is not None:
            return match
        bare = Step(step.writes, step.op, step.reads, tuple(w for w in step.weights if w[0] != "b"))
        match = find(bare(values, self.own))
        if match is None:
            return None
        later = added(self.graph, match.node, self.graph[match.node].shape[-1])
        if later is not None and self.graph[later[0]].shape == self.graph[match.node].shape:
            return Match(later[0], match.layout, match.distance)
        return match

    def _operand(self, site: str, node: int, over: tuple[int, ...]) -> Place | None:
        """The operand as a site: its summed axes are the site's last ones, the rest batch and position.

        None where shapes do not say which axis the positions are: then values do.
        """
        axes, shape = names.axes(site), tuple(self.graph[node].shape)
        if over:
            inner = prod(shape[a] for a in over)
        else:
            inner = shape[-1]
        sizes = [self.sizes.get(a, inner) for a in axes]
        if len(axes) > 3 and sizes[axes.index("p")] in sizes[axes.index("p") + 1 : -1]:
            return None
        for layout in layouts(axes, tuple(sizes), shape):
            summed = {axis for a in (over or (len(shape) - 1,)) for axis in layout.groups[a]}
            if summed.isdisjoint({"b", "p"}):
                return Place(node, layout, "weight")
        return None

    def _norm(self, step: Step, use: Use) -> None:
        """A norm done at once, or with its factors in another order: what it gives, with the bias if one is added."""
        later = added(self.graph, use.out, self.graph[use.constant].numel()) if use.bias is None else None
        place = self._operand(step.writes, use.out if later is None else later[0], ())
        if place is not None:
            node = settled(self.graph, place.node, self.spec.dtype, factors=False)
            self.put(step.writes, node, place.layout, place.evidence)

    # --- the walk -------------------------------------------------------------------------------

    def _walk(self, step: Step, ahead: Lookahead) -> None:
        site = step.writes
        if self.is_copy(step):
            source = self.places.get(step.reads[0])
            if source is not None:
                self.put(site, source.node, source.layout, source.evidence)
                ahead.reconsider(step, self.values[site])  # a layer may run twice
            return
        value = self.expected(site, self.values)
        operand = self.operands.get(site)
        match = None if value is None or operand is not None else self.match(site, value, self.values)
        if value is not None and match is None and not self._replays(site, value) and changed_before(ahead, step):
            value = self.expected(site, self.values)
            match = None if value is None or operand is not None else self.match(site, value, self.values)
        if operand is not None:
            self._known(site, operand, value)
        elif value is not None and match is not None:
            if step.op.cuts and ahead.leads_elsewhere(step, match, value):
                return
            if self._masks(site, match, value) or ahead.agrees(site, match):
                anchored = "weight+replay" if self.anchors.of(step) else "replay"
                factors = not multiplies(self.spec, step)
                coarser = not rounds(self.spec, site)
                node = settled(self.graph, match.node, value.dtype, factors=factors, coarser=coarser)
                self.put(site, node, match.layout, anchored)
            if site in self.places and ((role(step) == "lookup" and bool(step.weights)) or self._of_chosen(step)):
                ahead.reconsider(step, value)
        if site not in self.places:
            ahead.place(step, value)

    def _known(self, site: str, operand: Place, value: Tensor | None) -> None:
        same = value is not None and self._replays(site, value)
        self.put(site, operand.node, operand.layout, "weight+replay" if same else "weight")

    def _replays(self, site: str, value: Tensor) -> bool:
        """Whether a product reads this value."""
        operand = self.operands.get(site)
        if operand is None:
            return False
        theirs, wanted = operand.layout.ours(self.graph[operand.node], self.sizes), self.search.wanted(site, value)
        return theirs.shape == wanted.value.shape and near(theirs, wanted)

    def _masks(self, site: str, match: Match, value: Tensor) -> bool:
        """Whether a match on allowed scores is also masked where the replay is."""
        if not site.endswith("scores"):
            return True
        hidden = value <= lowest(value)
        theirs = match.layout.ours(self.graph[match.node], self.sizes)[hidden]
        return bool((theirs < theirs.new_tensor(-1e4)).all())

    def expected(self, site: str, given: Mapping[str, Tensor]) -> Tensor | None:
        """The site replayed on what is placed, through hidden sites where need be."""
        steps = self.spec.between(site, given)
        if len(steps) > FARTHEST:
            return None
        try:
            return evaluate(steps, given, self.own, keep=[site])[site]
        except (RuntimeError, ValueError):  # a placed tensor of a width that the step cannot take
            return None

    def match(self, site: str, value: Tensor, given: Mapping[str, Tensor]) -> Match | None:
        """A captured tensor of this value below the tensors that the replay read."""
        latest = names.axes(site)[-1] == "s" and site.endswith("scores")
        return self.search.find(self.search.wanted(site, value), self.below(site, given), latest=latest)

    def below(self, site: str, given: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Nodes from which a site must descend: those of the sites that it is computed from."""
        read = {r for step in self.spec.between(site, given) for r in step.reads if r in self.places}
        return tuple(self.search.moving(self.places[r].node for r in read))

    def _of_chosen(self, step: Step) -> bool:
        """Whether a step gives numbers of what was chosen: they may be changed once more before they are read."""
        last = self.spec.at.get(step.reads[-1])
        return last is not None and last.op.chooses

    # --- the result -----------------------------------------------------------------------------

    def _ordered(self) -> dict[str, Place]:
        return {site: self.places[site] for site in self.spec.sites if site in self.places}

    def _anchors(self) -> dict[str, Anchor]:
        found: dict[str, Anchor] = {}
        for step in self.spec.steps:
            for _, weight in step.weights:
                if weight.name in self.own.found and weight.name not in found:
                    found[weight.name] = self._anchor(weight.name, self.anchors.of(step))
        return found

    def _anchor(self, name: str, held: Iterable[Held]) -> Anchor:
        tensor = self.own.found[name]
        leaves = [root(self.graph, c) for h in held for c in (h.use.constant, h.use.bias) if c is not None]
        leaves += [self.graph.nodes[self.own.wholes[name]]] if name in self.own.wholes else []
        made_of = tuple(dict.fromkeys(leaf.owner for leaf in leaves if leaf.owner is not None))
        same = [
            leaf.owner for leaf in leaves
            if leaf.owner is not None and leaf.value is not None and leaf.value.data_ptr() == tensor.data_ptr()
            and leaf.value.shape == tensor.shape
        ]  # fmt: skip
        return Anchor(name, tensor, same[0] if same else None, made_of)
