"""Rotary tables: base, scaling, factor."""

from __future__ import annotations

from typing import Any

import torch

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import (
    attentions,
    frequencies,
    rope_again,
)

WING = Wing("rotary")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
FLOAT32 = {"dtype": torch.float32}


@exhibit(
    "marinfold-transformers5-rope-block-ignored",
    "llama",
    Want("rotary.scaling", "llama3", None, ()),
    Want("rotary.base", 7000.0, 10000.0, ()),
    build={"rope": "llama3"},
    source="Open-Athena/MarinFold#184",
)
def _(m: Model) -> None:
    """The keys moved under rope_parameters, and nobody reads them there: base and scaling are defaults."""
    rope_again(m, rope_type="default", rope_theta=10000.0)


@exhibit(
    "deepspeed-inference-theta-default",
    "mistral",
    Want("rotary.base", 7000.0, 10000.0, ()),
    source="deepspeedai/DeepSpeed#8345; deepspeedai/DeepSpeed#8341",
)
def _(m: Model) -> None:
    """The base is a default of the engine."""
    rope_again(m, rope_theta=10000.0)


@exhibit(
    "serving-engines-theta-move",
    "qwen3",
    Want("rotary.base", 7000.0, 10000.0, ()),
    source="vllm-project/vllm#28542; sgl-project/sglang#14745; InternLM/lmdeploy#4304",
)
def _(m: Model) -> None:
    """`rope_theta` has moved, an engine takes 10000."""
    rope_again(m, rope_theta=10000.0)


