"""Recording a live module: one probe says where the sites are, the real call keeps only those."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.capture.align import align
from twinlens.capture.calling import Call
from twinlens.capture.graph import Graph
from twinlens.capture.placement import Placement
from twinlens.capture.tracer import Tracer, trace
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
    *,
    mask: Tensor | None = None,
    call: Call | None = None,
    placement: Placement | None = None,
    keep: Collection[str] | None = None,
    about: dict[str, Any] | None = None,
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

    Raises:
        CaptureError: the module fails, or its logits cannot be seen.
    """
    graph, placement = capture(module, spec, weights, tokens, mask=mask, call=call, placement=placement, keep=keep)
    with torch.no_grad():
        sites = {site: tensor.detach() for site, tensor in placement.reads(graph, spec.shape, keep)}
    evidence = placement.evidence(spec)
    recorded = RecordedCall.of(sites, tokens, mask=mask, placed={s: e for s, e in evidence.items() if s in sites})
    differ, equal = compared_weights(placement, weights)
    said = {"implementation": f"{type(module).__module__}.{type(module).__qualname__}", "unseen": placement.unseen}
    return Recording(calls=[recorded], about=said | (about or {}), weights=differ, weights_equal=frozenset(equal))


def capture(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, *, mask: Tensor | None = None,
    call: Call | None = None, placement: Placement | None = None, keep: Collection[str] | None = None,
) -> tuple[Graph, Placement]:  # fmt: skip
    """The graph of a call, with the tensors of its sites, and where they are."""
    if placement is not None and not _same_constants(module, placement):
        placement = None  # the module's parameters are other tensors now
    for rows in (PROBE_ROWS, tokens.shape[0]):
        placement = placement or placed(module, spec, weights, mask=mask, call=call, rows=rows)
        graph = Tracer(module, tokens, mask, placement.keys(keep)).run(module, call)
        if placement.holds(graph):
            return graph, placement
        placement = None  # the code depends on the batch: one row alone is not expanded, say
    graph = trace(module, tokens, mask=mask, call=call)
    return graph, align(graph, spec, weights)


def placed(
    module: nn.Module, spec: Spec, weights: Weights, *, mask: Tensor | None = None,
    call: Call | None = None, rows: int = PROBE_ROWS,
) -> Placement:  # fmt: skip
    """Where the sites of a module are, found on a short probe."""
    tokens, padding = probe(spec, mask, rows)
    return align(trace(module, tokens, mask=padding, call=call), spec, weights)


def probe(spec: Spec, mask: Tensor | None, rows: int = PROBE_ROWS) -> tuple[Tensor, Tensor | None]:
    """Seeded random ids; padded where the real call is, so that the same code runs."""
    draw = torch.Generator().manual_seed(0)
    length = min(PROBE_LENGTH, spec.shape.positions or PROBE_LENGTH)
    tokens = torch.randint(spec.shape.vocabulary, (rows, length), generator=draw)
    if mask is None:
        return tokens, None
    padding = torch.ones_like(tokens)
    if not bool(mask.all()):
        padding[-1, :3] = 0
    return tokens.to(mask.device), padding.to(mask)


def _same_constants(module: nn.Module, placement: Placement) -> bool:
    """Whether parameters are still the tensors that were placed."""
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for anchor in placement.anchors.values():
        if anchor.owner is not None:
            now = named.get(anchor.owner)
            if now is None or now.data_ptr() != anchor.tensor.data_ptr():
                return False
    return True


def compared_weights(placement: Placement, weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """The candidate's tensors that differ from the checkpoint's, and the names of those that are equal."""
    differ: dict[str, Tensor] = {}
    equal: list[str] = []
    with torch.no_grad():
        for name, anchor in placement.anchors.items():
            if same(anchor.tensor, weights(name)):
                equal.append(name)
            else:
                differ[name] = anchor.tensor.detach()
    return differ, equal


def same(x: Tensor, y: Tensor) -> bool:
    """Equal entries; nothing is read where both are one tensor."""
    if x.shape != y.shape:
        return False
    if x.data_ptr() == y.data_ptr() and x.stride() == y.stride() and x.dtype == y.dtype:
        return True
    return torch.equal(x, y) if x.dtype == y.dtype else torch.equal(x.float(), y.float())
