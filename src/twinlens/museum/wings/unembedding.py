"""Logits: cap, factor, head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import method

WING = Wing("unembedding")
exhibit = WING.exhibit


@exhibit(
    "gemma2-final-softcap-dropped",
    "gemma2",
    Want("unembed.softcap", 10.0, None, ()),
    source="vllm-project/vllm#52173; tdrussell/qlora-pipe#18",
)
def _(m: Model) -> None:
    """The cap of the logits is dropped."""
    m.config.final_logit_softcapping = None


@exhibit(
    "gemma2-final-softcap-changed",
    "gemma2",
    Want("unembed.softcap", 10.0, 30.0, ()),
    source="vllm-project/vllm#52173; tdrussell/qlora-pipe#18",
    like="gemma2-final-softcap-dropped",
)
def _(m: Model) -> None:
    """The cap of the logits is compiled in."""
    m.config.final_logit_softcapping = 30.0


@exhibit(
    "logits-scale-of-wrapper-lost", "granite", Want("unembed.scale", 1 / 0.7, 1.0, ()), source="vllm-project/vllm#52158"
)
def _(m: Model) -> None:
    """Granite's logits_scaling is not read."""
    m.config.logits_scaling = 1.0


@exhibit(
    "granite-logits-scaling-multiplied",
    "granite",
    Want("unembed.scale", 1 / 0.7, 0.7, ()),
    source="unslothai/unsloth#1218",
)
def _(m: Model) -> None:
    """Logits are multiplied by logits_scaling, where they should be divided."""
    m.config.logits_scaling = 1 / 0.7


@exhibit(
    "cohere-logit-scale-ignored",
    "cohere2",
    Want("unembed.scale", 0.7, 1.0, ()),
    source="Lightning-AI/litgpt#1089; InternLM/xtuner#480",
)
def _(m: Model) -> None:
    """Cohere's logit_scale is not read."""
    m.logit_scale = 1.0


@exhibit(
    "logit-scale-equals-temperature", "llama", Want("unembed.scale", 1.0, 0.0625, ()), source="vllm-project/vllm#52158"
)
def _(m: Model) -> None:
    """A factor on the logits, which acts as a temperature."""
    m.lm_head.register_forward_hook(lambda mod, x, y: y * 0.0625)


@exhibit(
    "tied-head-left-random",
    "qwen2",
    Want("weight", layers=()),
    build={"tie_word_embeddings": True},
    source="huggingface/transformers#43429; sgl-project/sglang#1508",
)
def _(m: Model) -> None:
    """The unembedding should be the embedding, and was left as it was initialised."""
    draw = torch.Generator().manual_seed(11)  # not the embedding's own
    made = torch.randn(m.lm_head.weight.shape, generator=draw) * 0.5
    m.lm_head.weight = nn.Parameter(made.to(m.lm_head.weight.dtype))


@exhibit(
    "untied-head-replaced-by-embedding",
    "llama",
    Want("weight", "lm_head.weight", "model.embed_tokens.weight", ()),
    source="huggingface/transformers#42612; pegainfer-project/pegainfer#544",
)
def _(m: Model) -> None:
    """The embedding is used for an unembedding that has its own matrix."""
    m.lm_head.weight = m.model.embed_tokens.weight


@exhibit(
    "baichuan-normhead-missing",
    "llama",
    Want(("unembed.norm", "weight"), layers=()),
    source="vllm-project/vllm#1022; vllm-project/vllm#15939",
)
def _(m: Model) -> None:
    """The rows of the unembedding are of unit length on one side."""
    m.lm_head.weight = nn.Parameter(F.normalize(m.lm_head.weight, dim=1))


@exhibit(
    "lm-head-bf16",
    "llama",
    Want("unembed.dtype", "float32", "bfloat16", ()),
    build={"dtype": torch.float32},
    source="PrimeIntellect-ai/prime-rl#2438; ServiceNow/Fast-LLM#525",
)
def _(m: Model) -> None:
    """The last product is computed in bfloat16 in a float32 model."""
    method(m.lm_head, lambda self, x: F.linear(x.bfloat16(), self.weight.bfloat16()).float())


@exhibit(
    "centred-unembedding",
    "llama",
    source="TransformerLensOrg/TransformerLens#693",
)
def _(m: Model) -> None:
    """The mean over the vocabulary is taken off the unembedding: a constant per token."""
    m.lm_head.weight.sub_(m.lm_head.weight.mean(0))


@exhibit(
    "centred-unembedding-with-softcap",
    "gemma2",
    Want("weight", layers=()),
    build={"tie_word_embeddings": False},
    source="TransformerLensOrg/TransformerLens#650",
)
def _(m: Model) -> None:
    """The same under a cap of the logits, which is no longer a constant."""
    m.lm_head.weight.sub_(m.lm_head.weight.mean(0))


@exhibit("stale-float32-head-copy", "qwen3", Want("weight", layers=()), source="PrimeIntellect-ai/prime-rl#2438")
def _(m: Model) -> None:
    """The head is a copy of an earlier step."""
    m.lm_head.weight.add_(3e-2 * torch.randn(m.lm_head.weight.shape).sign().to(m.lm_head.weight.dtype))
