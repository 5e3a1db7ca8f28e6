"""The exhibits as declarations: each takes effect, in the candidate alone, and a benign one keeps the function."""

from __future__ import annotations

import pytest
import torch

from twinlens.errors import InputError
from twinlens.museum import exhibits, named, rooms
from twinlens.museum.exhibit import Exhibit
from twinlens.museum.tiny import CONFIGS

ALL = list(exhibits())
_COARSE = 2e-3
_SHIFTED = {"centred-unembedding"}
"""Logits move there by a constant per token."""


def test_the_collection_is_wide() -> None:
    names = [e.name for e in ALL]
    assert len(set(names)) == len(names)
    faults = [e for e in ALL if not e.benign]
    assert len(faults) >= 120
    assert len(ALL) - len(faults) >= 20
    assert len({w.parameter for e in faults for w in e.causes}) >= 40
    assert all(e.source and e.title and e.family in CONFIGS for e in ALL)
    assert len(rooms()) >= 10


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="like it: gemma2-attn-softcap-dropped"):
        named("softcap")


def test_several_are_planted_in_one_model() -> None:
    both = named("gemma2-scale-14-97-vs-16 + gemma2-final-softcap-dropped")
    assert [w.parameter for w in both.causes] == ["attn.scale", "unembed.softcap"]
    candidate = both.candidate(both.reference())
    assert candidate.config.final_logit_softcapping is None
    assert candidate.model.layers[0].self_attn.scaling == 21**-0.5
    with pytest.raises(InputError, match="run them one by one"):
        named("gemma2-scale-14-97-vs-16 + silu-gelu-confusion")


@pytest.mark.parametrize("wing", [room.name for room in rooms()])
def test_each_takes_effect_in_the_candidate_alone(wing: str) -> None:
    for exhibit in (e for e in ALL if e.wing == wing and e.calls is None):
        moved = _moved(exhibit)
        if exhibit.benign and exhibit.name not in _SHIFTED:
            assert moved < _COARSE or exhibit.dtypes == ("bfloat16",), exhibit.name
        elif not exhibit.benign:
            assert moved > 1e-5, exhibit.name


def _moved(exhibit: Exhibit) -> float:
    reference = exhibit.reference()
    candidate = exhibit.candidate(reference)
    tokens, mask = exhibit.inputs(reference)
    given = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        before, other, after = (m(tokens, **given).logits for m in (reference, candidate, reference))
    assert torch.equal(before, after), exhibit.name
    real = torch.ones_like(tokens) if mask is None else mask
    return float((other - before).float()[real.bool()].abs().max())
