"""Two dtypes of one model: what is only coarser is rounding, what is wrong besides is named, and both are mended."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import twinlens
from twinlens.museum.hands import attentions, during
from twinlens.museum.tiny import ALL, FAMILIES, random_tokens

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PAIRS = [(F32, BF16), (BF16, F32), (F32, F16)]


def pair(family: str, reference: torch.dtype, candidate: torch.dtype) -> tuple[Any, Any]:
    """The same weights in two dtypes, each of which holds them exactly."""
    coarse = FAMILIES[family](dtype=candidate if reference == F32 else reference).state_dict()
    made = FAMILIES[family](dtype=reference), FAMILIES[family](dtype=candidate)
    for model in made:
        model.load_state_dict(coarse)
    return made


@pytest.mark.sliced
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_coarser_or_finer_model_is_the_same(family: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    report = twinlens.compare(*(both := pair(family, *dtypes)), tokens=random_tokens(both[0], 2, 40, seed=3))
    assert (report.verdict, report.causes, report.unexplained) == ("rounding", [], [])
    assert report.orders == []  # bits that were rounded away tell of none


@pytest.mark.sliced
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


def test_an_entry_that_is_the_other_neighbour_of_a_tie_is_no_coarser_precision() -> None:
    reference, candidate = (ALL["llama"](701, dtype=torch.bfloat16) for _ in range(2))
    soft, apart = F.softmax, [0]

    def on_bfloat16(x: Tensor, dim: int = -1, **_: object) -> Tensor:
        """torch computes it in float32 inside, whatever it is given."""
        y = soft(x, dim=dim)
        apart[0] += int((y != soft(x, dim=dim, dtype=torch.float32).to(x.dtype)).sum())
        return y.float()

    during(candidate, F, softmax=on_bfloat16)
    tokens = random_tokens(reference, 1, 120, 701)
    candidate(tokens)
    assert 0 < apart[0] < 5, "the planted tie is there"
    report = twinlens.compare(reference, candidate, tokens=tokens)
    assert (report.verdict, report.causes) == ("rounding", [])


def test_one_entry_of_a_table_is_no_precision() -> None:
    """A factor that is off by 1e-4 turns one number of the cosines over, as a table in float16 would."""
    native = twinlens.load(ALL["deepseek_v3"](300, dtype=BF16))
    tables = [s.writes for s in native.spec.steps if type(s.op).__name__ == "RotaryTable"]
    faulty = twinlens.Model(native.spec.set_fields(tables, "factor", 4.0 * (1 + 1e-4)), native.weight)
    report = twinlens.compare(native, faulty, tokens=random_tokens(ALL["deepseek_v3"](300), 2, 40, 300))
    assert [c for c in report.causes if c.parameter == "rotary.dtype"] == []
