"""What one run does not tell apart, the run that would, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import twinlens
from twinlens.asking import _pair
from twinlens.errors import InputError
from twinlens.museum.tiny import random_tokens, tiny_gemma2, tiny_llama
from twinlens.parity.changes import SetField, Variant


def compared(change: Callable[[Any], None], sites: str) -> twinlens.Report:
    reference, candidate = tiny_gemma2(), tiny_gemma2()
    with torch.no_grad():
        change(candidate)
    return twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3), sites=sites)


def scores_times(by: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for layer in model.model.layers:
            layer.self_attn.scaling *= by

    return change


def tables_times(by: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.model.rotary_emb.attention_scaling *= by

    return change


def test_a_factor_of_scores_is_told_from_one_of_hidden_tables_by_showing_more() -> None:
    report = compared(scores_times(1.2), "sublayers")
    [pair] = report.pairs
    assert "attn.scale" in pair
    assert "rotary.attention_factor" in pair
    assert "--sites all would tell" in pair
    after = report.ask()
    assert [c.parameter for c in after.causes] == ["attn.scale"]
    assert (after.pairs, after.level) == ([], "all")
    assert after.asked == ["--sites all: attn.scale at blocks.0.attn.hook_attn_scores in layers 0, 1, 2, 3"]
    assert "asked" in str(after)


def test_what_other_steps_of_the_run_deny_is_no_pair() -> None:
    def one_layer(model: Any) -> None:
        model.model.layers[1].self_attn.scaling *= 1.2

    report = compared(one_layer, "sublayers")
    assert [(c.parameter, c.layers) for c in report.causes] == [("attn.scale", [1])]
    assert report.pairs == []


def test_where_all_is_told_nothing_is_asked() -> None:
    report = compared(scores_times(1.2), "all")
    assert report.ask() is report
    assert report.asked == []


def test_what_is_left_unexplained_is_asked_with_all_sites() -> None:
    def odd(model: Any) -> None:
        attention = model.model.layers[1].self_attn
        plain = attention.forward
        attention.forward = lambda *args, **kw: (lambda out: (out[0] + 0.3 * out[0].cos(), *out[1:]))(
            plain(*args, **kw)
        )

    report = compared(odd, "logits")
    assert report.explained == "different"
    after = report.ask()
    assert after.level == "all"
    assert (after.first_difference or "").startswith("blocks.1.")
    assert after.asked[0].startswith("--sites all: ")


def test_what_no_tokens_tell_apart_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a head rotates: a factor of both tables is one of the scores, whatever the ids."""
    monkeypatch.setattr("twinlens.asking._levels_above", lambda _: [])
    report = compared(scores_times(1.2), "sublayers")
    [question] = report.questions
    assert question.ask is None
    assert report.pairs[0].endswith("alike in every run that was tried")
    assert report.ask() is report


def test_other_tokens_tell_where_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change that only shows beyond the positions of the first run."""
    monkeypatch.setattr("twinlens.asking._levels_above", lambda _: [])
    report = compared(scores_times(1.2), "sublayers")
    assert report.judge is not None
    [cause], spec = report.causes, report.judge.computed.spec
    masks = tuple(SetField((s.writes,), "window", 200) for s in spec.steps if s.writes.endswith("attn_scores"))
    question = _pair(report, cause, Variant((*cause.changes, *masks[1::2])))
    assert question is not None
    assert question.ask is not None
    assert question.ask.tokens.shape[1] > 200
    assert question.ask.words == "long rows, one of them padded (--probe auto)"


def test_a_recording_cannot_be_asked() -> None:
    reference = tiny_llama()
    candidate = tiny_llama()
    with torch.no_grad():
        candidate.model.layers[1].self_attn.q_proj.weight.mul_(1.2)  # type: ignore[operator, union-attr]
    tokens = random_tokens(reference, 2, 40, seed=3)
    native = twinlens.load(candidate)
    _, sites = native.run_with_cache(tokens, names=lambda s: s.endswith(("hook_attn_out", "hook_resid_post", "logits")))
    report = twinlens.compare(reference, twinlens.Recording.from_tensors(sites, tokens=tokens), tokens=tokens)
    assert report.pairs
    with pytest.raises(InputError, match="is a recording, which cannot be asked"):
        report.ask()


def test_calls_with_a_cache_are_asked_as_calls() -> None:
    """What is unexplained in them is asked with all sites, of the same calls."""
    reference, candidate = tiny_gemma2(), tiny_gemma2()
    scores_times(1.2)(candidate)
    tokens = random_tokens(reference, 2, 20, seed=3)
    report = twinlens.compare(reference, candidate, tokens=tokens, sites="sublayers", calls=[18, 1, 1])
    assert (report.verdict, report.pairs) == ("different", [])
    assert report.ask().lengths == (18, 1, 1)
