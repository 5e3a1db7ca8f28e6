"""A slice of the planted faults: named with value and layers, nothing else accused, the fix proved."""

from __future__ import annotations

import pytest

from tests.parity.judged import BY_NAME, compared, misses

NAMED = (
    "gemma2: scale",
    "gpt2: eps",
    "gpt2: residual factor of the MLP",
    "gpt2: deviation of d - 1, eps outside the root",
    "gpt2: own token not seen by sdpa",
    "llama: linear factor",
    "llama: row halved",
    "llama: logits scaled",
    "llama: next token seen",
    "llama: attention by einsum, exp and sum",
    "llama: products in float64",
)
SEEN_FROM_AFAR = ("gemma2: scale", "gpt2: layers exchanged", "llama: row halved", "llama: logits scaled")


@pytest.mark.parametrize("name", NAMED)
def test_a_fault_is_named_and_mended(name: str) -> None:
    fault = BY_NAME[name]
    candidate, report = compared(fault)
    assert misses(fault, report) == []
    if not fault.benign:
        assert report.fix(candidate, order=True).verdict == "identical"


@pytest.mark.parametrize("name", SEEN_FROM_AFAR)
def test_a_fault_is_named_from_sublayer_outputs(name: str) -> None:
    fault = BY_NAME[name]
    assert misses(fault, compared(fault, afar=True)[1]) == []
