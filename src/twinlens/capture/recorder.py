"""Recording a live module: one probe says where the sites are, the real call keeps only those."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.bits import each, equal
from twinlens.capture.align import align
from twinlens.capture.calling import Call, device_of
from twinlens.capture.graph import Graph
from twinlens.capture.heap import keep_freed
from twinlens.capture.placement import Placement
from twinlens.capture.tracer import Tracer, constants, trace
from twinlens.recording import Call as RecordedCall
from twinlens.recording import Recording
from twinlens.spec import Spec, Weights

PROBE_ROWS, PROBE_LENGTH = 2, 13
"""Two rows, so that the batch axis is seen; a prime length, so that no other axis has its size."""


def record(
    module: nn.Module,
    spec: Spec,
    weights: Weights,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    call: Call | None = None,
    placement: Placement | None = None,
    keep: Collection[str] | None = None,
    about: dict[str, Any] | None = None,
    known: list[Placement] | None = None,
) -> Recording:
    """One call of a module as a Recording in memory.

    Args:
        module: any eager torch module; called as `module(tokens)`, with `attention_mask=` where its
            forward takes one.
        spec: what the model is declared to be.
        weights: the checkpoint's tensors.
        tokens: ids [b p].
        mask: [b p], 1 at real tokens.
        call: `(tokens, mask) -> logits`, where the module is called in another way.
        placement: of an earlier call; it is checked against this one, and made anew where they part.
        keep: sites to keep; all by default.
        about: what else is known of the implementation.
        known: placements under the same spec and weights; a module whose probe repeats one of them, tensor by
            tensor, takes its places. The first one that is found is added.

    Raises:
        CaptureError: the module fails, or its logits cannot be seen.
    """
    graph, placement = capture(
        module, spec, weights, tokens, mask=mask, call=call, placement=placement, keep=keep, known=known
    )
    with torch.no_grad():
        sites = dict(placement.reads(graph, spec.shape, keep))
    evidence = placement.evidence(spec)
    recorded = RecordedCall.of(sites, tokens, mask=mask, placed={s: e for s, e in evidence.items() if s in sites})
    own = {name: anchor.tensor.detach() for name, anchor in placement.anchors.items()}
    differ, alike = compared_weights(own, on_device(weights, device_of(module)))
    said = {"implementation": f"{type(module).__module__}.{type(module).__qualname__}", "unseen": placement.unseen}
    return Recording(calls=[recorded], about=said | (about or {}), weights=differ, weights_equal=frozenset(alike))


def capture(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, *, mask: Tensor | None = None,
    call: Call | None = None, placement: Placement | None = None, keep: Collection[str] | None = None,
    known: list[Placement] | None = None,
) -> tuple[Graph, Placement]:  # fmt: skip
    """The graph of a call, with the tensors of its sites, and where they are."""
    keep_freed()
    weights = on_device(weights, device_of(module))
    for attempt, named in _attempts(module, spec, weights, tokens, mask, call, placement, known):
        tracer = Tracer(module, tokens, mask, attempt.keys(keep), before=attempt.path, named=named)
        graph = tracer.run(module, call)
        if attempt.holds(graph):
            attempt.followed(graph)
            if attempt is not placement:
                _remember(module, spec, attempt)
            return graph, attempt
    graph = trace(module, tokens, mask=mask, call=call)
    return graph, align(graph, spec, weights)


def on_device(weights: Weights, device: torch.device) -> Weights:
    """A checkpoint's tensors where a module is; themselves where they are there already."""
    return lambda name: weights(name).to(device)


def _attempts(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, mask: Tensor | None, call: Call | None,
    given: Placement | None, known: list[Placement] | None,
) -> Iterator[tuple[Placement, Mapping[str, Tensor] | None]]:  # fmt: skip
    """Placements that may hold: the given one, the module's last one, those of a probe of two rows and of as many
    rows as the call has, since code may depend on the batch (one row alone is not expanded, say). With the module's
    constants where no call was made since they were looked up, which may exchange them.
    """
    for placement in (given, *_remembered(module, spec)):
        if placement is not None:
            named = constants(module)
            if _same_constants(named, placement):
                yield placement, named
    for rows in dict.fromkeys((PROBE_ROWS, tokens.shape[0])):
        yield placed(module, spec, weights, mask=mask, call=call, rows=rows, known=known), None


