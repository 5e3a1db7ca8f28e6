"""The table of planted faults: each is named with its value and its layers, nothing else is accused, and mended.

Always: that every plant takes effect. TWINLENS_ALL=1: the whole table, once with every tensor to be seen and once with
sublayer outputs alone (half an hour on two cores; TWINLENS_CHECK_SHAPES=0 halves it). What runs always of the engine
is in test_causes.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tests.parity.faults import FAULTS
from tests.parity.judged import compared, misses, title
from tests.parity.known import MENDED, NAMED, SUBLAYERS
from twinlens.museum.exhibit import Exhibit

whole = pytest.mark.skipif(not os.environ.get("TWINLENS_ALL"), reason="TWINLENS_ALL=1 runs the whole table")


def cases(faults: Iterable[Exhibit], known: dict[str, str]) -> list[Any]:
    """Parameters; what is known to fail is marked, strictly."""
    made = list[Any]()
    for fault in faults:
        reason = known.get(title(fault))
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        made.append(pytest.param(fault, id=title(fault), marks=marks))
    return made


@whole
@pytest.mark.parametrize("fault", cases(FAULTS, NAMED))
def test_a_fault_is_named_and_nothing_else(fault: Exhibit) -> None:
    assert misses(fault, compared(fault)[1]) == []


@whole
@pytest.mark.parametrize("fault", cases((f for f in FAULTS if not f.benign), MENDED))
def test_a_fault_is_mended_to_the_last_bit(fault: Exhibit) -> None:
    candidate, report = compared(fault)
    after = report.fix(candidate, order=True)
    assert (after.verdict, after.causes) == (fault.mended, [])


@whole
@pytest.mark.parametrize("fault", cases((f for f in FAULTS if "sublayers" not in f.hidden), SUBLAYERS))
def test_sublayer_outputs_are_enough(fault: Exhibit) -> None:
    assert misses(fault, compared(fault, afar=True)[1]) == []


def test_the_table_is_wide() -> None:
    titles = [title(f) for f in FAULTS]
    assert len(set(titles)) == len(titles)
    assert sum(not f.benign for f in FAULTS) >= 45
    assert sum(f.benign for f in FAULTS) >= 12
    assert set(titles) >= {*NAMED, *MENDED, *SUBLAYERS}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_fault_moves_the_logits_and_a_benign_change_does_not(family: str) -> None:
    """The plant takes effect, in the candidate alone, and leaves the modeling files as they were."""
    for fault in (f for f in FAULTS if f.family == family):
        reference = fault.reference()
        candidate = fault.candidate(reference)
        tokens, mask = fault.inputs(reference)
        given = {} if mask is None else {"attention_mask": mask}
        with torch.no_grad():
            before, other, after = (m(tokens, **given).logits for m in (reference, candidate, reference))
        assert torch.equal(before, after), fault.name
        real = torch.ones_like(tokens) if mask is None else mask
        moved = float((other - before).float()[real.bool()].abs().max())
        coarse = "dtype" in fault.build  # rounding alone moves logits by 1 in bfloat16
        assert coarse or moved < 2e-3 if fault.benign else moved > 1e-5, (fault.name, moved)
