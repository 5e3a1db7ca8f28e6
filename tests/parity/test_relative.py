"""Rotary positions that are all shifted are a gauge; learned ones are a cause, and so are other faults beside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import twinlens
from twinlens.museum import named
from twinlens.museum.hands import attentions, called, positions_of_mask
from twinlens.museum.tiny import ALL, left_padded, random_tokens
from twinlens.museum.visit import compared, misses


def from_one(m: Any) -> None:
    called(m, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None] + 1})


def judged(family: str, change: Any, *, padded: bool = False) -> twinlens.Report:
    reference, candidate = ALL[family](), ALL[family]()
    with torch.no_grad():
        change(candidate)
    tokens, mask = (
        left_padded(reference, (20, 13), seed=3) if padded else (random_tokens(reference, 2, 20, seed=3), None)
    )
    return twinlens.compare(reference, candidate, tokens=tokens, mask=mask)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_shifted_rotary_positions_are_a_gauge(family: str, padded: bool) -> None:
    def shifted(m: Any) -> None:
        called(m, positions_of_mask) if padded else from_one(m)

    report = judged(family, shifted, padded=padded)
    assert (report.verdict, report.causes) == ("rounding", [])
    (words,) = report.gauges
    assert "positions.offset at rotary.hook_cos" in words and "the same function at blocks.L.attn" in words


def test_shifted_learned_positions_are_a_cause() -> None:
    report = judged("gpt2", from_one)
    assert [(c.parameter, c.candidate) for c in report.causes] == [("positions.offset", 1)]
    assert report.gauges == []


def test_a_fault_beside_the_shift_is_still_a_cause() -> None:
    def both(m: Any) -> None:
        from_one(m)
        for a in attentions(m):
            a.scaling = 0.25

    report = judged("llama", both)
    assert [(c.parameter, c.candidate) for c in report.causes] == [("attn.scale", 4.0)]
    assert len(report.gauges) == 1 and report.explained in ("identical", "rounding")


def test_positions_of_some_layers_alone_are_a_cause() -> None:
    """A layer that has tables of its own: the others do not follow."""
    reference, candidate = ALL["llama"](), ALL["llama"]()
    rotary, attention = candidate.model.rotary_emb, attentions(candidate)[1]
    forward = attention.forward

    def later(hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        at = 2 * torch.arange(hidden_states.shape[1])[None] + 1
        return forward(hidden_states, position_embeddings=rotary(hidden_states, at), **kwargs)

    attention.forward = later
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 20, seed=3))
    assert report.verdict == "different"


@pytest.mark.parametrize("name", ["key-bias-dropped-no-rope", "key-bias-dropped-with-rope"])
def test_a_bias_of_keys_matters_where_they_rotate(name: str) -> None:
    exhibit = named(name)
    report = compared(exhibit)[1]
    assert misses(exhibit, report) == []
    assert bool(report.gauges) == exhibit.benign
