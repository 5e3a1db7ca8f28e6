"""Positions are read off the tables that were made of them, whatever the offset."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import twinlens
from twinlens.museum import named
from twinlens.museum.hands import called
from twinlens.museum.tiny import ALL, random_tokens
from twinlens.museum.visit import compared, misses

NAMES = (
    "opt-position-offset-2-missing",
    "eviction-offset-is-row-count",
    "prefix-restore-offset-zero",
    "learned-positions-restart-in-decoding",
    "internlm3-positions-doubled",
    "positions-as-bf16-integers",
)


@pytest.mark.parametrize("name", NAMES)
def test_where_a_run_counted_from_is_named(name: str) -> None:
    exhibit = named(name)
    assert misses(exhibit, compared(exhibit)[1]) == []


@pytest.mark.parametrize("first", [5, 17])
def test_any_offset_of_learned_positions_is_read_off(first: int) -> None:
    reference, candidate = ALL["gpt2"](), ALL["gpt2"]()
    called(candidate, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None] + first})
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 20, seed=3))
    assert [(c.parameter, c.reference, c.candidate) for c in report.causes] == [("positions.offset", 0, first)]


@pytest.mark.parametrize("off", [-7, 9])
def test_any_offset_while_decoding_is_read_off(off: int) -> None:
    reference, candidate = ALL["llama"](), ALL["llama"]()

    def shifted(ids: Any, given: dict[str, Any]) -> dict[str, Any]:
        past = given.get("past_key_values")
        before = 0 if past is None else int(past.get_seq_length())
        return {"position_ids": torch.arange(ids.shape[1])[None] + before + off} if before else {}

    called(candidate, shifted)
    tokens = random_tokens(reference, 2, 20, seed=3)
    report = twinlens.compare(reference, candidate, tokens=tokens, calls=[18, 1, 1])
    assert [(c.parameter, c.candidate) for c in report.causes] == [("cache.position", off)]


RULES = {
    "20 at most": lambda p: p.clamp(max=20),
    "from 0 again every 16": lambda p: p % 16,
    "one for 2 tokens each": lambda p: p // 2,
    "0 to 12, then 0 to 26": lambda p: torch.where(p < 13, p, p - 13),
    "0 to 12, then 20 to 46": lambda p: torch.where(p < 13, p, p + 7),
}


@pytest.mark.parametrize("rule", RULES)
def test_positions_that_follow_a_rule_are_told_by_it(rule: str) -> None:
    reference, candidate = ALL["llama"](), ALL["llama"]()
    tables = candidate.model.rotary_emb
    plain = tables.forward
    tables.forward = lambda x, position_ids: plain(x, RULES[rule](position_ids))
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert [(c.parameter, c.candidate) for c in report.causes] == [("positions.offset", rule)]
    assert report.explained == "identical"
    assert report.fix(candidate).verdict == "identical"
