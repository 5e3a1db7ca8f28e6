"""A slice of the planted faults: named with value and layers, nothing else accused, the fix proved."""

from __future__ import annotations

import pytest
import torch

import twinlens
from tests.parity.faults import FAULTS
from tests.parity.judged import misses, sublayers

NAMED = (
    "gemma2: scale",
    "gpt2: eps",
    "gpt2: residual factor of the MLP",
    "llama: linear factor",
    "llama: row halved",
    "llama: logits scaled",
    "llama: attention by einsum, exp and sum",
    "llama: products in float64",
)
SEEN_FROM_AFAR = ("gemma2: scale", "gpt2: layers exchanged", "llama: row halved", "llama: logits scaled")
BY_NAME = {f"{fault.family}: {fault.name}": fault for fault in FAULTS}


@pytest.mark.parametrize("name", NAMED)
def test_a_fault_is_named_and_mended(name: str) -> None:
    fault = BY_NAME[name]
    reference = fault.reference()
    candidate = fault.candidate(reference)
    tokens, mask = fault.inputs(reference)
    report = twinlens.compare(reference, candidate, tokens=tokens, mask=mask)
    assert misses(fault, report) == []
    if not fault.benign:
        assert report.fix(candidate, order=True).verdict == "identical"


@pytest.mark.parametrize("name", SEEN_FROM_AFAR)
def test_a_fault_is_named_from_sublayer_outputs(name: str) -> None:
    fault = BY_NAME[name]
    reference = fault.reference()
    candidate = fault.candidate(reference)
    tokens, mask = fault.inputs(reference)
    torch.manual_seed(0)
    report = twinlens.compare(reference, sublayers(candidate, tokens, mask), tokens=tokens, mask=mask)
    assert misses(fault, report) == []
