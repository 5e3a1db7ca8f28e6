"""Scores, caps, sinks, heads, precision of attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import ROOT12, attention, attentions, modeling, plain_cap, scaled

WING = Wing("attention")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
ROOT24 = math.sqrt(24)
FLOAT32 = {"dtype": torch.float32}


@exhibit(
    "gemma2-scale-14-97-vs-16",
    "gemma2",
    Want("attn.scale", ROOT24, math.sqrt(21), ALL4),
    source="TransformerLensOrg/TransformerLens#693",
)
def _(m: Model) -> None:
    """The divisor of the scores is the one of another size of the model."""
    scaled(m, 21)


@exhibit(
    "gemma2-27b-scale-head-dim-for-144",
    "gemma2",
    Want("attn.scale", ROOT24, 4.0, ALL4),
    source="Lightning-AI/litgpt, litgpt/config.py (comment at Gemma-2-27b)",
)
def _(m: Model) -> None:
    """The scale is taken from the width of a head, not from query_pre_attn_scalar."""
    scaled(m, 16)


@exhibit(
    "granite-attention-multiplier-ignored",
    "granite",
    Want("attn.scale", 1 / 0.11, ROOT12, ALL3),
    source="OpenNMT/CTranslate2#1882",
)
def _(m: Model) -> None:
    """Granite's attention multiplier is not read."""
    scaled(m, 12)


@exhibit(
    "gpt-neo-attention-is-unscaled",
    "gpt2",
    Want("attn.scale", ROOT12, 1.0, ALL3),
    source="huggingface/transformers, models/gpt_neo",
)
def _(m: Model) -> None:
    """Scores are not divided at all, as GPT-Neo does."""
    scaled(m, 1)


@exhibit(
    "gpt2-inverse-layer-scale-ignored",
    "gpt2",
    Want("attn.scale", 2 * ROOT12, ROOT12, (1,)),
    Want("attn.scale", 3 * ROOT12, ROOT12, (2,)),
    build={"scale_attn_by_inverse_layer_idx": True},
    source="huggingface/transformers, models/gpt2 (scale_attn_by_inverse_layer_idx)",
)
def _(m: Model) -> None:
    """Scores are not divided by the number of their layer."""
    scaled(m, 12)


@exhibit(
    "mistral-nemo-head-dim-not-read",
    "mistral",
    Want("attn.scale", 4.0, ROOT12, ALL3),
    build={"head_dim": 16},
    source="huggingface/text-generation-inference#2254; InternLM/lmdeploy#2761",
)
def _(m: Model) -> None:
    """The scale comes from hidden_size / heads, where head_dim says otherwise."""
    scaled(m, 12)


@exhibit(
    "zamba2-head-dim-default", "qwen3", Want("attn.scale", 4.0, ROOT12, ALL3), source="1bit-MONSTER/1bit-MONSTER#1462"
)
def _(m: Model) -> None:
    """head_dim has a default that is not this checkpoint's."""
    scaled(m, 12)


@exhibit(
    "mla-scale-without-rope-part",
    "deepseek_v3",
    Want("attn.scale", layers=ALL3),
    source="huggingface/transformers, models/deepseek_v3",
)
def _(m: Model) -> None:
    """DeepSeek's scale is taken from the width that is not rotated."""
    for a in attentions(m):
        a.scaling *= (24 / 16) ** 0.5


@exhibit(
    "deepseek-mscale-softmax-correction-missing",
    "deepseek_v3",
    Want("attn.scale", layers=ALL3),
    source="onnxruntime/mobius#548; huggingface/transformers#47435",
)
def _(m: Model) -> None:
    """YaRN's mscale squared is left out of the scale."""
    for a in attentions(m):
        a.scaling = a.qk_head_dim**-0.5


@exhibit(
    "attn-scale-1e-4-off",
    "llama",
    Want("attn.scale", ROOT12, ROOT12 / 1.0001, ALL3),
    source="design trial of this project",
)
def _(m: Model) -> None:
    """The scale is off by 1e-4 of its value: below the rounding of bfloat16."""
    for a in attentions(m):
        a.scaling *= 1 + 1e-4


@exhibit("q-scale-folded", "gemma2", source="AI-Hypercomputer/maxtext (query_pre_attn_scalar)")
def _(m: Model) -> None:
    """The scale stands in the weights of the queries."""
    for a in attentions(m):
        a.q_proj.weight.mul_(a.scaling)
        a.scaling = 1.0


@exhibit("two-faults-that-cancel", "gemma2", source="design trial of this project")
def _(m: Model) -> None:
    """Queries are doubled and the scale is halved."""
    for a in attentions(m):
        a.q_proj.weight.mul_(2.0)
        a.scaling /= 2.0


@exhibit(
    "gemma2-attn-softcap-dropped",
    "gemma2",
    Want("attn.softcap", 8.0, None, ALL4),
    source="vllm-project/vllm#5908; TransformerLensOrg/TransformerLens#693",
)
def _(m: Model) -> None:
    """The cap of the scores is dropped, as sdpa does."""
    for a in attentions(m):
        a.attn_logit_softcapping = None


@exhibit(
    "gemma2-attn-softcap-dropped-small-scores",
    "gemma2",
    Want("attn.softcap", 50.0, None, ALL4),
    build={"attn_logit_softcapping": 50.0},
    source="vllm-project/vllm#5908",
)
def _(m: Model) -> None:
    """The same with a cap of 50, which these scores hardly reach."""
    for a in attentions(m):
        a.attn_logit_softcapping = None


@exhibit("lmdeploy-gemma2-cap-logic", "gemma2", Want("attn.softcap", 8.0, 50.0, ALL4), source="InternLM/lmdeploy#2842")
def _(m: Model) -> None:
    """A cap that is compiled in."""
    for a in attentions(m):
        a.attn_logit_softcapping = 50.0


