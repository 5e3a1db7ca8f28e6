"""Queries, keys and values are what attention reads, in whatever order the fused product is cut."""

from __future__ import annotations

import pytest
import torch

from twinlens.capture import placed
from twinlens.museum.tiny import tiny_gpt2
from twinlens.subjects import Live


@pytest.mark.parametrize("order", ["qkv", "kqv", "vqk"])
def test_parts_are_placed_by_who_reads_them(order: str) -> None:
    model = tiny_gpt2()
    declared = Live(model).declaration()
    assert declared is not None
    thirds = ["qkv".index(part) for part in order]
    for block in model.transformer.h:
        block.attn.c_attn.register_forward_hook(lambda m, x, y: torch.cat([y.chunk(3, -1)[i] for i in thirds], -1))
    placement = placed(model, declared.spec, declared.weights)
    seen = dict(placement.reads(placement.graph, declared.spec.shape))
    fused = seen["blocks.1.attn.hook_qkv"]
    for part, third in zip("qkv", thirds, strict=True):
        value = seen[f"blocks.1.attn.hook_{part}"]
        assert torch.equal(value.flatten(2), fused.chunk(3, -1)[third]), part
