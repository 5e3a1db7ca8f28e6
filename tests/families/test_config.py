"""A config is read whole, in its old and new spelling, or refused with the key at fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, ROPE
from twinlens import ConfigError, UnknownArchitecture, declare
from twinlens.families import FAMILIES as DECLARED

every_family = pytest.mark.parametrize("family", FAMILIES)


def config_of(family: str, **config: Any) -> dict[str, Any]:
    return FAMILIES[family](**config).config.to_dict()


@pytest.mark.parametrize("rope", ROPE)
def test_old_spelling_of_rotary(rope: str) -> None:
    new = config_of("llama", rope=rope)
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": ROPE[rope]["rope_theta"], "torch_dtype": "float32"}
    if rope != "default":
        scaling = {k: v for k, v in ROPE[rope].items() if k not in ("rope_theta", "rope_type")}
        for name in ("type", "rope_type"):
            assert declare(old | {"rope_scaling": scaling | {name: rope}}) == declare(new)
    else:
        assert declare(old | {"rope_scaling": None}) == declare(new)


def test_gemma2_without_layer_types_alternates() -> None:
    new = config_of("gemma2")
    old = {k: v for k, v in new.items() if k not in ("layer_types", "rope_parameters")}
    assert declare(old | {"rope_theta": 7000.0}) == declare(new)


def test_gpt2_as_on_the_hub() -> None:
    hub = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    assert declare(hub).shape.positions == 1024


@every_family
def test_an_unknown_key_is_named(family: str) -> None:
    with pytest.raises(ConfigError, match=r"logit_temperature=2\.0"):
        declare(config_of(family) | {"logit_temperature": 2.0})


@every_family
def test_a_missing_key_is_named(family: str) -> None:
    config = config_of(family)
    del config["vocab_size"]
    with pytest.raises(ConfigError, match="'vocab_size'"):
        declare(config)


@every_family
def test_an_unknown_activation_is_named(family: str) -> None:
    key = {"gpt2": "activation_function", "llama": "hidden_act", "gemma2": "hidden_activation"}
    with pytest.raises(ConfigError, match="'mish'"):
        declare(config_of(family) | {key[family]: "mish"})


def test_an_unknown_scaling_is_named() -> None:
    config = config_of("llama")
    for rope in ({"rope_type": "spiral"}, {"rope_type": "linear", "factor": 2.0, "beta": 1.0}):
        with pytest.raises(ConfigError, match=rope["rope_type"]):
            declare(config | {"rope_parameters": rope})


def test_a_scaling_without_its_number_is_named() -> None:
    with pytest.raises(ConfigError, match="factor"):
        declare(config_of("llama") | {"rope_parameters": {"rope_type": "linear"}})


def test_a_value_that_means_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_bidirectional_attention"):
        declare(config_of("gemma2") | {"use_bidirectional_attention": True})


def test_an_unknown_architecture_lists_those_known() -> None:
    with pytest.raises(UnknownArchitecture, match=r"gemma2, gpt2, llama.*mamba\.py"):
        declare({"model_type": "mamba"})


@every_family
def test_every_weight_of_transformers_is_used(family: str) -> None:
    model = FAMILIES[family]()
    spec = declare(model.config.to_dict(), dtype=torch.float32)
    assert set(spec.weight_names) == {name for name, _ in model.named_parameters()}
    assert set(DECLARED) == set(FAMILIES)
