"""What padding holds decides nothing, whatever it is; what real tokens hold must be numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import twinlens
from twinlens.capture import record
from twinlens.errors import ComparisonError
from twinlens.museum.tiny import FAMILIES, left_padded, tiny_llama
from twinlens.parity.judge import judge
from twinlens.recording import Recording
from twinlens.sites import axes
from twinlens.subjects import Declaration, subject


def recorded(model: nn.Module, tokens: Tensor, mask: Tensor) -> tuple[Recording, Declaration]:
    declared = subject(model).declaration()
    assert declared is not None
    return record(model, declared.spec, declared.weights, tokens, mask), declared


def spoiled(recording: Recording, mask: Tensor, value: float) -> Recording:
    """All that padding holds is no number: rows of queries, and of scores and patterns the columns of keys."""

    def spoil(site: str, x: Tensor) -> Tensor:
        names, x = axes(site), x.clone()
        if names[0] != "b" or not x.is_floating_point() or x.shape[0] != len(mask):
            return x
        hidden = {"p", "s"} if not math.isfinite(value) else {"p"}
        for axis in hidden & set(names):
            shape = [n if a in ("b", axis) else 1 for a, n in zip(names, x.shape, strict=True)]
            x = x.masked_fill(~mask.bool().view(shape), value)
        return x

    [call] = recording.calls
    sites = {site: spoil(site, x) for site, x in call.sites.items()}
    return dataclasses.replace(recording, calls=[dataclasses.replace(call, sites=sites)])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_may_hold_anything(family: str, value: float) -> None:
    model = FAMILIES[family]()
    tokens, mask = left_padded(model)
    clean, declared = recorded(model, tokens, mask)
    bad = spoiled(clean, mask, value)
    for sides in ((clean, bad), (bad, clean), (bad, bad)):
        report = judge(declared.spec, declared.weights, *sides)
        assert (report.verdict, report.causes, report.unexplained) == ("identical", [], [])


def scale(model: nn.Module) -> None:
    model.model.layers[1].self_attn.scaling *= 1.05  # type: ignore[operator, union-attr, index]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_fault_beside_it_is_named(value: float) -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    scale(candidate)
    tokens, mask = left_padded(reference)
    clean, declared = recorded(reference, tokens, mask)
    bad = spoiled(record(candidate, declared.spec, declared.weights, tokens, mask), mask, value)
    report = judge(declared.spec, declared.weights, clean, bad)
    assert [(c.parameter, c.layers) for c in report.causes] == [("attn.scale", [1])]
    assert report.explained == "identical"


def test_a_recording_beside_a_live_model() -> None:
    model = FAMILIES["gpt2"]()
    tokens, mask = left_padded(model)
    clean, _ = recorded(model, tokens, mask)
    assert twinlens.compare(model, spoiled(clean, mask, torch.nan)).verdict == "identical"


class Spoiling(nn.Module):
    """An activation that gives a NaN for one token of prompts of 24."""

    def __init__(self, row: int, position: int) -> None:
        super().__init__()
        self.at = row, position

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.silu(x)
        if x.shape[:2] == (2, 24):
            there = torch.zeros(2, 24, 1, dtype=torch.bool)
            there[self.at] = True
            out = out.masked_fill(there, torch.nan)
        return out


def test_a_live_model_that_makes_nans_of_padding_alone_is_the_same() -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    candidate.model.layers[-1].mlp.act_fn = Spoiling(1, 2)
    tokens, mask = left_padded(reference)
    assert twinlens.compare(reference, candidate, tokens=tokens, mask=mask).verdict == "identical"


def test_the_first_step_that_makes_a_nan_of_a_real_token_is_named() -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    candidate.model.layers[1].mlp.act_fn = Spoiling(0, 5)
    tokens, mask = left_padded(reference)
    with pytest.raises(ComparisonError, match=r"blocks.1.mlp.hook_post of the candidate has \d+ entries that are not"):
        twinlens.compare(reference, candidate, tokens=tokens, mask=mask)
