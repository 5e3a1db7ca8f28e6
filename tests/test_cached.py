"""What a call with a cache is given, and what it leaves."""

from __future__ import annotations

import pytest
import torch

import twinlens
from twinlens.cached import appended, befores, cached, calls_of, check_lengths, left, nothing
from twinlens.errors import InputError
from twinlens.museum.tiny import ALL, random_tokens, tiny_gemma2, tiny_llama
from twinlens.ops import Append
from twinlens.recording import Call


@pytest.mark.parametrize("family", ALL)
def test_keys_and_values_of_every_layer_are_read_by_slot(family: str) -> None:
    spec = twinlens.load(ALL[family]()).spec
    steps = cached(spec)
    assert len(appended(steps)) == 2 * spec.shape.layers
    assert "mask" not in {r for s in steps.steps for r in s.reads if s.writes.endswith("hook_attn_scores")}
    assert set(nothing(steps, 3)) == {s.reads[0] for s in appended(steps)}
    assert all(x.shape[:2] == (3, 0) for x in nothing(steps, 3).values())


def test_a_layer_with_a_window_keeps_what_a_later_query_sees() -> None:
    model = twinlens.load(tiny_gemma2())
    run = model.stepwise()
    run(random_tokens(tiny_gemma2(), 2, 20))
    slots = {site: x.shape[1] for site, x in run.past.tensors.items()}
    assert slots["blocks.0.attn.hook_k_past"] == 7  # of a window of 8 its own token is one
    assert slots["blocks.1.attn.hook_k_past"] == 20


def test_what_was_left_follows_from_the_calls() -> None:
    theirs = tiny_llama()
    model, tokens = twinlens.load(theirs), random_tokens(theirs, 2, 20)
    run, calls = model.stepwise(), list[Call]()
    for ids, _ in calls_of(tokens, None, (17, 2, 1)):
        logits, cache = run.run_with_cache(ids)
        calls.append(Call.of({**cache, "logits": logits}, ids, later=bool(calls)))
    given = list(befores(run.spec, calls))
    assert [x["key_mask"].shape[1] for x in given] == [17, 19, 20]
    for site, x in left(run.spec, calls[1].sites).items():
        assert torch.equal(given[2][site], x)
    for call in calls:  # without what was read by slot, the calls' own say it
        call.sites = {s: x for s, x in call.sites.items() if not s.endswith("_cache")}
    for site, x in list(befores(run.spec, calls))[2].items():
        assert torch.equal(given[2][site], x)
    calls[1].sites = {"logits": calls[1].sites["logits"]}
    with pytest.raises(InputError, match="hook_v_cache is not among the sites of call 1"):
        list(befores(run.spec, calls))


def test_other_rows_than_before_are_refused() -> None:
    theirs = tiny_llama()
    run = twinlens.load(theirs).stepwise()
    run(random_tokens(theirs, 2, 5))
    with pytest.raises(InputError, match="ran 2 rows and this one has 3"):
        run(random_tokens(theirs, 3, 1))


def test_lengths() -> None:
    assert check_lengths([3, 1], 6) == (3, 1, 2)
    assert check_lengths([6], 6) == (6,)


def test_a_coarse_cache_holds_all_its_slots_coarsely() -> None:
    past, new = torch.full((1, 2, 1, 1), 1.001), torch.full((1, 1, 1, 1), 1.001)
    assert Append(dtype=torch.bfloat16)(past, new).unique().tolist() == [1.0]
    assert torch.equal(Append()(past, new), Append(held="slots")(past, new))
