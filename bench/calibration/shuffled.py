"""Heads and experts in another order, with all that goes with them: the same function of other tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def _flipped(x: Tensor, parts: int, dim: int = 0) -> Tensor:
    """So many equal parts of an axis in the opposite order."""
    return x.unflatten(dim, (parts, -1)).flip(dim).flatten(dim, dim + 1)


def _attentions(model: Any) -> Iterator[Any]:
    """Those with products of their own for queries, keys and values."""
    for module in model.modules():
        out = getattr(module, "o_proj", None) or getattr(module, "out_proj", None)
        if all(isinstance(getattr(module, f"{n}_proj", None), nn.Linear) for n in "qkv") and out is not None:
            yield module, out


def heads(model: Any) -> None:
    """The last head is the first one, and so are its keys and values: who shares them still does."""
    for module, out in _attentions(model):
        width = module.head_dim
        for product in (module.q_proj, module.k_proj, module.v_proj):
            for tensor in product.parameters():
                tensor.data = _flipped(tensor.data, product.out_features // width)
        out.weight.data = _flipped(out.weight.data, out.in_features // width, 1)
        for norm in (getattr(module, name, None) for name in ("q_norm", "k_norm")):
            weight = getattr(norm, "weight", None)
            if weight is not None and weight.numel() > width:  # of all heads together
                weight.data = _flipped(weight.data, weight.numel() // width)
        if hasattr(module, "sinks"):
            module.sinks.data = module.sinks.data.flip(0)


def _routed(model: Any) -> Iterator[tuple[Any, Any, int]]:
    """Layers of experts, their router, and in how many groups they stand."""
    for module in model.modules():
        router = getattr(module, "gate", None) or getattr(module, "router", None)
        if hasattr(module, "experts") and router is not None:
            yield module.experts, router, getattr(module, "n_group", None) or 1


def experts(model: Any) -> None:
    """The last expert of each group is the first one, for the router too."""
    for those, router, groups in _routed(model):
        order = torch.arange(len(router.weight)).view(groups, -1).flip(1).flatten()
        for tensor in (*those.parameters(), *router.parameters(), *router.buffers()):
            tensor.data = tensor.data[order].contiguous()


def has(of: Callable[[Any], None], model: Any) -> bool:
    """Whether a model has several that can be exchanged."""
    return any(True for _ in (_attentions(model) if of is heads else _routed(model)))
