"""SantaCoder and StarCoder (Ben Allal et al. 2023): GPT-2 with one key/value head for all queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import gpt2, rows
from twinlens.families.config import Config
from twinlens.families.rows import Norm
from twinlens.ops import Activate, Part, Scores
from twinlens.spec import Shape, Step


def shape(c: Config) -> Shape:
    """Sizes that the weights fix."""
    found = gpt2.shape(c)
    return found if not c.get("multi_query", default=True) else dataclasses.replace(found, kv_heads=1)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "resid_pdrop", "embd_pdrop", "attn_pdrop")
    c.ignore("the summary head of other tasks", *gpt2.SUMMARY)
    c.ignore(
        "how old code ran it",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "runner_max_sequence_length",
        "inference_runner",
        "validate_runner_input",
        "pre_allocate_kv_cache",
        "max_batch_size",
        "max_sequence_length",
    )
    c.ignore("what follows from multi_query", "num_key_value_heads")
    c.require("add_cross_attention", False, "a decoder alone has none")
    norm = Norm.fused(c.get("layer_norm_epsilon", default=1e-5))
    act = Activate(*rows.activation(c, "activation_function", default="gelu_pytorch_tanh"))
    scores = Scores(sqrt(shape.head_width) if c.get("scale_attn_weights", default=True) else 1.0)
    part = Part() if c.get("multi_query", default=True) else Part(layout="interleaved")

    yield rows.embed("transformer.wte")
    yield rows.learned_positions("transformer.wpe")
    stream = ("hook_embed", "hook_pos_embed")
    for b in rows.blocks(shape, "transformer.h"):
        yield b.start(*stream)
        yield from b.norm("ln1", "hook_resid_pre", norm, "ln_1")
        yield from b.fused_heads("attn.c_attn", part, bias=True)
        yield from b.attend(scores, q="hook_q", k="hook_k")
        yield b.output("attn.c_proj", bias=True)
        yield from b.add_attention()
        yield from b.norm("ln2", "hook_resid_mid", norm, "ln_2")
        yield from b.mlp("mlp.c_fc", "mlp.c_proj", act)
        yield from b.add_mlp()
        stream = (b.end,)
    yield from norm.rows("ln_final", stream[-1], "transformer.ln_f")
    yield rows.unembed(c, "transformer.wte", tied=True)
