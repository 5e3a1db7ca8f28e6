"""Checkpoints: names, shards, fingerprints, and one clear sentence for each that is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import twinlens
from twinlens import CheckpointError, declare, from_module, open_checkpoint
from twinlens.museum.tiny import FAMILIES, random_tokens, save, tiny_gpt2, tiny_llama

every_family = pytest.mark.parametrize("family", FAMILIES)


def rewrite(folder: Path, change: Any) -> Path:
    """Saves the tensors again as `change` returns them."""
    file = folder / "model.safetensors"
    save_file(change({k: v.clone() for k, v in load_file(file).items()}), file)
    return folder


def reconfigure(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


def same_logits(model: PreTrainedModel, path: Path) -> bool:
    tokens = random_tokens(model)
    return torch.equal(twinlens.load(path)(tokens), twinlens.load(model)(tokens))


@every_family
def test_names_with_and_without_the_prefix(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    path = save(model, tmp_path)
    whole = open_checkpoint(path).fingerprint()

    def strip(tensors: dict[str, Any]) -> dict[str, Any]:
        return {k.removeprefix("transformer.").removeprefix("model."): v for k, v in tensors.items()}

    assert same_logits(model, rewrite(path, strip))
    assert open_checkpoint(path).fingerprint() == whole


@every_family
def test_shards_are_the_same_checkpoint(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert same_logits(model, tmp_path)
    assert open_checkpoint(tmp_path).fingerprint() == from_module(model).fingerprint()


def test_tied_weights(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    path = save(model, tmp_path)
    assert "lm_head.weight" not in open_checkpoint(path).tensors.names()
    assert same_logits(model, path)
    head = open_checkpoint(path).weight("lm_head.weight")
    assert torch.equal(head, model.model.embed_tokens.weight)


def test_a_fingerprint_sees_the_first_and_last_entries_of_each_tensor() -> None:
    one, other = tiny_gpt2(), tiny_gpt2()
    assert from_module(one).fingerprint() == from_module(other).fingerprint()
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.weight[-1, -1] += 1
    assert from_module(one).fingerprint() != from_module(other).fingerprint()


def test_parameters_are_taken_by_reference() -> None:
    model = tiny_llama()
    weight = from_module(model).weight("model.norm.weight")
    assert weight is model.model.norm.weight


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        twinlens.load(path)
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", r"config\.json does not exist")
    (folder / "model.safetensors").unlink()
    refused(folder, r"no model\.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    refused(folder, "pickle")


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, r"config\.json")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    refused(folder, "cut short")


def test_a_missing_shard(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    first = min(tmp_path.glob("*.safetensors"))
    first.unlink()
    refused(tmp_path, f"{first.name} does not exist")


def test_a_missing_weight(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    refused(rewrite(folder, lambda t: {k: v for k, v in t.items() if k != name}), name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24, "head_dim": 12}, r"embed_tokens.*\[103, 48\].*\[103, 24\]"),
        ({"vocab_size": 90}, r"embed_tokens.*\[103, 48\].*\[90, 48\]"),
        ({"num_key_value_heads": 4}, r"layers\.0\.self_attn\.k_proj"),
        ({"num_hidden_layers": 2}, r"layers\.2.*says 2 layers"),
        ({"num_hidden_layers": 4}, r"layers\.3"),
        ({"tie_word_embeddings": False, "attention_bias": True}, r"q_proj\.bias"),
    ],
    ids=str,
)
def test_other_geometry(folder: Path, changes: dict[str, Any], message: str) -> None:
    refused(reconfigure(folder, **changes), message)


def test_other_mlp_width_in_one_layer(folder: Path) -> None:
    def narrow(tensors: dict[str, Any]) -> dict[str, Any]:
        name = "model.layers.1.mlp.down_proj.weight"
        return tensors | {name: tensors[name][:, :-1].contiguous()}

    refused(rewrite(folder, narrow), r"layers\.1\.mlp\.down_proj.*\[48, 79\].*\[48, 80\]")


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "a NaN"), (float("inf"), "an infinite")])
def test_a_weight_that_is_not_finite(folder: Path, value: float, word: str) -> None:
    def damage(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["model.layers.2.mlp.gate_proj.weight"][7, 3] = value
        return tensors

    refused(rewrite(folder, damage), rf"layers\.2\.mlp\.gate_proj.*{word}.*row 7")


def test_a_weight_that_was_finite_is_read_again_once_it_is_written() -> None:
    model = tiny_llama()
    spec = declare(from_module(model).config)
    from_module(model).check(spec)
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[7, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*a NaN.*row 7"):
        from_module(model).check(spec)
    weight.data = torch.full_like(weight, float("inf"))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*an infinite"):
        from_module(model).check(spec)


def test_a_write_that_torch_does_not_count_is_seen() -> None:
    model = tiny_llama()
    twinlens.load(model)
    model.model.layers[1].mlp.up_proj.weight.data[7, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*a NaN.*row 7"):
        twinlens.load(model)


def test_a_sum_that_overflows_is_no_infinite_weight() -> None:
    model = tiny_llama(dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(60000.0)
    checkpoint = from_module(model)
    checkpoint.check(declare(checkpoint.config, dtype=torch.float16))


def test_a_module_without_a_config() -> None:
    with pytest.raises(CheckpointError, match="Linear has no transformers config"):
        twinlens.load(torch.nn.Linear(2, 2))
