"""The real TransformerLens 2.3.0 in its environment: its faults are there, and no others.

The environment is made where it is not there: a minute and 1.5 GB, once.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from twinlens.environments.make import make
from twinlens.environments.run import PACKAGE, clean_environ

BUILD = """
import json, sys
import torch
from twinlens.sources import hf, transformer_lens
torch.set_grad_enabled(False)
tokens = torch.arange(60).reshape(1, 60)
theirs, ours = transformer_lens.build(sys.argv[1]), hf.build(sys.argv[1])
blocks = theirs.module.blocks
said = {"scale": blocks[0].attn.attn_scale, "types": theirs.module.cfg.attn_types}
difference = lambda: (theirs.call(tokens, None) - ours.module(tokens, use_cache=False).logits).abs().max().item()
said["as shipped"] = difference()
masks = [block.attn.mask for block in blocks]
for i, block in enumerate(blocks):
    block.attn.attn_scale, block.attn.mask = 16.0, masks[i ^ 1]
said["mended"] = difference()
print(json.dumps(said))
"""


@pytest.mark.environment
def test_gemma_2_in_transformer_lens_2_3_0(tmp_path: Path):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=60,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        query_pre_attn_scalar=256,
        sliding_window=32,
        max_position_embeddings=128,
    )
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "model")
    border = tmp_path / "border" / "twinlens"
    border.mkdir(parents=True)
    (border / "__init__.py").write_text(f"__path__ = [{str(PACKAGE)!r}]")
    python = make(("transformer-lens==2.3.0", "transformers==4.43.2"), lambda _: None)
    told = subprocess.run(
        [python, "-c", BUILD, tmp_path / "model"],
        env=clean_environ() | {"PYTHONPATH": str(border.parent), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(told.stdout.splitlines()[-1])
    assert said["scale"] == pytest.approx(224**0.5)
    assert said["types"] == ["global", "local"] * 2
    assert said["as shipped"] > 0.1
    assert said["mended"] < 1e-4
