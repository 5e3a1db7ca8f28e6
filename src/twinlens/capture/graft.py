"""A graft: where a module computes a site, another value takes its place, in the module's own layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.capture.align import Aligner, align
from twinlens.capture.calling import Call, invoke, logits_of
from twinlens.capture.graph import Graph
from twinlens.capture.placement import Placement, sizes_of
from twinlens.capture.recorder import PROBE_LENGTH, probe
from twinlens.capture.tracer import Replacement, Tracer
from twinlens.errors import CaptureError
from twinlens.inputs import given
from twinlens.spec import Spec, Weights

Value = Callable[[Mapping[str, Tensor]], Tensor]
"""From the sites so far, in our layout, and the inputs, to the value that a site shall have."""


@dataclass(eq=False)
class Graft:
    """What was put into a module; `remove` takes it out again."""

    module: nn.Module
    forward: Callable[..., Any]
    """The forward that the module had."""

    def remove(self) -> None:
        """Give the module its own forward back."""
        self.module.__dict__.pop("forward", None)
        if getattr(self.forward, "__func__", None) is not type(self.module).forward:  # not the class's own
            self.module.forward = self.forward


def graft(
    module: nn.Module, spec: Spec, weights: Weights, replacements: Mapping[str, Value], *,
    mask: Tensor | None = None, call: Call | None = None,
) -> Graft:  # fmt: skip
    """From now on every call of `module` computes these sites by other functions.

    One short call is made to see where the sites are within the module's forward; `mask` is that of the calls to
    come, where they are padded. Later calls must run the same code: one with a cache, say, is refused with a
    CaptureError, as is a site that cannot be seen.
    """
    forward = module.forward
    placement = _within(module, spec, weights, *probe(spec, mask), call)
    missing = [s for s in replacements if s not in placement.places]
    if missing:
        raise CaptureError(f"{missing[0]} is not visible in {type(module).__name__}; nothing can be put in its place.")

    known = [placement]

    @functools.wraps(forward)
    def grafted(*args: Any, **kwargs: Any) -> Any:
        tokens, mask = _inputs(args, kwargs)
        for attempt in _placements(known, module, spec, weights, forward, args, kwargs):
            run = _Run(module, spec, attempt, replacements, tokens, mask)
            out = run(forward, args, kwargs)
            if run.complete:
                return out
        raise CaptureError(
            "the mended module runs other code than when it was mended (a cache that is handed in, say); "
            "call it as it was compared, or fix it again."
        )

    module.forward = grafted
    return Graft(module, forward)


def _within(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, mask: Tensor | None, call: Call | None
) -> Placement:
    """Where the sites are in what happens inside the module's forward, whatever calls it."""
    graphs: list[Graph] = []
    forward = module.forward

    @functools.wraps(forward)
    def traced(*args: Any, **kwargs: Any) -> Any:
        tracer = Tracer(module, *_inputs(args, kwargs))
        with torch.no_grad(), tracer:
            out = forward(*args, **kwargs)
        graphs.append(tracer.close(module, logits_of(out, module)))
        return out

    made = Graft(module, forward)
    module.forward = traced
    try:
        with torch.no_grad():
            invoke(module, tokens, mask, call)
    finally:
        made.remove()
    return align(graphs[-1], spec, weights)


def _placements(
    known: list[Placement], module: nn.Module, spec: Spec, weights: Weights, forward: Callable[..., Any], args: Any,
    kwargs: Mapping[str, Any],
) -> Iterator[Placement]:  # fmt: skip
    """Those of calls seen before; then that of this one, seen on its last tokens.

    A call that is handed a cache would fill it at each attempt, so it gets one only.
    """
    if any(value is not None for name, value in kwargs.items() if name.startswith("past_key")):
        yield known[0]
        return
    yield from list(known)
    length = _inputs(args, kwargs)[0].shape[-1]

    def cut(value: Any) -> Any:
        along = isinstance(value, Tensor) and value.ndim == 2 and value.shape[-1] == length
        return value[:, -PROBE_LENGTH:] if along else value

    short, named = [cut(a) for a in args], {name: cut(value) for name, value in kwargs.items()}
    tracer = Tracer(module, *_inputs(short, named))
    with torch.no_grad(), tracer:
        out = forward(*short, **named)
    known.append(align(tracer.close(module, logits_of(out, module)), spec, weights))
    yield known[-1]


