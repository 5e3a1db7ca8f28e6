"""Who says what model is compared."""

from __future__ import annotations

import copy

import pytest
from transformers import BloomConfig, BloomForCausalLM

import twinlens
from twinlens.errors import UnknownArchitecture
from twinlens.museum.tiny import random_tokens, tiny_gpt2, tiny_llama


def test_a_live_model_of_an_unknown_family_is_told_which_are_known() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UnknownArchitecture, match=r"'bloom'; known are cohere2, .*, starcoder2: .*CONTRIBUTING"):
        twinlens.compare(model, copy.deepcopy(model))


def test_a_model_in_training_is_compared_without_what_is_random_and_stays_in_training() -> None:
    reference, candidate = tiny_gpt2(), tiny_gpt2().train()
    candidate.transformer.ln_f.eval()
    modes = [m.training for m in candidate.modules()]
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 1, 12))
    assert (report.verdict, report.training) == ("identical", ["candidate"])
    assert "the candidate is in training mode and drops out" in " ".join(str(report).split())
    assert [m.training for m in candidate.modules()] == modes


def test_training_without_dropout_needs_no_word() -> None:
    reference = tiny_llama()
    assert twinlens.compare(reference, tiny_llama().train(), tokens=random_tokens(reference, 1, 12)).training == []
