"""Who says what model is compared."""

from __future__ import annotations

import copy

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

import twinlens
from twinlens.errors import UnknownArchitecture


def test_a_live_model_of_an_unknown_family_is_told_which_are_known() -> None:
    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**small, num_attention_heads=2, num_key_value_heads=1))
    with pytest.raises(UnknownArchitecture, match=r"'qwen2'; known are gemma2, gpt2, llama: .*CONTRIBUTING"):
        twinlens.compare(model, copy.deepcopy(model))