class _Run:
    """One call of a grafted module."""

    def __init__(
        self, module: nn.Module, spec: Spec, placement: Placement, replacements: Mapping[str, Value], tokens: Tensor,
        mask: Tensor | None,
    ) -> None:  # fmt: skip
        self.spec, self.placement, self.tokens, self.mask = spec, placement, tokens, mask
        self.sizes = sizes_of(spec.shape, tokens)
        functions, fed = dict[int, Replacement](), dict[int, tuple[int, Replacement]]()
        nodes = placement.graph.nodes
        for site, value in replacements.items():
            if site not in placement.places:
                continue
            earlier, readers = _before(spec, placement, site), _readers(spec, placement, site)
            if earlier and readers:
                function = self._function(site, value, placement.places[site].node, earlier)
                fed |= {nodes[r].key: (placement.key(site), function) for r in readers}
                continue
            for node in copies(placement, site):
                functions[nodes[node].key] = self._function(site, value, node)
        self.tracer = Tracer(module, tokens, mask, placement.keys(), functions, fed)
        self.expected = {*functions, *fed}
        self.visible = all(site in placement.places for site in replacements)

    def __call__(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with torch.no_grad(), self.tracer:
            return forward(*args, **kwargs)

    @property
    def complete(self) -> bool:
        """Whether every site was met, so that its value was replaced."""
        return self.visible and not self.expected - self.tracer.replaced

    def _function(self, site: str, value: Value, node: int, earlier: Collection[str] = ()) -> Replacement:
        place, key = self.placement.places[site], self.placement.graph.nodes[node].key
        places = self.placement.places
        keys = {s: self.placement.key(s) for s, p in places.items() if p.node != place.node or s in earlier}

        def replaced(tensors: Mapping[int, Tensor]) -> Tensor:
            found = {
                s: self.placement.places[s].layout.ours(tensors[k], self.sizes) for s, k in keys.items() if k in tensors
            }
            return place.layout.theirs(
                value({**found, **given(self.tokens, self.mask, changes=self.spec.inputs)}), tensors[key]
            )

        return replaced


def _before(spec: Spec, placement: Placement, site: str) -> list[str]:
    """Sites before this one that are the same tensor, though the step that writes it does more than hand them on.

    A norm that is left out gives what it was given: the residual stream, which others read as it is.
    """
    if Aligner.is_copy(spec.at[site]):
        return []
    node, order = placement.places[site].node, spec.sites
    return [s for s in order[: order.index(site)] if s in placement.places and placement.places[s].node == node]


def _readers(spec: Spec, placement: Placement, site: str) -> list[int]:
    """The nodes that read a site's tensor on the way to the sites that are computed from it."""
    graph, node, after = placement.graph, placement.places[site].node, list[int]()
    pending = [s.writes for s in spec.readers.get(site, ())]
    while pending:
        at = pending.pop()
        place = placement.places.get(at)
        if place is not None and place.node != node:
            after.append(place.node)
        else:  # hidden, or handed on as it is
            pending.extend(s.writes for s in spec.readers.get(at, ()))
    above = graph.above(after)
    return [r for r in graph.readers[node] if r in above]


def copies(placement: Placement, site: str) -> list[int]:
    """The nodes that hold a site, each made anew: an implementation may compute one thing several times."""
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


def _inputs(args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not t.is_floating_point()]
    if not tensors:
        raise CaptureError("the mended module was called without token ids; call it as module(tokens).")
    mask = kwargs.get("attention_mask")
    return tensors[0], mask if isinstance(mask, Tensor) else None
