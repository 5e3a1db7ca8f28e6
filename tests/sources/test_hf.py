"""transformers is loaded from disk alone: mapped, whole, safetensors; anything else is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from twinlens.capture import invoke
from twinlens.errors import CheckpointError, SourceError, TwinlensError
from twinlens.sources import hf

CONFIG = GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
TOKENS = torch.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_model_of_transformers(checkpoint: Path, attn: str, dtype: str):
    built = hf.build(str(checkpoint), attn=attn, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=attn, dtype=hf.dtype_of(dtype)).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert built.call is None
    assert torch.equal(invoke(built.module, TOKENS, None, None), theirs(TOKENS).logits)
    assert torch.equal(invoke(built.module, TOKENS, mask, None), theirs(TOKENS, attention_mask=mask).logits)
    assert built.about["implementation"] == "transformers"
    assert built.config is not None
    assert built.config["model_type"] == "gpt2"


def test_weights_stay_in_the_file(checkpoint: Path):
    module = hf.build(str(checkpoint)).module
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if ".safetensors" in line
    ]
    for name, weight in module.named_parameters():
        assert any(low <= weight.data_ptr() < high for low, high in mapped), name


def test_a_missing_weight_is_named_and_not_invented(damaged: Path):
    weights = load_file(damaged / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight"):
        hf.build(str(damaged))


def test_a_weight_that_nobody_reads_is_told(damaged: Path):
    weights = load_file(damaged / "model.safetensors")
    save_file(weights | {"stray": torch.zeros(1)}, damaged / "model.safetensors", {"format": "pt"})
    assert hf.build(str(damaged)).about["unread_weights"] == "stray"


def test_a_file_cut_short_is_refused(damaged: Path):
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TwinlensError, match="cannot load"):
        hf.build(str(damaged))


def test_no_pickle_is_read(damaged: Path):
    weights = load_file(damaged / "model.safetensors")
    (damaged / "model.safetensors").unlink()
    torch.save(weights, damaged / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no pickled weights"):
        hf.build(str(damaged))


def test_what_transformers_does_not_know_is_refused_in_one_sentence(damaged: Path):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(SourceError, match="unheard_of"):
        hf.build(str(damaged))


@pytest.mark.parametrize("path", ["/no/such/folder", "/no/such.gguf"])
def test_an_absent_path_is_refused(path: str):
    with pytest.raises(CheckpointError, match="does not exist"):
        hf.build(path)


def test_a_gguf_file_is_a_model(smollm2_path: Path):
    built = hf.build(str(smollm2_path), dtype="bfloat16")
    assert built.config is not None
    assert built.config["num_hidden_layers"] == 30
    assert built.checkpoint == smollm2_path
    assert invoke(built.module, TOKENS[:1], None, None).isfinite().all()