@exhibit(
    "easylm-theta-never-passed",
    "llama",
    Want("rotary.base", 500000.0, 10000.0, ()),
    build={"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    source="young-geng/EasyLM#117",
)
def _(m: Model) -> None:
    """A base of 500000 is never passed on."""
    rope_again(m, rope_theta=10000.0)


@exhibit("phi-rope-theta-lookup", "phi3", Want("rotary.base", 7000.0, 1000000.0, ()), source="dphnAI/sonar#1331")
def _(m: Model) -> None:
    """The base is looked up under another key."""
    rope_again(m, rope_theta=1000000.0)


def _gemma3(m: Model, **kinds: dict[str, Any]) -> None:
    rope = {kind: dict(values) for kind, values in m.config.rope_parameters.items()}
    for kind, values in kinds.items():
        rope[kind].update(values)
    import copy

    config = copy.deepcopy(m.config)
    config.rope_parameters = rope
    m.model.rotary_emb = type(m.model.rotary_emb)(config=config)


@exhibit(
    "gemma-cpp-theta-compiled-in",
    "gemma3_text",
    Want("rotary.base", 7000.0, 1000000.0, ()),
    Want("rotary.base", 500.0, 10000.0, ()),
    source="google/gemma.cpp#986; google/gemma.cpp#994",
)
def _(m: Model) -> None:
    """Both bases are compiled in."""
    _gemma3(m, full_attention={"rope_theta": 1000000.0}, sliding_attention={"rope_theta": 10000.0})


@exhibit(
    "llama3-rope-scaling-lost",
    "llama",
    Want("rotary.scaling", "llama3", None, ()),
    build={"rope": "llama3"},
    source="sbryngelson/ANEForge#58",
)
def _(m: Model) -> None:
    """Llama 3's scaling is not read, its base is."""
    rope_again(m, rope_type="default")


@exhibit(
    "mlx-vlm-declared-scaling-unused",
    "qwen2",
    Want("rotary.scaling", "llama3", None, ()),
    build={"rope": "llama3"},
    length=100,
    source="Blaizzy/mlx-vlm#1710",
)
def _(m: Model) -> None:
    """The scaling is declared and never used."""
    rope_again(m, rope_type="default")


@exhibit(
    "llama3-treated-as-linear",
    "llama",
    Want("rotary.scaling", "llama3", "linear", ()),
    build={"rope": "llama3"},
    source="Blaizzy/mlx-vlm#1710",
)
def _(m: Model) -> None:
    """All frequencies are divided, where Llama 3 divides the low ones."""
    rope_again(m, rope_type="linear")


@exhibit(
    "llama3-smooth-band-missing",
    "llama",
    Want("rotary.scaling"),
    build={"rope": "llama3"},
    length=96,
    source="huggingface/transformers, modeling_rope_utils.py",
)
def _(m: Model) -> None:
    """A hard switch between kept and divided frequencies."""
    rope_again(m, low_freq_factor=3.999)


@exhibit(
    "linear-scaling-lost",
    "llama",
    Want("rotary.scaling"),
    build={"rope": "linear"},
    source="hiyouga/LlamaFactory and vLLM rope_scaling options",
)
def _(m: Model) -> None:
    """Linear scaling is not read."""
    rope_again(m, rope_type="default")


@exhibit(
    "gemma3-linear-scaling-lost",
    "gemma3_text",
    Want("rotary.scaling", layers=()),
    source="hiyouga/LlamaFactory and vLLM rope_scaling options",
    like="linear-scaling-lost",
)
def _(m: Model) -> None:
    """The factor 8 of Gemma 3's global layers is not read."""
    _gemma3(m, full_attention={"rope_type": "default"})


@exhibit(
    "gemma3-scaling-applied-to-local-layers",
    "gemma3_text",
    Want("rotary.scaling", layers=()),
    source="vllm-project/vllm#29111",
)
def _(m: Model) -> None:
    """The factor of the global layers is applied to the local ones too."""
    _gemma3(m, sliding_attention={"rope_type": "linear", "factor": 8.0})


@exhibit(
    "gemma3-local-global-base-swapped",
    "gemma3_text",
    Want(("rotary.layers", "rotary.base", "rotary.scaling")),
    source="google/gemma.cpp#986",
)
def _(m: Model) -> None:
    """Local layers rotate by the global base and the other way round."""
    a, b = m.config.rope_parameters["full_attention"], m.config.rope_parameters["sliding_attention"]
    _gemma3(m, full_attention={"rope_theta": b["rope_theta"]}, sliding_attention={"rope_theta": a["rope_theta"]})


@exhibit(
    "gemma3-local-base-used-everywhere",
    "gemma3_text",
    Want("rotary.base", 7000.0, 500.0, ()),
    Want("rotary.scaling", layers=()),
    source="vllm-project/vllm#28542",
)
def _(m: Model) -> None:
    """Global layers have the local base and no scaling."""
    _gemma3(m, full_attention={"rope_type": "default", "rope_theta": 500.0})


@exhibit(
    "tgi-dynamic-extra-division",
    "llama",
    Want("rotary.scaling"),
    build={"rope": "dynamic"},
    source="huggingface/text-generation-inference#816",
)
def _(m: Model) -> None:
    """Dynamic scaling divides the positions as well."""
    frequencies(m, lambda f: f / 1.1)


@exhibit(
    "vllm-dynamic-ntk-static",
    "llama",
    Want(("rotary.scaling", "rotary.base"), layers=()),
    build={"rope": "dynamic"},
    source="vllm-project/vllm#5093",
)
def _(m: Model) -> None:
    """The base of the longest length is used at every length."""
    e = attentions(m)[0].head_dim
    base = 7000.0 * ((1.1 * 512 / 256) - 0.1) ** (e / (e - 2))
    frequencies(m, lambda f: 1.0 / (base ** (torch.arange(0, e, 2, dtype=torch.float) / e)))


@exhibit(
    "yarn-attention-factor-dropped",
    "llama",
    Want("rotary.attention_factor", layers=()),
    build={"rope": "yarn"},
    source="ggml-org/llama.cpp#17945",
)
def _(m: Model) -> None:
    """YaRN's factor on cos and sin is 1."""
    rope_again(m, attention_factor=1.0)


def _rope(name: str, **more: Any) -> dict[str, Any]:
    from twinlens.museum.tiny import ROPE

    return {"rope_parameters": ROPE[name] | more}


@exhibit(
    "yarn-explicit-attention-factor-ignored",
    "llama",
    Want("rotary.attention_factor", 0.5, layers=()),
    build=_rope("yarn", attention_factor=0.5),
    source="ml-explore/mlx-lm#1507; raullenchai/Rapid-MLX#1225",
)
def _(m: Model) -> None:
    """The checkpoint names a factor, the port computes its own."""
    rope_again(m, attention_factor=None)


@exhibit(
    "deepseek-r1-distill-attn-factor-misspelt",
    "qwen3",
    Want("rotary.attention_factor", 0.5, layers=()),
    build=_rope("yarn", attention_factor=0.5),
    source="deepseek-ai/DeepSeek-R1#684",
)
def _(m: Model) -> None:
    """The factor is misspelt in the config, so that a default is computed."""
    rope_again(m, attention_factor=None, attn_factor=0.5)


@exhibit(
    "yarn-as-linear",
    "qwen2",
    Want("rotary.scaling", "yarn", "linear", ()),
    Want("rotary.attention_factor", layers=()),
    build={"rope": "yarn"},
    source="vllm-project/vllm#10537",
)
def _(m: Model) -> None:
    """YaRN is taken for linear scaling by the same factor."""
    rope_again(m, rope_type="linear")


@exhibit(
    "yarn-beta-fast-slow-swapped",
    "llama",
    Want("rotary.scaling", layers=()),
    build=_rope("yarn", beta_fast=4.0, beta_slow=1.5, truncate=False),
    source="huggingface/transformers, modeling_rope_utils.py",
)
def _(m: Model) -> None:
    """YaRN's two betas are exchanged."""
    rope_again(m, beta_fast=1.5, beta_slow=4.0)


@exhibit(
    "gpt-oss-yarn-truncate",
    "gpt_oss",
    Want("rotary.scaling", layers=()),
    build=_rope("yarn, not truncated", original_max_position_embeddings=64),
    source="huggingface/transformers, modeling_rope_utils.py",
)
def _(m: Model) -> None:
    """YaRN's corners are rounded to whole dimensions, where gpt-oss keeps them."""
    rope_again(m, truncate=True)


@exhibit(
    "deepseek-mscale-on-cos-sin",
    "deepseek_v3",
    Want("rotary.attention_factor", layers=()),
    source="kekzl/imp#880; ggml-org/llama.cpp#7118",
)
def _(m: Model) -> None:
    """YaRN's mscale is multiplied onto cos and sin."""
    m.model.rotary_emb.attention_scaling = 1.261


@exhibit(
    "deepseek-rope-interleave-ignored",
    "deepseek_v3",
    Want("rotary.layout", "interleaved_to_half", "half", ALL3),
    source="huggingface/transformers, models/deepseek_v3 (rope_interleave)",
)
def _(m: Model) -> None:
    """DeepSeek's rows are interleaved, the port takes halves."""
    m.config.rope_interleave = False


@exhibit(
    "longrope-long-factor-always",
    "phi3",
    Want("rotary.scaling", layers=()),
    build={"rope": "longrope", "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16},
    length=14,
    source="lablup/mlxcel#1358",
)
def _(m: Model) -> None:
    """The long factors are used below the trained length too."""
    rope_again(m, short_factor=m.config.rope_parameters["long_factor"])


@exhibit(
    "longrope-short-factor-always",
    "phi3",
    Want("rotary.scaling", layers=()),
    build={"rope": "longrope", "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16},
    source="ggml-org/llama.cpp#6849 (comment on EricLBuehler/mistral.rs#251)",
)
def _(m: Model) -> None:
    """The short factors are used beyond the trained length."""
    rope_again(m, long_factor=m.config.rope_parameters["short_factor"])


@exhibit(
    "longrope-attention-factor-dropped",
    "phi3",
    Want("rotary.attention_factor", layers=()),
    build={"rope": "longrope", "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16},
    source="lablup/mlxcel#1358",
)
def _(m: Model) -> None:
    """The factor on cos and sin is 1."""
    m.model.rotary_emb.attention_scaling = 1.0
