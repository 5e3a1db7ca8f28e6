"""Rotary positions: base, scaling, factor, layout, width, precision, layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import (
    attentions,
    file_of,
    frequencies,
    interleaved,
    layers,
    method,
    modeling,
    rope_again,
    tables,
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


@exhibit(
    "partial-rotary-full-width",
    "glm4",
    Want("rotary.dim", 8, 16),
    source="ml-explore/mlx-lm#1698; vllm-project/vllm#16912; InternLM/lmdeploy#3861",
)
def _(m: Model) -> None:
    """All of a head is rotated, where half should be."""
    rope_again(m, partial_rotary_factor=1.0)


@exhibit(
    "neox-rotary-pct-ignored",
    "gpt_neox",
    Want("rotary.dim", 6, 12),
    source="lablup/mlxcel#928; huggingface/transformers#48630",
)
def _(m: Model) -> None:
    """GPT-NeoX's rotary_pct is not read."""
    rope_again(m, partial_rotary_factor=1.0)


@exhibit("phi-partial-rotary-ignored", "phi3", Want("rotary.dim", 6, 12), source="vllm-project/vllm#17266")
def _(m: Model) -> None:
    """Phi's partial_rotary_factor is not read."""
    rope_again(m, partial_rotary_factor=1.0)


def _half(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Halves, from tables that hold each angle twice in a row or all angles twice."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turn(x: Tensor) -> Tensor:
        width = cos.shape[-1]
        each = (cos[..., ::2], sin[..., ::2]) if bool((cos[..., 0] == cos[..., 1]).all()) else (
            cos[..., : width // 2], sin[..., : width // 2]
        )  # fmt: skip
        c, s = (torch.cat((t, t), -1) for t in each)
        y, rest = x[..., :width], x[..., width:]
        other = torch.cat((-y[..., width // 2 :], y[..., : width // 2]), -1)
        return torch.cat((y * c + other * s, rest), -1).to(x.dtype)

    return turn(q), turn(k)


@exhibit(
    "cohere-half-for-interleaved",
    "cohere2",
    Want("rotary.layout", "interleaved", "half"),
    source="linkedin/Liger-Kernel#248; ggml-org/llama.cpp#6033; Lightning-AI/litgpt#1089",
)
def _(m: Model) -> None:
    """Cohere rotates neighbours, the port halves."""
    modeling(m, apply_rotary_pos_emb=_half)


@exhibit(
    "glm-half-for-interleaved",
    "glm4",
    Want("rotary.layout", "interleaved", "half", ALL3),
    source="Blaizzy/mlx-vlm#481; ModelTC/LightLLM#103; huggingface/transformers#34629",
)
def _(m: Model) -> None:
    """GLM rotates neighbours, the port halves."""
    modeling(m, apply_rotary_pos_emb=_half)


@exhibit(
    "llama-interleaved-for-half",
    "llama",
    Want("rotary.layout", "half", "interleaved", ALL3),
    source="ml-explore/mlx-examples#1145",
)
def _(m: Model) -> None:
    """GPT-J's rotation for Llama's."""
    modeling(m, apply_rotary_pos_emb=interleaved)


@exhibit(
    "qwen3-interleaved-for-half",
    "qwen3",
    Want("rotary.layout", "half", "interleaved", ALL3),
    source="ml-explore/mlx-examples#1145",
    like="llama-interleaved-for-half",
)
def _(m: Model) -> None:
    """GPT-J's rotation in a family with norms of queries and keys."""
    modeling(m, apply_rotary_pos_emb=interleaved)


def _permuted(w: Tensor, heads: int) -> None:
    width = w.shape[0] // heads
    w.copy_(w.view(heads, 2, width // 2, -1).transpose(1, 2).reshape(w.shape).clone())


@exhibit(
    "gguf-qk-permutation-left-in",
    "llama",
    Want("weight", layers=ALL3),
    source="mattn/tensai#37; JustVugg/colibri#1425; ggml-org/llama.cpp#15852",
)
def _(m: Model) -> None:
    """Rows of queries and keys stand as the other layout wants them."""
    for a in attentions(m):
        _permuted(a.q_proj.weight, 4)
        _permuted(a.k_proj.weight, 2)


@exhibit(
    "gguf-k-permuted-with-query-head-count",
    "llama",
    Want("weight", layers=ALL3),
    source="huggingface/transformers#31788",
)
def _(m: Model) -> None:
    """The keys' permutation is undone with the number of query heads."""
    for a in attentions(m):
        _permuted(a.k_proj.weight, 4)


@exhibit("qk-permutation-plus-interleaved-rotation", "llama", source="ggml-org/llama.cpp#2398")
def _(m: Model) -> None:
    """Permuted rows and the other layout: the same function."""
    for a in attentions(m):
        _permuted(a.q_proj.weight, 4)
        _permuted(a.k_proj.weight, 2)
    modeling(m, apply_rotary_pos_emb=interleaved)


@exhibit("nope-layer-qk-permutation-invisible", "smollm3", source="mattn/tensai#57")
def _(m: Model) -> None:
    """Rows permuted in a layer that does not rotate."""
    a = attentions(m)[1]
    _permuted(a.q_proj.weight, 4)
    _permuted(a.k_proj.weight, 2)


@exhibit(
    "smollm3-rope-on-nope-layers",
    "smollm3",
    Want("rotary.layers", layers=(1,)),
    source="timtoole02/Camelid#535; airockchip/rknn-llm#501",
)
def _(m: Model) -> None:
    """Layers without rotary positions rotate."""
    for a in attentions(m):
        a.use_rope = True


@exhibit(
    "smollm3-nope-flag-read-inverted",
    "smollm3",
    Want("rotary.layers", layers=ALL3),
    source="huggingface/transformers#43756; huggingface/smollm#130",
)
def _(m: Model) -> None:
    """The flag is read the other way round."""
    for a in attentions(m):
        a.use_rope = not a.use_rope


@exhibit(
    "cohere2-rope-on-global-layers",
    "cohere2",
    Want("rotary.layers", layers=(3,)),
    source="TransformerLensOrg/TransformerLens#1485; magicnight/Mac-MLX#88",
)
def _(m: Model) -> None:
    """Cohere's global layers rotate, though they should not."""
    plain = file_of(m).apply_rotary_pos_emb
    a = attentions(m)[3]
    forward = a.forward

    def turned(*args: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        q, k = a.q_proj, a.k_proj

        def rotated(product: Any) -> Any:
            def after(x: Tensor) -> Tensor:
                y = product(x)
                z = y.view(*y.shape[:-1], -1, a.head_dim).transpose(1, 2)
                return plain(z, z, cos, sin)[0].transpose(1, 2).reshape(y.shape)

            return after

        object.__setattr__(a, "museum", True)
        modules = a._modules
        modules["q_proj"], modules["k_proj"] = _Lambda(rotated(q)), _Lambda(rotated(k))
        try:
            return forward(*args, position_embeddings=position_embeddings, **kwargs)
        finally:
            modules["q_proj"], modules["k_proj"] = q, k

    a.forward = turned


class _Lambda(torch.nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


@exhibit(
    "model-to-bf16-casts-inv-freq",
    "llama",
    Want("rotary.dtype", layers=()),
    build={"dtype": torch.bfloat16},
    source="huggingface/transformers#25681; NVIDIA/Megatron-LM#744",
)
def _(m: Model) -> None:
    """`model.to(bfloat16)` casts the frequencies too."""
    m.to(torch.bfloat16)


@exhibit(
    "rope-inv-freq-bf16",
    "mistral",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="huggingface/transformers#29496",
)
def _(m: Model) -> None:
    """Frequencies in bfloat16 in a float32 model."""
    frequencies(m, lambda f: f.bfloat16().float())


@exhibit(
    "rope-angles-bf16",
    "llama",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="EleutherAI/gpt-neox#1003; huggingface/transformers#29285",
)
def _(m: Model) -> None:
    """Angles in bfloat16."""
    method(m.model.rotary_emb, tables(lambda p, f: (p * f).bfloat16().float()))


@exhibit(
    "rope-angles-bf16-gpt-neox",
    "gpt_neox",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="EleutherAI/gpt-neox#1003; huggingface/transformers#29285",
    like="rope-angles-bf16",
)
def _(m: Model) -> None:
    """Angles in bfloat16, of a part of the width."""
    method(m.gpt_neox.rotary_emb, tables(lambda p, f: (p * f).bfloat16().float()))


@exhibit(
    "rope-cos-sin-bf16-in-fp32-model",
    "llama",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="EleutherAI/gpt-neox#1003",
)
def _(m: Model) -> None:
    """cos and sin in bfloat16 in a float32 model."""
    method(m.model.rotary_emb, tables(table=lambda t: t.bfloat16().float()))


@exhibit("benign-rope-angles-float64", "llama", source="TransformerLensOrg/TransformerLens#693")
def _(m: Model) -> None:
    """Angles in float64."""
    method(m.model.rotary_emb, tables(lambda p, f: p.double() * f.double()))


@exhibit(
    "layer-that-does-not-rotate",
    "llama",
    Want("rotary.layers", layers=(1,)),
    source="huggingface/transformers#43756; huggingface/smollm#130",
    like="smollm3-nope-flag-read-inverted",
)
def _(m: Model) -> None:
    """A flag of another family switches the rotation of a layer off."""
    a = layers(m)[1].self_attn
    forward = a.forward

    def still(*args: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        return forward(*args, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)), **kwargs)

    a.forward = still
