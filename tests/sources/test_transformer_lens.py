"""TransformerLens's table keeps its meaning at any size, and no hub is asked.

The real TransformerLens lives in environments of its own; a stand-in with a table of the same form
takes its place here. `test_real.py` runs the real ones where they are installed.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, GPT2Config, LlamaConfig, PretrainedConfig

from twinlens.errors import SourceError
from twinlens.sources.transformer_lens_table import entry_for, hooked_config

GEMMA = {
    "d_model": 2304,
    "d_head": 256,
    "n_ctx": 8192,
    "eps": 1e-6,
    "attn_scale": 224**0.5,
    "n_key_value_heads": 4,
    "window_size": 4096,
    "attn_types": ["global", "local"] * 2,
}
LLAMA = {"d_model": 4096, "d_head": 128, "n_ctx": 4096, "eps": 1e-5, "rotary_dim": 128}


def loaders() -> ModuleType:
    """The part of `transformer_lens.loading_from_pretrained` that is used."""
    module: Any = ModuleType("transformer_lens.loading_from_pretrained")

    def no_hub(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    def convert_hf_model_config(name: str, **_: object) -> dict[str, Any]:
        if "gemma" in name:
            return dict(GEMMA)
        if "lama" in name:
            return dict(LLAMA)
        config = module.AutoConfig.from_pretrained(name)
        return {
            "n_ctx": config.n_ctx,
            "d_head": 64,
            "eps": config.layer_norm_epsilon,
            "tokenizer_name": name,
        }

    def get_pretrained_model_config(name: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(**module.convert_hf_model_config(name))

    module.AutoConfig = SimpleNamespace(from_pretrained=no_hub)
    module.OFFICIAL_MODEL_NAMES = [
        "gpt2",
        "google/gemma-2-2b-it",
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Meta-Llama-3-8B",
    ]
    module.convert_hf_model_config = convert_hf_model_config
    module.get_pretrained_model_config = get_pretrained_model_config
    return module


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens", ModuleType("transformer_lens"))
    monkeypatch.setitem(sys.modules, "transformer_lens.loading_from_pretrained", loaders())


def in_size_of(name: str, config: PretrainedConfig) -> Any:
    live = nn.Module()
    live.config = config  # type: ignore[assignment]
    return hooked_config(name, live, torch.float32)


def test_gemma_means_what_the_table_says_and_is_as_large_as_the_checkpoint():
    made = in_size_of(
        "google/gemma-2-2b-it",
        Gemma2Config(
            vocab_size=50,
            hidden_size=96,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            sliding_window=32,
            query_pre_attn_scalar=256,
            rms_norm_eps=1e-3,
            max_position_embeddings=64,
        ),
    )
    assert made.attn_scale == pytest.approx(14.96663)
    assert made.eps == 1e-6
    assert made.attn_types == ["global", "local", "global", "local", "global"]
    assert (made.d_model, made.n_layers, made.d_head, made.n_heads) == (96, 5, 24, 4)
    assert (made.n_key_value_heads, made.window_size, made.n_ctx) == (2, 32, 64)
    assert made.tokenizer_name is None


def test_grouped_heads_are_grouped_even_if_the_official_model_has_none():
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=2)
    made = in_size_of("meta-llama/Llama-2-7b-hf", config)
    assert (made.n_key_value_heads, made.rotary_dim, made.d_head) == (2, 12, 12)
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=4)
    assert not hasattr(in_size_of("meta-llama/Llama-2-7b-hf", config), "n_key_value_heads")


def test_what_the_table_asks_the_hub_for_comes_from_the_checkpoint():
    config = GPT2Config(n_positions=32, n_embd=48, n_head=4, n_inner=112, layer_norm_epsilon=3e-5)
    made = in_size_of("gpt2", config)
    assert (made.eps, made.n_ctx, made.d_mlp, made.d_head) == (3e-5, 32, 112, 12)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "gemma2"}, "google/gemma-2-2b-it"),
        ({"model_type": "llama"}, "meta-llama/Llama-2-7b-hf"),
        # This version lists no Llama-3.2: the next of the same kind.
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}},
            "meta-llama/Meta-Llama-3-8B",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"type": "llama3"}},
            "meta-llama/Meta-Llama-3-8B",
        ),
    ],
)
def test_the_entry_follows_from_the_config(config: dict[str, Any], name: str):
    assert entry_for(config) == name


def test_an_unknown_kind_must_be_named():
    with pytest.raises(SourceError, match=r"\?model=NAME"):
        entry_for({"model_type": "mamba"})
