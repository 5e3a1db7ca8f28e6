"""Random checkpoints in a released geometry, in which a wrong constant cannot hide.

The usual initialisation gives scores near zero, so that no scale and no cap would matter. Here the
scores have a standard deviation of `SCORES`, and norms are drawn.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SCORES = 11.0
"""Standard deviation of scores: several units, so that a cap of 50 bites in the tails."""
NORMS = 0.2
EMBEDDING = 1.5
"""Standard deviation of logits, and of an embedding after Gemma's factor sqrt(width)."""


@dataclass(frozen=True)
class Size:
    """The geometry of a checkpoint."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    positions: int
    window: int | None = None


SMALL = Size(4, 96, 192, 4, 2, 24, 256, positions=512, window=32)
FULL = Size(26, 2304, 9216, 8, 4, 256, 256_000, positions=512, window=4096)
"""gemma-2-2b; positions only size the square masks that TransformerLens holds in each layer."""
LLAMA = Size(2, 256, 512, 4, 1, 64, 512, positions=2048)
"""Llama-3.2-1B's heads and rotary settings; width, depth and vocabulary are smaller."""


def gemma2(folder: Path, size: Size, seed: int = 0) -> Path:
    """A Gemma 2 with random weights; one that is there already is kept.

    The config has the old and the new spelling of the rotary base: transformers 4.43.2 reads
    `rope_theta` only, and rotates in silence with its default where just `rope_parameters` is said.
    """
    types = [("sliding_attention", "full_attention")[i % 2] for i in range(size.layers)]
    config = {
        **_config(size),
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": size.window,
        "layer_types": types,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    return written(folder, config, _shards(size, seed, norms, divisor=16.0, centre=0.0))


def llama32(folder: Path, size: Size = LLAMA, seed: int = 0) -> Path:
    """A Llama with the rotary settings of Llama 3.2 and random weights."""
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {
        **_config(size),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_theta": 500000.0,
        "rope_scaling": scaling,
        "rope_parameters": {**scaling, "rope_theta": 500000.0},
    }
    divisor = math.sqrt(size.head_width)
    norms = ("input", "post_attention")
    return written(folder, config, _shards(size, seed, norms, divisor=divisor, centre=1.0))


def _config(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.width,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_width,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": size.positions,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def _shards(
    size: Size, seed: int, norms: tuple[str, ...], *, divisor: float, centre: float
) -> Iterator[dict[str, Tensor]]:
    """The tensors, one layer at a time, so that no more than one is in memory."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return torch.empty(shape).normal_(mean, std, generator=draw)

    d, q, kv = size.width, size.heads * size.head_width, size.kv_heads * size.head_width
    sharp = math.sqrt(SCORES * divisor / math.sqrt(size.head_width) / d)
    yield {"model.embed_tokens.weight": normal(size.vocabulary, d, std=EMBEDDING / math.sqrt(d))}
    for i in range(size.layers):
        tensors = {f"{norm}_layernorm": normal(d, std=NORMS, mean=centre) for norm in norms}
        for name, out, read, std in (
            ("self_attn.q_proj", q, d, sharp),
            ("self_attn.k_proj", kv, d, sharp),
            ("self_attn.v_proj", kv, d, 1 / math.sqrt(d)),
            ("self_attn.o_proj", d, q, 1 / math.sqrt(q)),
            ("mlp.gate_proj", size.mlp, d, 1 / math.sqrt(d)),
            ("mlp.up_proj", size.mlp, d, 1 / math.sqrt(d)),
            ("mlp.down_proj", d, size.mlp, 1 / math.sqrt(size.mlp)),
        ):
            tensors[name] = normal(out, read, std=std)
        yield {f"model.layers.{i}.{name}.weight": tensor for name, tensor in tensors.items()}
    yield {"model.norm.weight": normal(d, std=NORMS, mean=centre)}


def written(folder: Path, config: dict[str, Any], shards: Iterator[dict[str, Tensor]]) -> Path:
    """Shards, their index, and config.json last: a folder that has it is whole."""
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def check_room(folder: Path, wanted: float) -> None:
    """Raises OSError where the disk has no room, before anything is written."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e9:.0f} GB are free where {wanted / 1e9:.0f} are needed",
            folder,
        )


def digest(folder: Path) -> str:
    """SHA-256 over every file of a folder, by name and content."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def listing(folder: Path) -> str:
    """SHA-256 over the name, size and time of change of every file: an environment has 40,000."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        stat = path.stat()
        total.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return total.hexdigest()
