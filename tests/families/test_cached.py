"""With a key/value cache each call is transformers' own, bit for bit at every site: prefill, chunks, decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import twinlens
from tests.families.seen import calls
from tests.families.test_bits import every_kernel
from twinlens.museum.hands import during
from twinlens.museum.tiny import ALL, EAGER_ONLY, left_padded, random_tokens, tiny_llama
from twinlens.sites import by_slot

LENGTHS = (12, 9, 1, 1)
"""The window of the tiny models is 8: prefill is longer, a chunk is, and decoding goes on behind."""


def assert_calls_equal(model: Any, tokens: Tensor, mask: Tensor | None, lengths: tuple[int, ...]) -> None:
    for number, sites in enumerate(calls(model, tokens, mask, lengths)):
        assert not [site for site, equal in sites.items() if not equal], f"call {number} of {lengths}"
        assert {"logits", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"} <= sites.keys()
        assert any(by_slot(site) for site in sites)


@every_kernel
def test_every_call_is_equal(family: str, attn: str) -> None:
    """In one dtype for each kernel; the whole grid is in `make families`."""
    model = ALL[family](attn=attn, dtype=torch.float32 if attn == "eager" else torch.bfloat16)
    assert_calls_equal(model, *left_padded(model, (sum(LENGTHS), 15)), LENGTHS)


@pytest.mark.parametrize("family", ALL)
def test_without_padding(family: str) -> None:
    model = ALL[family](attn="eager" if family in EAGER_ONLY else "sdpa")
    assert_calls_equal(model, random_tokens(model, 1, 24), None, (6, 9, 9))


def test_a_call_whose_positions_are_as_many_as_its_heads() -> None:
    model = ALL["gemma3_text"]()  # two key/value heads: shapes do not say which axis is which
    assert_calls_equal(model, random_tokens(model, 2, 24), None, (20, 2, 2))


def test_chunks_give_what_one_call_gives() -> None:
    model = tiny_llama()
    tokens, whole = random_tokens(model, 2, 24), twinlens.load(model)
    run = whole.stepwise()
    parts = [run(tokens[:, :20]), *(run(tokens[:, i : i + 1]) for i in range(20, 24))]
    assert torch.allclose(torch.cat(parts, dim=1), whole(tokens), rtol=1e-4, atol=1e-4)
    assert len(run.past) == 24


def test_a_cache_that_holds_its_keys_coarsely_is_named() -> None:
    from transformers import cache_utils

    reference = tiny_llama()
    candidate = tiny_llama()
    plain = cache_utils.DynamicLayer.update

    def coarse(self: Any, k: Tensor, v: Tensor, *more: Any, **named: Any) -> Any:
        return plain(self, k.bfloat16().float(), v.bfloat16().float(), *more, **named)

    during(candidate, cache_utils.DynamicLayer, update=coarse)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 1, 20), calls=[17, 1, 1, 1])
    assert report.verdict == "different"
    assert {c.parameter for c in report.causes} == {"cache.dtype"}
    assert {c.candidate for c in report.causes} == {"bfloat16"}
