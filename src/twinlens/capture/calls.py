"""Several calls of one module, each of which reads what the calls before it kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.cached import Past, cached, calls_of, inputs_of, written
from twinlens.capture.align import align
from twinlens.capture.calling import Call as Invoke
from twinlens.capture.calling import device_of
from twinlens.capture.graph import Graph
from twinlens.capture.placement import Placement
from twinlens.capture.recorder import compared_weights, on_device
from twinlens.capture.tracer import trace
from twinlens.errors import CaptureError
from twinlens.recording import Call, Recording
from twinlens.spec import Spec, Weights

Step = Callable[[Tensor, Tensor], Any]
"""`(tokens [b p], mask of all slots [b s]) -> logits`, with what the calls before kept."""


def record_calls(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, mask: Tensor | None, lengths: Sequence[int], *,
    call: Any = None, about: dict[str, Any] | None = None,
) -> Recording:  # fmt: skip
    """A recording of one text in calls of these lengths, with a key/value cache.

    Each call is placed by its own tensors: prefill, chunks and decoding are different programs.

    Raises:
        CaptureError: the module knows no cache, or fails; or its keys and values cannot be seen.
    """
    if call is not None:
        raise CaptureError(
            f"{type(module).__name__} is called by a function of its own, which knows no cache; compare one call."
        )
    weights = on_device(weights, device_of(module))
    steps, calls, placements = cached(spec), list[Call](), list[Placement]()
    for seen in seen_calls(module, spec, weights, tokens, mask, lengths):
        evidence = {s: e for s, e in seen.placement.evidence(steps).items() if s in seen.sites}
        made = Call.of(
            seen.sites, seen.tokens, mask=seen.mask, positions=seen.inputs["slots"], placed=evidence, later=bool(calls)
        )
        calls.append(made)
        placements.append(seen.placement)
    own = {name: anchor.tensor.detach() for p in reversed(placements) for name, anchor in p.anchors.items()}
    differ, alike = compared_weights(own, weights)
    said = {"implementation": f"{type(module).__module__}.{type(module).__qualname__}"}
    return Recording(calls=calls, about=said | (about or {}), weights=differ, weights_equal=frozenset(alike))


@dataclass(frozen=True, eq=False)
class Seen:
    """One of several calls: what it was given, with what earlier ones left, and where its sites are."""

    tokens: Tensor
    mask: Tensor | None
    inputs: Mapping[str, Tensor]
    placement: Placement
    sites: Mapping[str, Tensor]


Tracing = Callable[[Tensor, "Tensor | None", Invoke], Graph]
"""`(tokens, mask, how it is called) -> what was seen of the call`."""


def seen_calls(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, mask: Tensor | None, lengths: Sequence[int],
    tracing: Tracing | None = None,
) -> Iterator[Seen]:  # fmt: skip
    """Each call while it is made; by default everything that happens from outside of the module is traced.

    Raises CaptureError where keys and values cannot be seen.
    """
    step, steps, past = stepping(module), cached(spec), Past()

    def whole(ids: Tensor, rows: Tensor | None, call: Invoke) -> Graph:
        return trace(module, ids, mask=rows, call=call)

    for ids, key_mask in calls_of(tokens, mask, lengths):
        rows = None if mask is None else key_mask[:, -ids.shape[1] :]
        graph = (tracing or whole)(ids, rows, lambda ids, _, m=key_mask: step(ids, m))
        before = past.before(steps, ids)
        inputs = inputs_of(steps, ids, key_mask, before)
        placement = align(graph, steps, weights, inputs)
        with torch.no_grad():
            sites = {site: tensor.detach() for site, tensor in placement.reads(graph, spec.shape)}
        yield Seen(ids, rows, inputs, placement, sites)
        past.add(steps, written(steps, sites, before), key_mask)
        if (site := past.unseen(steps)) is not None:
            raise CaptureError(
                f"{site} cannot be seen in {type(module).__name__}, so that its next call has nothing to be judged by; "
                "compare one call."
            )


def takes_cache(module: nn.Module) -> bool:
    """Whether a module's forward takes a cache as transformers' models do."""
    return {"past_key_values", "use_cache", "attention_mask"} <= inspect.signature(module.forward).parameters.keys()


def stepping(module: nn.Module) -> Step:
    """Calls as transformers' models make them, with the cache that they return.

    Raises CaptureError where the forward takes no `past_key_values`.
    """
    if not takes_cache(module):
        raise CaptureError(
            f"{type(module).__name__}.forward takes no past_key_values, use_cache and attention_mask, so that it "
            "cannot be called with a cache; compare one call, or a transformers model."
        )
    kept: dict[str, Any] = {"past_key_values": None}

    def step(tokens: Tensor, mask: Tensor) -> Any:
        out = module(tokens, attention_mask=mask, use_cache=True, **kept)
        kept["past_key_values"] = out.past_key_values
        return out

    return step