_last: weakref.WeakKeyDictionary[nn.Module, tuple[Spec, Placement]] = weakref.WeakKeyDictionary()


def _remembered(module: nn.Module, spec: Spec) -> Iterator[Placement]:
    before, placement = _last.get(module, (None, None))
    if placement is not None and (before is spec or before == spec):
        yield placement


def _remember(module: nn.Module, spec: Spec, placement: Placement) -> None:
    """Keep a placement for the module's next call, if nothing in it can go stale.

    Places follow from the code, which each call is checked for. Tensors that were cut out of others are copies,
    and a site that is missing or provisional now may be found once the module has been mended.
    """
    if module in _last and _last[module][1] is placement:
        return
    if placement.is_sure(spec) and all(anchor.owner is not None for anchor in placement.anchors.values()):
        _last[module] = spec, placement.without_values()


def placed(
    module: nn.Module, spec: Spec, weights: Weights, *, mask: Tensor | None = None,
    call: Call | None = None, rows: int = PROBE_ROWS, known: list[Placement] | None = None,
) -> Placement:  # fmt: skip
    """Where the sites of a module are, found on a short probe, or by a `known` one that is the same."""
    tokens, padding = probe(spec, mask, rows, device_of(module))
    graph = trace(module, tokens, mask=padding, call=call)
    alike = next((k for k in known or () if repeats(graph, k.graph)), None)
    if alike is not None:
        return alike.of(graph)
    placement = align(graph, spec, weights)
    if known is not None and not known:
        known.append(placement)
    return placement


def repeats(graph: Graph, other: Graph) -> bool:
    """Whether two calls made the same tensors by the same functions of the same constants: no bit sets them apart.

    Where each site is follows from these alone, so it is the same in both.
    """
    if len(graph.nodes) != len(other.nodes) or graph.logits != other.logits:
        return False
    pairs = list(zip(graph.nodes, other.nodes, strict=True))
    return all(a.key == b.key for a, b in pairs) and all(_same_value(a.value, b.value) for a, b in reversed(pairs))


def _same_value(x: Tensor | None, y: Tensor | None) -> bool:
    if x is None or y is None:
        return x is y
    return x.dtype == y.dtype and x.device == y.device and same(x, y)


def probe(
    spec: Spec, mask: Tensor | None, rows: int = PROBE_ROWS, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Seeded random ids; padded where the real call is, so that the same code runs."""
    draw = torch.Generator().manual_seed(0)
    length = min(PROBE_LENGTH, spec.shape.positions or PROBE_LENGTH)
    tokens = torch.randint(spec.shape.vocabulary, (rows, length), generator=draw).to(device)
    if mask is None:
        return tokens, None
    padding = torch.ones_like(tokens)
    if not bool(mask.all()):
        padding[-1, :3] = 0
    return tokens, padding.to(mask.dtype)


def _same_constants(named: Mapping[str, Tensor], placement: Placement) -> bool:
    """Whether parameters are still the tensors that were placed."""
    for anchor in placement.anchors.values():
        if anchor.owner is not None:
            now = named.get(anchor.owner)
            if now is None or now.data_ptr() != anchor.tensor.data_ptr():
                return False
    return True


def compared_weights(own: Mapping[str, Tensor], weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """An implementation's tensors that differ from the checkpoint's, and the names of those that are equal."""
    theirs = {name: weights(name).detach() for name in own}
    alike = {name: _place(tensor) == _place(theirs[name]) for name, tensor in own.items()}
    apart = [name for name in own if not alike[name]]
    once = {(_place(own[name]), _place(theirs[name])): name for name in apart}  # tied: two names of the same memory
    answers = each(lambda name: same(own[name], theirs[name]), once.values()) if apart else {}
    alike |= {name: answers[once[_place(own[name]), _place(theirs[name])]] for name in apart}
    return {n: t for n, t in own.items() if not alike[n]}, [n for n in own if alike[n]]


def _place(t: Tensor) -> tuple[object, ...]:
    """Where a tensor lies in memory, and how."""
    return t.data_ptr(), t.dtype, t.shape, t.stride()


def same(x: Tensor, y: Tensor) -> bool:
    """Equal entries, whatever their precision; nothing is read where both are one tensor."""
    if x.dtype == y.dtype:
        return equal(x, y)
    return x.shape == y.shape and torch.equal(x.float(), y.float())
