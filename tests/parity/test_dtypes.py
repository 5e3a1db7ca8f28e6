"""Two dtypes of one model: what is only coarser is rounding, what is wrong besides is named, and both are mended."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import twinlens
from tests.parity.faults import attentions
from tests.tiny import FAMILIES, random_tokens

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PAIRS = [(F32, BF16), (BF16, F32), (F32, F16)]


def pair(family: str, reference: torch.dtype, candidate: torch.dtype) -> tuple[Any, Any]:
    """The same weights in two dtypes, each of which holds them exactly."""
    coarse = FAMILIES[family](dtype=candidate if reference == F32 else reference).state_dict()
    made = FAMILIES[family](dtype=reference), FAMILIES[family](dtype=candidate)
    for model in made:
        model.load_state_dict(coarse)
    return made


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_coarser_or_finer_model_is_the_same(family: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    report = twinlens.compare(*(both := pair(family, *dtypes)), tokens=random_tokens(both[0], 2, 40, seed=3))
    assert (report.verdict, report.causes, report.unexplained) == ("rounding", [], [])
    assert report.orders == []  # bits that were rounded away tell of none


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [False, True])
def test_a_fault_besides_is_named_and_mended(family: str, dtypes: tuple[torch.dtype, torch.dtype], order: bool) -> None:
    reference, candidate = pair(family, *dtypes)
    for a in attentions(candidate):
        a.scaling *= 1.1
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    (cause,) = report.causes
    assert cause.parameter == "attn.scale"
    assert abs(cause.candidate * 1.1 - cause.reference) < 2e-3 * cause.reference
    assert report.fix(copy.deepcopy(candidate), order=order).verdict == "rounding"