@exhibit(
    "softcap-applied-after-mask",
    "gemma2",
    Want(("attn.softcap", "attn.mask"), layers=ALL4),
    source="inferred from the order in huggingface/transformers, models/gemma2",
)
def _(m: Model) -> None:
    """The cap comes after the mask: masked scores become minus the cap."""

    def hide(s: Tensor, mask: Tensor | None) -> Tensor:
        return plain_cap(s if mask is None else s + mask, 8.0)

    modeling(m, eager_attention_forward=attention(cap=lambda s, c: s, hide=hide))


@exhibit(
    "gpt-oss-sinks-dropped",
    "gpt_oss",
    Want("attn.sinks", layers=ALL4),
    source="vllm-project/vllm-metal#550; unslothai/unsloth#5701; unslothai/unsloth#3142",
)
def _(m: Model) -> None:
    """The sinks are not loaded: minus a billion."""
    for a in attentions(m):
        a.sinks.fill_(-1e9)


@exhibit(
    "sink-as-zero-logit", "gpt_oss", Want("attn.sinks", layers=ALL4), source="huggingface/transformers, models/gpt_oss"
)
def _(m: Model) -> None:
    """One plus the sum of exponentials, instead of learned sinks."""
    for a in attentions(m):
        a.sinks.zero_()


def _fold_value_bias(m: Model) -> None:
    for a in attentions(m):
        value = a.v_proj.bias.view(2, 1, -1).expand(2, 2, -1).flatten()
        a.o_proj.bias.add_(a.o_proj.weight @ value)
        a.v_proj.bias.zero_()


@exhibit(
    "gpt-oss-value-bias-folded-with-sinks",
    "gpt_oss",
    Want("bias", layers=ALL4),
    build={"attention_bias": True},
    source="TransformerLensOrg/TransformerLens, transformer_lens/weight_processing.py (fold_value_biases)",
)
def _(m: Model) -> None:
    """The values' bias is folded into the output's, though with sinks the pattern does not add to one."""
    _fold_value_bias(m)


@exhibit(
    "value-bias-folded-no-sinks",
    "llama",
    build={"attention_bias": True},
    source="TransformerLensOrg/TransformerLens#116",
)
def _(m: Model) -> None:
    """The same where the pattern adds to one."""
    _fold_value_bias(m)


@exhibit(
    "kv-heads-tiled-for-repeated",
    "llama",
    Want("attn.kv_map", "repeat", "tile", ALL3),
    source="onnx/onnx#7274; ekzhang/jax-js#180; microsoft/onnxscript#2408",
)
def _(m: Model) -> None:
    """Key/value heads are tiled, not repeated."""
    modeling(m, repeat_kv=lambda x, n: x.repeat(1, n, 1, 1))


@exhibit(
    "olmo-clip-qkv-ignored",
    "llama",
    Want("attn.clip", None, 2.0, ALL3),
    source="huggingface/transformers#29890; huggingface/transformers#29921",
)
def _(m: Model) -> None:
    """Queries, keys and values are clamped on one side alone, as OLMo and DBRX declare it (`clip_qkv`)."""
    for each in attentions(m):
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(each, name).register_forward_hook(lambda module, args, out: out.clamp(-2.0, 2.0))


@exhibit(
    "gqa-all-heads-on-first-kv-head",
    "llama",
    Want("attn.kv_map", "repeat", "first", ALL3),
    source="PSAL-POSTECH/ONNXim#34",
)
def _(m: Model) -> None:
    """All query heads read the first key/value head."""
    modeling(m, repeat_kv=lambda x, n: x[:, :1].expand(-1, n * x.shape[1], -1, -1))


@exhibit(
    "gqa-tile-crosses-group-border",
    "qwen3",
    Want("attn.kv_map", "repeat", "tile", ALL3),
    source="FlashML-org/FreeToken#177; HazyResearch/HipKittens#22",
)
def _(m: Model) -> None:
    """Tiled heads in a family with norms of queries and keys."""
    modeling(m, repeat_kv=lambda x, n: x.repeat(1, n, 1, 1))


@exhibit("o-proj-columns-in-other-head-order", "llama", Want("weight", layers=ALL3), source="nntile/nntile#347")
def _(m: Model) -> None:
    """The output product reads its heads in another order."""
    for a in attentions(m):
        w = a.o_proj.weight
        w.copy_(w.view(48, 2, 2, 12).transpose(1, 2).reshape(48, 48).clone())


@exhibit(
    "attn-softmax-bf16",
    "llama",
    Want("attn.softmax_dtype", "float32", "bfloat16", ALL3),
    build=FLOAT32,
    source="huggingface/transformers, models/gpt_oss against models/gemma2",
)
def _(m: Model) -> None:
    """The softmax is computed in bfloat16 in a float32 model."""
    modeling(m, eager_attention_forward=attention(soften=lambda s: F.softmax(s.bfloat16(), -1).to(s.dtype)))


@exhibit("softmax-in-bf16-cpu-identical", "llama", build={"dtype": torch.bfloat16}, source="own measurement")
def _(m: Model) -> None:
    """The softmax of a bfloat16 model in bfloat16: torch computes in float32 within."""
    modeling(m, eager_attention_forward=attention(soften=lambda s: F.softmax(s, -1)))


@exhibit(
    "key-scaled-instead-of-query",
    "phi3",
    source="AI-Hypercomputer/maxtext (query_pre_attn_scalar)",
    like="q-scale-folded",
)
def _(m: Model) -> None:
    """The scale is multiplied into the keys."""
    modeling(m, eager_attention_forward=attention(score=lambda q, k, s: q @ (k * s).transpose(2, 3)))
