"""What is wrong only in calls with a key/value cache is mended there, and runs as the reference does afterwards."""

from __future__ import annotations

import pytest
import torch

from twinlens.museum import named
from twinlens.museum.tiny import random_tokens
from twinlens.museum.visit import compared


@pytest.mark.sliced
@pytest.mark.parametrize(
    "name",
    [
        "decode-position-off-by-one", "learned-positions-restart-in-decoding", "kv-fp8-default",
        "cached-key-rotated-twice", "chunked-prefill-loses-prefix", "cache-evicts-too-early",
        "scale-wrong-in-decoding-only", "longrope-stale-cache-at-switch",
    ],
)  # fmt: skip
def test_a_fault_of_the_cache_is_mended_to_the_last_bit(name: str) -> None:
    candidate, report = compared(named(name))
    after = report.fix(candidate)
    assert (after.verdict, after.causes) == ("identical", [])
    assert all("computed as" in words for words in after.mended)


@pytest.mark.parametrize("name", ["kv-fp8-default", "decode-position-off-by-one"])
def test_a_mended_cache_goes_on_in_calls_of_any_length(name: str) -> None:
    candidate, report = compared(named(name))
    report.fix(candidate)
    reference = named(name).reference()
    tokens = random_tokens(reference, 1, 9, seed=7)
    more = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(candidate.generate(tokens, **more), reference.generate(tokens, **more))
    with torch.no_grad():
        assert torch.equal(candidate(tokens).logits, reference(tokens).logits)
