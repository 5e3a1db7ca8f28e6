"""Who says what model is compared."""

from __future__ import annotations

import copy

import pytest
from transformers import BloomConfig, BloomForCausalLM

import twinlens
from twinlens.errors import UnknownArchitecture


def test_a_live_model_of_an_unknown_family_is_told_which_are_known() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UnknownArchitecture, match=r"'bloom'; known are cohere2, .*, starcoder2: .*CONTRIBUTING"):
        twinlens.compare(model, copy.deepcopy(model))
