"""Experts that a checkpoint holds one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import twinlens
from twinlens.checkpoint import from_module, open_checkpoint
from twinlens.errors import CheckpointError, TwinlensError
from twinlens.museum.tiny import random_tokens, save, tiny

SPARSE = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")


@pytest.mark.parametrize("family", SPARSE)
def test_a_folder_is_the_live_model(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    save(model, tmp_path)
    tokens = random_tokens(model, 2, 30)
    assert torch.equal(twinlens.load(tmp_path)(tokens), model(tokens, use_cache=False).logits)
    assert open_checkpoint(tmp_path).fingerprint() == from_module(model).fingerprint()


Damage = Callable[[dict[str, Tensor], dict[str, Any]], object]


def _without(part: str) -> Damage:
    return lambda tensors, config: [tensors.pop(name) for name in list(tensors) if part in name]


def _narrow(part: str, rows: int) -> Damage:
    return lambda tensors, config: tensors.update({n: t[:rows].clone() for n, t in tensors.items() if part in n})


def _config(**keys: Any) -> Damage:
    return lambda tensors, config: config.update(keys)


@pytest.mark.parametrize(("family", "damage", "words"), [
    ("mixtral", _without("experts.1."), r"no model\.layers\.0\S+experts\.1\.w1\.weight.*converted in part"),
    ("mixtral", _without("experts.2.w3"), r"experts\.2\.w3\.weight.*converted in part"),
    ("mixtral", _without("experts.4."), r"gate_up_proj.*\[4, 160, 48\].*\[5, 160, 48\]"),
    ("mixtral", _config(num_local_experts=4), r"mlp\.gate\.weight.*\[5, 48\].*\[4, 48\]"),
    ("mixtral", _config(num_experts_per_tok=9), "9 of 5 experts"),
    ("mixtral", _without("0.block_sparse_moe.gate"), r"no tensor 'model\.layers\.0\.mlp\.gate\.weight'"),
    ("deepseek_v3", _config(n_group=3), "3 groups"),
    ("deepseek_v3", _config(topk_group=9), "9 of 4 groups"),
    ("deepseek_v3", _without("correction_bias"), "no tensor .*e_score_correction_bias"),
    ("deepseek_v3", _config(kv_lora_rank=16), r"kv_a_proj_with_mqa\.weight.*\[28, 48\].*\[24, 48\]"),
    ("deepseek_v3", _config(v_head_dim=10), "kv_b_proj"),
    ("gpt_oss", _without("sinks"), r"no tensor .*sinks"),
    ("gpt_oss", _narrow("sinks", 2), r"sinks.*\[2\].*\[4\]"),
], ids=lambda x: x if type(x) is str else "")  # fmt: skip
def test_what_does_not_fit_is_named(family: str, damage: Damage, words: str, tmp_path: Path) -> None:
    save(tiny(family), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, said = load_file(weights), json.loads(config.read_text())
    damage(tensors, said)
    save_file(tensors, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(said))
    with pytest.raises(TwinlensError, match=words):
        twinlens.load(tmp_path)


def test_a_nan_in_an_expert_is_named(tmp_path: Path) -> None:
    model: Any = tiny("mixtral")
    model.model.layers[0].mlp.experts.down_proj.data[1, 2, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"experts\.down_proj.*NaN"):
        twinlens.load(model)
