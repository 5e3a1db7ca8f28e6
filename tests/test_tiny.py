"""The tiny models are what other tests stand on: whatever is wrong must show in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from twinlens.museum.tiny import FAMILIES, ROPE, left_padded, random_tokens, save, tiny_gpt2, tiny_llama

every_family = pytest.mark.parametrize("family", FAMILIES)


def run(model: PreTrainedModel, **also: Any) -> Any:
    with torch.no_grad():
        return model(random_tokens(model), use_cache=False, **also)


def logits(family: str, **config: Any) -> Tensor:
    return run(FAMILIES[family](**config)).logits


@every_family
def test_scores_are_several_units_wide_and_no_softmax_is_saturated(family: str) -> None:
    for pattern in run(FAMILIES[family](), output_attentions=True).attentions:
        late = pattern[:, :, 12:]  # rows with enough keys for a deviation to mean something
        seen = late > 0
        scores = torch.where(seen, late.clamp_min(1e-38).log(), torch.nan)
        spread = (scores - scores.nanmean(-1, keepdim=True)).square().nanmean().sqrt()
        assert 2.0 < spread < 8.0
        assert late.amax(-1).mean() < 0.9


@every_family
def test_hidden_states_and_logits_have_the_size_of_a_trained_model(family: str) -> None:
    out = run(FAMILIES[family](), output_hidden_states=True)
    for hidden in out.hidden_states:
        assert 0.3 < hidden.std() < 30
    assert 1.5 < out.logits.std() < 10
    assert out.logits.isfinite().all()


@every_family
def test_no_norm_is_constant_and_no_bias_is_zero(family: str) -> None:
    for name, weight in FAMILIES[family]().named_parameters():
        assert weight.std() > 0.05, name


@pytest.mark.parametrize(
    ("family", "config", "least"),
    [
        ("gpt2", {"layer_norm_epsilon": 2e-4}, 1e-4),
        ("gpt2", {"activation_function": "gelu"}, 1e-4),
        ("gpt2", {"scale_attn_weights": False}, 1.0),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, 1.0),
        ("llama", {"rms_norm_eps": 3e-5}, 1e-5),
        ("llama", {"hidden_act": "gelu"}, 0.1),
        ("llama", {"rope_parameters": ROPE["default"] | {"rope_theta": 7070.0}}, 0.01),
        ("llama", {"rope": "linear"}, 1.0),
        ("llama", {"rope": "llama3"}, 1.0),
        ("gemma2", {"rms_norm_eps": 3e-5}, 1e-5),
        ("gemma2", {"query_pre_attn_scalar": 25}, 0.01),
        ("gemma2", {"attn_logit_softcapping": None}, 0.1),
        ("gemma2", {"final_logit_softcapping": None}, 0.1),
        ("gemma2", {"sliding_window": 7}, 0.1),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"] * 2}, 0.5),
        ("gemma2", {"hidden_activation": "gelu"}, 1e-5),
        ("gemma2", {"rope_parameters": ROPE["default"] | {"rope_theta": 7070.0}}, 1e-3),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_every_field_moves_the_logits(family: str, config: dict[str, Any], least: float) -> None:
    moved = (logits(family) - logits(family, **config)).abs().max().item()
    assert moved > least


@every_family
def test_a_seed_is_one_model(family: str) -> None:
    build = FAMILIES[family]
    first, again, other = build(seed=3), build(seed=3), build(seed=4)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(run(first).logits, run(other).logits)


@every_family
def test_lower_precision_has_the_same_weights_rounded(family: str) -> None:
    full, half = FAMILIES[family](), FAMILIES[family](dtype=torch.bfloat16)
    coarse = dict(half.named_parameters())
    for name, weight in full.named_parameters():
        assert torch.equal(weight.bfloat16(), coarse[name]), name
    for name, buffer in half.named_buffers():
        if "inv_freq" in name:
            assert buffer.dtype == torch.float32, name


@every_family
def test_saved_and_loaded_is_the_same_function(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    folder = save(model, tmp_path / family)
    assert {"config.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert torch.equal(run(model).logits, run(loaded).logits)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_kernels_differ_by_rounding_only(build: Any) -> None:
    eager, sdpa = build(attn="eager"), build(attn="sdpa")
    assert sdpa.config._attn_implementation == "sdpa"
    torch.testing.assert_close(run(eager).logits, run(sdpa).logits, rtol=1e-4, atol=1e-4)


@every_family
def test_padding_stands_on_the_left(family: str) -> None:
    model = FAMILIES[family]()
    tokens, mask = left_padded(model, lengths=(9, 5, 7))
    assert tokens.shape == mask.shape == (3, 9)
    assert mask.sum(1).tolist() == [9, 5, 7]
    assert (mask.diff(dim=1) >= 0).all()
    assert (tokens[mask == 0] == (model.config.pad_token_id or 0)).all()


def test_the_real_weights_are_installed(smollm2_path: Path) -> None:
    with smollm2_path.open("rb") as file:
        assert file.read(4) == b"GGUF"
