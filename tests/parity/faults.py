"""Faults planted in live transformers models, and changes that are none.

Each is a function that takes a deep copy of the reference and changes it as somebody would by hand: an
attribute, a weight, a method, or a function of the modeling file that is another one while this model
runs. Nothing here uses twinlens's own operations: what a fault is, is said by torch code alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from twinlens.museum.exhibit import ANY, Model, Want, Wing
from twinlens.museum.hands import (
    ROOT12,
    act,
    attention,
    attentions,
    called,
    diagonal,
    frequencies,
    interleaved,
    layers,
    method,
    mlp,
    modeling,
    norms,
    scaled,
    tables,
    unmasked,
)
from twinlens.museum.tiny import FAMILIES, ROPE

FAULTS = Wing("faults of three families")
fault = benign = FAULTS.exhibit


# ---------------------------------------------------------------------------------- tools of a hand


def rope_of(rope: str, **more: Any) -> tuple[Tensor, Any]:
    made = FAMILIES["llama"](rope_parameters=ROPE[rope] | more).model.rotary_emb
    return made.inv_freq, made.attention_scaling


def theta(model: Model, base: float) -> Tensor:
    e = attentions(model)[0].head_dim
    return 1.0 / (base ** (torch.arange(0, e, 2, dtype=torch.float) / e))


def shifted(m: Model, offset: int) -> None:
    called(m, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None] + offset})


FAR = "what else may be told from there is as near"
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
BF16 = {"dtype": torch.bfloat16}
ROOT24 = math.sqrt(24)


# ------------------------------------------------------------------------------- scale, cap, window


@fault("scale", "llama", Want("attn.scale", ROOT12, 4.0, ALL3))
def _(m: Model) -> None:
    scaled(m, 16)


@fault("scale", "gemma2", Want("attn.scale", ROOT24, math.sqrt(21), ALL4))
def _(m: Model) -> None:
    scaled(m, 21)


@fault("scale", "gpt2", Want("attn.scale", ROOT12, math.sqrt(10), ALL3))
def _(m: Model) -> None:
    scaled(m, 10)


@fault("scale 1 % in one layer", "llama", Want("attn.scale", ROOT12, ROOT12 / 1.01, (1,)))
def _(m: Model) -> None:
    attentions(m)[1].scaling *= 1.01


@fault("scale 1e-4 off", "llama", Want("attn.scale", ROOT12, ROOT12 / 1.0001, ALL3))
def _(m: Model) -> None:
    for a in attentions(m):
        a.scaling *= 1 + 1e-4


@fault("scale 1e-4 off", "gemma2", Want("attn.scale", ROOT24, ROOT24 / 1.0001, ALL4))
def _(m: Model) -> None:
    for a in attentions(m):
        a.scaling *= 1 + 1e-4


@fault("scale dropped", "gpt2", Want("attn.scale", ROOT12, 1.0, ALL3))
def _(m: Model) -> None:
    scaled(m, 1)


@fault("scale 1 % in bfloat16", "llama", Want("attn.scale", ROOT12, ROOT12 / 1.01, ALL3, within=0.3), build=BF16)
def _(m: Model) -> None:
    for a in attentions(m):
        a.scaling *= 1.01


@fault(
    "inverse layer scale added",
    "gpt2",
    Want("attn.scale", ROOT12, 2 * ROOT12, (1,)),
    Want("attn.scale", ROOT12, 3 * ROOT12, (2,)),
)
def _(m: Model) -> None:
    for i, a in enumerate(attentions(m)):
        a.scaling /= i + 1


@fault(
    "inverse layer scale ignored", "gpt2", Want("attn.scale", 2 * ROOT12, ROOT12, (1,)),
    Want("attn.scale", 3 * ROOT12, ROOT12, (2,)), build={"scale_attn_by_inverse_layer_idx": True},
)  # fmt: skip
def _(m: Model) -> None:
    scaled(m, 12)


def capped(m: Model, cap: float | None, *only: int) -> None:
    for i, a in enumerate(attentions(m)):
        if not only or i in only:
            a.attn_logit_softcapping = cap


@fault("cap dropped", "gemma2", Want("attn.softcap", 8.0, None, ALL4))
def _(m: Model) -> None:
    capped(m, None)


@fault("cap changed", "gemma2", Want("attn.softcap", 8.0, 12.0, ALL4))
def _(m: Model) -> None:
    capped(m, 12.0)


@fault("cap dropped in one layer", "gemma2", Want("attn.softcap", 8.0, None, (2,)))
def _(m: Model) -> None:
    capped(m, None, 2)


@fault("cap added", "llama", Want("attn.softcap", None, 20.0, ALL3))
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(cap=lambda s, c: torch.tanh(s / 20.0) * 20.0))


@fault("final cap dropped", "gemma2", Want("unembed.softcap", 10.0, None, ()))
def _(m: Model) -> None:
    m.config.final_logit_softcapping = None


@fault("final cap changed", "gemma2", Want("unembed.softcap", 10.0, 15.0, ()))
def _(m: Model) -> None:
    m.config.final_logit_softcapping = 15.0


@fault("window dropped", "gemma2", Want("attn.window", 8, None, (0, 2)))
def _(m: Model) -> None:
    m.config.layer_types = ["full_attention"] * 4


@fault("window swapped", "gemma2", Want("attn.window", 8, None, (0, 2)), Want("attn.window", None, 8, (1, 3)))
def _(m: Model) -> None:
    m.config.layer_types = m.config.layer_types[::-1]


@fault("window one wider", "gemma2", Want("attn.window", 8, 9, (0, 2)))
def _(m: Model) -> None:
    m.config.sliding_window = 9


@fault("window one narrower", "gemma2", Want("attn.window", 8, 7, (0, 2)))
def _(m: Model) -> None:
    m.config.sliding_window = 7


@fault("window in every layer", "gemma2", Want("attn.window", None, 8, (1, 3)))
def _(m: Model) -> None:
    m.config.layer_types = ["sliding_attention"] * 4


# --------------------------------------------------------------------------------------------- norms

THREE = ("ln1", "ln2", "ln_final")
FIVE = ("ln1", "ln1_post", "ln2", "ln2_post", "ln_final")


@fault("eps", "llama", Want("norm.eps", 3e-6, 1e-5, ALL3, THREE))
def _(m: Model) -> None:
    for n in norms(m):
        n.variance_epsilon = 1e-5


@fault("eps", "gpt2", Want("norm.eps", 2e-5, 1e-5, ALL3, THREE))
def _(m: Model) -> None:
    for n in norms(m):
        n.eps = 1e-5


@fault("eps of the post-norms", "gemma2", Want("norm.eps", 3e-6, 1e-5, ALL4, ("ln1_post", "ln2_post")))
def _(m: Model) -> None:
    for x in layers(m):
        x.post_attention_layernorm.eps = x.post_feedforward_layernorm.eps = 1e-5


@fault("eps of one norm", "llama", Want("norm.eps", 3e-6, 1e-6, (1,), ("ln2",)))
def _(m: Model) -> None:
    layers(m)[1].post_attention_layernorm.variance_epsilon = 1e-6


def _rms(self: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + getattr(self, "variance_epsilon", None) or self.eps)


def _rms_of(eps: float, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@fault("offset dropped", "gemma2", Want("norm.offset", 1.0, 0.0, ALL4, FIVE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: _rms_of(self.eps, x) * self.weight)


@fault("offset added", "llama", Want("norm.offset", 0.0, 1.0, ALL3, THREE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: _rms_of(self.variance_epsilon, x) * (1.0 + self.weight))


@fault("mean subtracted", "llama", Want("norm.kind", "rms", "layer", ALL3, THREE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: self.weight * _rms_of(self.variance_epsilon, x - x.mean(-1, keepdim=True)))


@fault("mean not subtracted", "gpt2", Want("norm.kind", "layer", "rms", ALL3, THREE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: self.weight * _rms_of(self.eps, x) + self.bias)


@fault("deviation of d - 1", "gpt2", Want("norm.variance", "biased", "unbiased", ALL3, THREE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: self.weight * _centred(x) / (x.var(-1, keepdim=True) + self.eps).sqrt() + self.bias)


@fault(
    "deviation of d - 1, eps outside the root",
    "gpt2",
    Want("norm.variance", "biased", "unbiased", ALL3, THREE),
    Want("norm.eps_place", "inside", "outside", ALL3, THREE),
    hidden={"sublayers": FAR},
)
def _(m: Model) -> None:
    """As in "The Annotated Transformer"."""
    for n in norms(m):
        method(n, lambda self, x: self.weight * _centred(x) / (x.std(-1, keepdim=True) + self.eps) + self.bias)


@fault("post-norms missing", "gemma2", Want("norm.missing", ANY, None, ALL4, ("ln1_post", "ln2_post")))
def _(m: Model) -> None:
    for x in layers(m):
        x.post_attention_layernorm, x.post_feedforward_layernorm = nn.Identity(), nn.Identity()


@fault("final norm missing", "llama", Want("norm.missing", ANY, None, (), ("ln_final",)))
def _(m: Model) -> None:
    m.model.norm = nn.Identity()


@fault("final norm missing", "gpt2", Want("norm.missing", ANY, None, (), ("ln_final",)))
def _(m: Model) -> None:
    m.transformer.ln_f = nn.Identity()


@fault("one norm missing", "llama", Want("norm.missing", ANY, None, (1,), ("ln1",)))
def _(m: Model) -> None:
    layers(m)[1].input_layernorm = nn.Identity()


@fault(
    "product with the weight in float32",
    "llama",
    Want("norm.dtype", layers=ALL3, at=THREE),
    build=BF16,
    hidden={"sublayers": FAR},
)
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: (self.weight.float() * _rms_of(self.variance_epsilon, x.float())).to(x.dtype))


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


@fault("norm all in bfloat16", "llama", Want("norm.dtype", layers=ALL3, at=THREE), build=BF16)
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: self.weight * _rms_of(self.variance_epsilon, x))


@fault("1 + w in bfloat16", "gemma2", Want("norm.dtype", layers=ALL4, at=FIVE), build=BF16, hidden={"sublayers": FAR})
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: (_rms_of(self.eps, x.float()) * (1.0 + self.weight).float()).to(x.dtype))


@fault("norm in bfloat16 within float32", "llama", Want("norm.dtype", layers=ALL3, at=THREE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: self.weight * _rms_of(self.variance_epsilon, x.bfloat16()).to(x.dtype))


# ------------------------------------------------------------------------------ embedding, positions


@fault("embedding factor missing", "gemma2", Want("embed.scale", math.sqrt(48), 1.0, ()))
def _(m: Model) -> None:
    m.model.embed_tokens.embed_scale.fill_(1.0)


@fault("embedding factor in bfloat16", "gemma2", Want("embed.scale", math.sqrt(48), 6.9375, ()))
def _(m: Model) -> None:
    m.model.embed_tokens.embed_scale.fill_(6.9375)


@fault("embedding factor added", "llama", Want("embed.scale", 1.0, math.sqrt(48), ()))
def _(m: Model) -> None:
    m.model.embed_tokens.register_forward_hook(lambda mod, x, y: y * math.sqrt(48))


@fault("positions from one", "gpt2", Want("positions.offset", 0, 1))
def _(m: Model) -> None:
    shifted(m, 1)


@fault("positions from the padding mask", "gpt2", Want("positions.offset"), padded=True)
def _(m: Model) -> None:
    forward = m.forward

    @functools.wraps(forward)
    def moved(input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        at = (mask.long().cumsum(-1) - 1).clamp_min(0)
        return forward(input_ids, attention_mask=attention_mask, position_ids=at, **kwargs)

    m.forward = moved


# -------------------------------------------------------------------------------------------- rotary


@fault("base", "llama", Want("rotary.base", 7000.0, 10000.0, ()))
def _(m: Model) -> None:
    frequencies(m, lambda f: theta(m, 1e4))


@fault("base far off", "llama", Want("rotary.base", 7000.0, 500000.0, ()))
def _(m: Model) -> None:
    frequencies(m, lambda f: theta(m, 5e5))


@fault("base", "gemma2", Want("rotary.base", 7000.0, 10000.0, ()))
def _(m: Model) -> None:
    frequencies(m, lambda f: theta(m, 1e4))


@fault("linear scaling lost", "llama", Want("rotary.scaling"), build={"rope": "linear"})
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("default")[0])


@fault("linear scaling added", "llama", Want("rotary.scaling"))
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("linear")[0])


@fault("linear factor", "llama", Want("rotary.scaling", 4.0, 2.0, ()), build={"rope": "linear"})
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("linear", factor=2.0)[0])


@fault("llama3 scaling lost", "llama", Want("rotary.scaling", "llama3", None, ()), build={"rope": "llama3"})
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("default")[0])


@fault("llama3 for linear", "llama", Want("rotary.scaling", "llama3", "linear", ()), build={"rope": "llama3"})
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("linear", factor=8.0)[0])


@fault("llama3 factor", "llama", Want("rotary.scaling", 8.0, 32.0, ()), build={"rope": "llama3"})
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("llama3", factor=32.0)[0])


@fault("llama3 without a blend", "llama", Want("rotary.scaling"), build={"rope": "llama3"}, length=96)
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("llama3", low_freq_factor=3.999)[0])


@fault(
    "scaling and base lost",
    "llama",
    Want("rotary.scaling", "llama3", None, ()),
    Want("rotary.base", 7000.0, 10000.0, ()),
    build={"rope": "llama3"},
)
def _(m: Model) -> None:
    frequencies(m, lambda f: theta(m, 1e4))


@fault("attention factor", "llama", Want("rotary.attention_factor", 1.0, 1.2, ()))
def _(m: Model) -> None:
    m.model.rotary_emb.attention_scaling = 1.2


@fault("layout", "llama", Want("rotary.layout", "half", "interleaved", ALL3))
def _(m: Model) -> None:
    modeling(m, apply_rotary_pos_emb=interleaved)


@fault("layout", "gemma2", Want("rotary.layout", "half", "interleaved", ALL4))
def _(m: Model) -> None:
    modeling(m, apply_rotary_pos_emb=interleaved)


@fault("half of the width rotated", "llama", Want("rotary.dim", 12, 6, ALL3))
def _(m: Model) -> None:
    plain = modeling_llama.apply_rotary_pos_emb

    def partly(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        cos, sin = (torch.cat((t[..., :3], t[..., :3]), -1) for t in (cos, sin))
        a, b = plain(q[..., :6], k[..., :6], cos, sin)
        return torch.cat((a, q[..., 6:]), -1), torch.cat((b, k[..., 6:]), -1)

    modeling(m, apply_rotary_pos_emb=partly)


@fault("a layer does not rotate", "llama", Want("rotary.layers", layers=(1,)))
def _(m: Model) -> None:
    a = attentions(m)[1]
    forward = a.forward

    def still(*args: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        return forward(*args, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)), **kwargs)

    a.forward = still


@fault("frequencies in bfloat16", "llama", Want("rotary.dtype", layers=()))
def _(m: Model) -> None:
    frequencies(m, lambda f: f.bfloat16().float())


@fault("angles in bfloat16", "llama", Want("rotary.dtype", layers=()))
def _(m: Model) -> None:
    method(m.model.rotary_emb, tables(lambda p, f: (p * f).bfloat16().float()))


@fault("cos and sin in bfloat16", "llama", Want("rotary.dtype", layers=()))
def _(m: Model) -> None:
    method(m.model.rotary_emb, tables(table=lambda t: t.bfloat16().float()))


# ------------------------------------------------------------------------------------------ attention


def softmax_in(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda s: F.softmax(s.to(dtype), -1).to(s.dtype)


@fault("softmax in bfloat16", "llama", Want("attn.softmax_dtype", "float32", "bfloat16", ALL3))
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(soften=softmax_in(torch.bfloat16)))


@fault("softmax in bfloat16", "gpt2", Want("attn.softmax_dtype", "float32", "bfloat16", ALL3))
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(soften=softmax_in(torch.bfloat16)))


@fault("keys and values tiled", "llama", Want("attn.kv_map", "repeat", "tile", ALL3))
def _(m: Model) -> None:
    modeling(m, repeat_kv=lambda x, n: x.repeat(1, n, 1, 1))


@fault("keys and values tiled", "gemma2", Want("attn.kv_map", "repeat", "tile", ALL4))
def _(m: Model) -> None:
    modeling(m, repeat_kv=lambda x, n: x.repeat(1, n, 1, 1))


@fault("all heads on key/value head 0", "llama", Want("attn.kv_map", "repeat", "first", ALL3))
def _(m: Model) -> None:
    modeling(m, repeat_kv=lambda x, n: x[:, :1].expand(-1, n * x.shape[1], -1, -1))


@fault("causal mask missing", "llama", Want("attn.mask", "causal", "none", ALL3))
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(hide=lambda s, mask: s))


@fault("causal mask missing", "gpt2", Want("attn.mask", "causal", "none", ALL3))
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(hide=lambda s, mask: s))


@fault("next token seen", "llama", Want("attn.mask", "causal", "ahead", ALL3))
def _(m: Model) -> None:
    diagonal(m, 2)


@fault("next token seen by sdpa", "gpt2", Want("attn.mask", "causal", "ahead", ALL3), build={"attn": "sdpa"})
def _(m: Model) -> None:
    diagonal(m, 2)


@fault("own token not seen", "llama", Want("attn.mask", "causal", "strict", ALL3))
def _(m: Model) -> None:
    diagonal(m, 0)


@fault("own token not seen by sdpa", "gpt2", Want("attn.mask", "causal", "strict", ALL3), build={"attn": "sdpa"})
def _(m: Model) -> None:
    """The first query then sees nothing."""
    diagonal(m, 0)


@fault("padding ignored", "llama", Want("attn.mask", "masked", "ignored", ALL3), padded=True)
def _(m: Model) -> None:
    unmasked(m)


@fault("padding ignored", "gpt2", Want("attn.mask", "masked", "ignored", ALL3), padded=True)
def _(m: Model) -> None:
    unmasked(m)


@fault("padding ignored", "gemma2", Want("attn.mask", "masked", "ignored", ALL4), padded=True)
def _(m: Model) -> None:
    unmasked(m)


@fault("scale with left padding", "llama", Want("attn.scale", ROOT12, 4.0, ALL3), padded=True)
def _(m: Model) -> None:
    scaled(m, 16)


@fault("masked with a number that scores can reach", "llama", Want("attn.mask", layers=ALL3))
def _(m: Model) -> None:
    def hide(s: Tensor, mask: Tensor | None) -> Tensor:
        return s if mask is None else s.masked_fill(mask < 0, -4.0)

    modeling(m, eager_attention_forward=attention(hide=hide))


# ---------------------------------------------------------------------------------------- activation


@fault("gelu for silu", "llama", Want("mlp.act", "silu", "gelu", ALL3))
def _(m: Model) -> None:
    act(m, F.gelu)


@fault("erf for tanh", "gpt2", Want("mlp.act", "gelu_tanh", "gelu", ALL3))
def _(m: Model) -> None:
    act(m, F.gelu)


@fault("erf for tanh", "gemma2", Want("mlp.act", "gelu_tanh", "gelu", ALL4))
def _(m: Model) -> None:
    act(m, F.gelu)


@fault("quick gelu", "gpt2", Want("mlp.act", "gelu_tanh", "quick_gelu", ALL3))
def _(m: Model) -> None:
    act(m, lambda x: x * torch.sigmoid(1.702 * x))


@fault("silu for gelu", "gemma2", Want("mlp.act", "gelu_tanh", "silu", ALL4))
def _(m: Model) -> None:
    act(m, F.silu)


@fault("relu in one layer", "llama", Want("mlp.act", "silu", "relu", (1,)))
def _(m: Model) -> None:
    act(m, F.relu, 1)


@fault("gelu for silu in bfloat16", "llama", Want("mlp.act", "silu", "gelu", ALL3), build=BF16)
def _(m: Model) -> None:
    act(m, F.gelu)


@fault("gate and up exchanged in code", "llama", Want("mlp.gate_order", "gate", "up", ALL3))
def _(m: Model) -> None:
    mlp(m, lambda self, x: self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x)))


@fault("gate and up exchanged in weights", "llama", Want(("mlp.gate_order", "weight"), layers=ALL3))
def _(m: Model) -> None:
    for x in layers(m):
        a, b = x.mlp.gate_proj.weight, x.mlp.up_proj.weight
        before = a.clone()
        a.copy_(b)
        b.copy_(before)


# ------------------------------------------------------------------------------------------- weights

DOWN1 = "model.layers.1.mlp.down_proj.weight"


@fault("row halved", "llama", Want("weight", DOWN1, DOWN1, (1,)))
def _(m: Model) -> None:
    layers(m)[1].mlp.down_proj.weight[3] *= 0.5


@fault("row zeroed", "gemma2", Want("weight", DOWN1, DOWN1, (1,)))
def _(m: Model) -> None:
    layers(m)[1].mlp.down_proj.weight[3] = 0


@fault("row 1 % larger", "llama", Want("weight", DOWN1, DOWN1, (1,)))
def _(m: Model) -> None:
    layers(m)[1].mlp.down_proj.weight[3] *= 1.01


@fault("row of the output product zeroed", "gpt2", Want("weight", layers=(1,)))
def _(m: Model) -> None:
    layers(m)[1].attn.c_proj.weight[:, 5] = 0


@fault("square product transposed", "llama", Want("weight", layers=ALL3, at=("attn",)))
def _(m: Model) -> None:
    for a in attentions(m):
        a.o_proj.weight.copy_(a.o_proj.weight.T.clone())


@fault("Conv1D transposed", "gpt2", Want("weight", layers=ALL3, at=("attn",)))
def _(m: Model) -> None:
    for a in attentions(m):
        a.c_proj.weight.copy_(a.c_proj.weight.T.clone())


@fault("layers exchanged", "llama", Want("weight", layers=(1, 2)))
def _(m: Model) -> None:
    m.model.layers[1], m.model.layers[2] = m.model.layers[2], m.model.layers[1]


@fault("layers exchanged", "gpt2", Want(("weight", "bias"), layers=(1, 2)))
def _(m: Model) -> None:
    h = m.transformer.h
    h[1], h[2] = h[2], h[1]


@fault(
    "head replaced by the embedding",
    "llama",
    Want("weight", "lm_head.weight", "model.embed_tokens.weight", ()),
)
def _(m: Model) -> None:
    m.lm_head.weight = m.model.embed_tokens.weight


@fault("rotary rows permuted", "llama", Want("weight", layers=ALL3, at=("attn",)))
def _(m: Model) -> None:
    for a in attentions(m):
        for w in (a.q_proj.weight, a.k_proj.weight):
            w.copy_(w.view(-1, 2, 6, 48).transpose(1, 2).reshape(w.shape))


@fault("weights in int8", "llama", Want("weight", layers=ALL3), hidden={"sublayers": FAR})
def _(m: Model) -> None:
    for x in m.model.layers.modules():
        if isinstance(x, nn.Linear):
            s = x.weight.abs().amax(1, keepdim=True) / 127
            x.weight.copy_((x.weight / s).round() * s)


@fault("low rank added", "llama", Want("weight", layers=(1,)), hidden={"sublayers": FAR})
def _(m: Model) -> None:
    g = torch.Generator().manual_seed(1)
    w = attentions(m)[1].q_proj.weight
    w += torch.randn(48, 2, generator=g) @ torch.randn(2, 48, generator=g) / 24


@fault("a norm's weight damaged", "llama", Want("weight", layers=(2,), at=("ln2",)), hidden={"sublayers": FAR})
def _(m: Model) -> None:
    layers(m)[2].post_attention_layernorm.weight[7] = 0


@fault("bias dropped", "gpt2", Want("bias", layers=ALL3, at=("attn",)))
def _(m: Model) -> None:
    for a in attentions(m):
        a.c_proj.bias.zero_()


@fault("bias dropped", "llama", Want("bias", candidate=None, layers=ALL3, at=("attn",)), build={"attention_bias": True})
def _(m: Model) -> None:
    for a in attentions(m):
        a.o_proj.bias = None


@fault("bias added", "llama", Want("bias", None, ANY, ALL3, ("mlp",)))
def _(m: Model) -> None:
    g = torch.Generator().manual_seed(1)
    for x in layers(m):
        x.mlp.down_proj.bias = nn.Parameter(0.2 * torch.randn(48, generator=g))


@fault("thirds in another order", "gpt2", Want("qkv.order", "qkv", "kqv", ALL3))
def _(m: Model) -> None:
    # whoever reads the product takes its first third for keys
    for a in attentions(m):
        a.c_attn.register_forward_hook(lambda mod, x, y: torch.cat([y.chunk(3, -1)[i] for i in (1, 0, 2)], -1))


@fault("thirds of the weight in another order", "gpt2", Want(("qkv.order", "weight", "bias"), layers=ALL3))
def _(m: Model) -> None:
    for a in attentions(m):
        for t in (a.c_attn.weight, a.c_attn.bias):
            t.copy_(torch.cat([t.chunk(3, -1)[i] for i in (1, 0, 2)], -1))


# ------------------------------------------------------------------------------- residual, unembedding


@fault("residual factor", "llama", Want("residual.scale", 1.0, 0.5, ALL3))
def _(m: Model) -> None:
    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states + 0.5 * self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return h + 0.5 * self.mlp(self.post_attention_layernorm(h))

    for x in layers(m):
        method(x, forward)


@fault("residual factor of the MLP", "gpt2", Want("residual.scale", 1.0, 0.9, ALL3))
def _(m: Model) -> None:
    for x in layers(m):
        x.mlp.register_forward_hook(lambda mod, x, y: 0.9 * y)


@fault("in parallel", "llama", Want("block.parallel", layers=ALL3), hidden={"sublayers": FAR})
def _(m: Model) -> None:
    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states
        a = self.self_attn(hidden_states=self.input_layernorm(h), **kwargs)[0]
        return (h + a) + self.mlp(self.post_attention_layernorm(h))

    for x in layers(m):
        method(x, forward)


@fault("logits scaled", "llama", Want("unembed.scale", 1.0, 0.0625, ()))
def _(m: Model) -> None:
    m.lm_head.register_forward_hook(lambda mod, x, y: y * 0.0625)


@fault("last product in bfloat16", "llama", Want("unembed.dtype", ANY, "bfloat16", ()))
def _(m: Model) -> None:
    method(m.lm_head, lambda self, x: F.linear(x.bfloat16(), self.weight.bfloat16()).float())


# ------------------------------------------------------------------------------------------- several


@fault(
    "row and scale",
    "llama",
    Want("weight", DOWN1, DOWN1, (1,)),
    Want("attn.scale", ROOT12, ROOT12 / 1.01, (2,)),
)
def _(m: Model) -> None:
    layers(m)[1].mlp.down_proj.weight[3] *= 0.5
    attentions(m)[2].scaling *= 1.01


@fault(
    "scale and cap", "gemma2", Want("attn.scale", ROOT24, math.sqrt(21), ALL4), Want("attn.softcap", 8.0, None, ALL4)
)
def _(m: Model) -> None:
    scaled(m, 21)
    capped(m, None)


@fault(
    "scale, cap, windows swapped", "gemma2", Want("attn.scale", ROOT24, math.sqrt(21), ALL4), Want("attn.softcap", 8.0, None, ALL4),
    Want("attn.window", 8, None, (0, 2)), Want("attn.window", None, 8, (1, 3)),
)  # fmt: skip
def _(m: Model) -> None:
    scaled(m, 21)
    capped(m, None)
    m.config.layer_types = m.config.layer_types[::-1]


@fault(
    "cap changed, window dropped, scale in one layer",
    "gemma2",
    Want("attn.softcap", 8.0, 12.0, ALL4),
    Want("attn.window", 8, None, (0, 2)),
    Want("attn.scale", ROOT24, 4.0, (2,)),
)
def _(m: Model) -> None:
    capped(m, 12.0)
    m.config.layer_types = ["full_attention"] * 4
    scaled(m, 16, 2)


@fault("base and scale", "llama", Want("rotary.base", 7000.0, 10000.0, ()), Want("attn.scale", ROOT12, 4.0, ALL3))
def _(m: Model) -> None:
    frequencies(m, lambda f: theta(m, 1e4))
    scaled(m, 16)


@fault("activation and eps", "llama", Want("mlp.act", "silu", "gelu", ALL3), Want("norm.eps", 3e-6, 1e-5, ALL3, THREE))
def _(m: Model) -> None:
    act(m, F.gelu)
    for n in norms(m):
        n.variance_epsilon = 1e-5


@fault(
    "gate order and activation",
    "llama",
    Want("mlp.gate_order", "gate", "up", ALL3),
    Want("mlp.act", "silu", "gelu_tanh", ALL3),
)
def _(m: Model) -> None:
    mlp(m, lambda self, x: self.down_proj(F.gelu(self.up_proj(x), approximate="tanh") * self.gate_proj(x)))


@fault(
    "post-norms missing and final cap dropped",
    "gemma2",
    Want("norm.missing", ANY, None, ALL4, ("ln1_post", "ln2_post")),
    Want("unembed.softcap", 10.0, None, ()),
)
def _(m: Model) -> None:
    for x in layers(m):
        x.post_attention_layernorm, x.post_feedforward_layernorm = nn.Identity(), nn.Identity()
    m.config.final_logit_softcapping = None


@fault(
    "eps, scale and a bias",
    "gpt2",
    Want("norm.eps", 2e-5, 1e-5, ALL3, THREE),
    Want("attn.scale", ROOT12, 4.0, ALL3),
    Want("bias", layers=(1,), at=("mlp",)),
)
def _(m: Model) -> None:
    for n in norms(m):
        n.eps = 1e-5
    scaled(m, 16)
    layers(m)[1].mlp.c_proj.bias.zero_()


@fault("tiled and scale", "llama", Want("attn.kv_map", "repeat", "tile", ALL3), Want("attn.scale", ROOT12, 4.0, ALL3))
def _(m: Model) -> None:
    modeling(m, repeat_kv=lambda x, n: x.repeat(1, n, 1, 1))
    scaled(m, 16)


@fault(
    "base and attention factor",
    "llama",
    Want("rotary.base", 7000.0, 10000.0, ()),
    Want("rotary.attention_factor", 1.0, 1.2, ()),
    hidden={"sublayers": FAR},  # with scores unseen, 1.2 on cos and sin is a scale that is 1.44 times smaller
)
def _(m: Model) -> None:
    frequencies(m, lambda f: theta(m, 1e4))
    m.model.rotary_emb.attention_scaling = 1.2


@fault(
    "llama3 factor and scale",
    "llama",
    Want("rotary.scaling", 8.0, 32.0, ()),
    Want("attn.scale", ROOT12, 4.0, ALL3),
    build={"rope": "llama3"},
)
def _(m: Model) -> None:
    frequencies(m, lambda f: rope_of("llama3", factor=32.0)[0])
    scaled(m, 16)


@fault(
    "layout and base",
    "llama",
    Want("rotary.layout", "half", "interleaved", ALL3),
    Want("rotary.base", 7000.0, 10000.0, ()),
)
def _(m: Model) -> None:
    modeling(m, apply_rotary_pos_emb=interleaved)
    frequencies(m, lambda f: theta(m, 1e4))


@fault("offset and eps", "gemma2", Want("norm.offset", 1.0, 0.0, ALL4, FIVE), Want("norm.eps", 3e-6, 1e-5, ALL4, FIVE))
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: _rms_of(1e-5, x) * self.weight)


@fault(
    "embedding factor, cap and activation",
    "gemma2",
    Want("embed.scale", math.sqrt(48), 1.0, ()),
    Want("attn.softcap", 8.0, None, ALL4),
    Want("mlp.act", "gelu_tanh", "gelu", ALL4),
)
def _(m: Model) -> None:
    m.model.embed_tokens.embed_scale.fill_(1.0)
    capped(m, None)
    act(m, F.gelu)


@fault("positions and scale", "gpt2", Want("positions.offset", 0, 1), Want("attn.scale", ROOT12, 4.0, ALL3))
def _(m: Model) -> None:
    shifted(m, 1)
    scaled(m, 16)


@fault(
    "window and scale in bfloat16",
    "gemma2",
    Want("attn.window", 8, None, (0, 2)),
    Want("attn.scale", ROOT24, 4.0, ALL4, within=0.05),
    build=BF16,
)
def _(m: Model) -> None:
    m.config.layer_types = ["full_attention"] * 4
    scaled(m, 16)


# -------------------------------------------------------------------------------------------- benign


@benign("sdpa", "llama")
def _(m: Model) -> None:
    m.config._attn_implementation = "sdpa"


@benign("sdpa", "gpt2")
def _(m: Model) -> None:
    m.config._attn_implementation = "sdpa"


@benign("sdpa in bfloat16", "llama", build=BF16)
def _(m: Model) -> None:
    m.config._attn_implementation = "sdpa"


@benign("sdpa with left padding", "llama", padded=True)
def _(m: Model) -> None:
    m.config._attn_implementation = "sdpa"


@benign("norm by division", "llama")
def _(m: Model) -> None:
    for n in norms(m):
        method(
            n, lambda self, x: self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
        )


@benign("norm by division", "gemma2")
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: (x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()) * (1 + self.weight))


@benign("norm by torch's kernel", "llama")
def _(m: Model) -> None:
    for n in norms(m):
        method(n, lambda self, x: F.rms_norm(x, (48,), self.weight, self.variance_epsilon))


@benign("layer norm by hand", "gpt2")
def _(m: Model) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias

    for n in norms(m):
        method(n, forward)


@benign("one product for queries, keys and values", "llama")
def _(m: Model) -> None:
    class Third(nn.Module):
        def __init__(self, whole: nn.Linear, at: slice) -> None:
            super().__init__()
            self.whole, self.at = whole, at

        def forward(self, x: Tensor) -> Tensor:
            return self.whole(x)[..., self.at]

    for a in attentions(m):
        whole = nn.Linear(48, 96, bias=False)
        whole.weight = nn.Parameter(torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)))
        a.q_proj, a.k_proj, a.v_proj = (Third(whole, s) for s in (slice(0, 48), slice(48, 72), slice(72, 96)))


def linears(m: Model, forward: Callable[[Any, Tensor], Tensor]) -> None:
    for x in m.modules():
        if isinstance(x, nn.Linear):
            method(x, forward)


@benign("products in float64", "llama")
def _(m: Model) -> None:
    linears(m, lambda self, x: F.linear(x.double(), self.weight.double()).to(x.dtype))


@benign("products in two halves", "gemma2")
def _(m: Model) -> None:
    def halves(self: Any, x: Tensor) -> Tensor:
        n = x.shape[-1] // 2
        return F.linear(x[..., :n], self.weight[:, :n]) + F.linear(x[..., n:], self.weight[:, n:])

    linears(m, halves)


@benign("products in two halves in bfloat16", "llama", build=BF16)
def _(m: Model) -> None:
    def halves(self: Any, x: Tensor) -> Tensor:
        n = x.shape[-1] // 2
        return F.linear(x[..., :n], self.weight[:, :n]) + F.linear(x[..., n:], self.weight[:, n:])

    linears(m, halves)


def _exp_sum(s: Tensor) -> Tensor:
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


EINSUM: dict[str, Any] = {
    "score": lambda q, k, s: torch.einsum("bhpe,bhse->bhps", q, k) * s,
    "soften": _exp_sum,
    "read": lambda a, v: torch.einsum("bhps,bhse->bhpe", a, v),
}


@benign("attention by einsum, exp and sum", "llama")
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(**EINSUM))


@benign("attention by einsum, exp and sum", "gemma2")
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(**EINSUM))


@benign("attention by einsum, exp and sum, left padding", "gpt2", padded=True)
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(**EINSUM))


@benign("scores divided", "llama")
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(score=lambda q, k, s: (q @ k.transpose(2, 3)) / math.sqrt(12)))


@benign("queries scaled before the product", "gemma2")
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(score=lambda q, k, s: (q * s) @ k.transpose(2, 3)))


@benign("cap by the reciprocal", "gemma2")
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(cap=lambda s, c: c * torch.tanh(s * (1.0 / c))))


@benign("softmax by its logarithm", "gpt2")
def _(m: Model) -> None:
    modeling(m, eager_attention_forward=attention(soften=lambda s: F.log_softmax(s, -1).exp()))


@benign("masked with minus infinity", "llama")
def _(m: Model) -> None:
    def hide(s: Tensor, mask: Tensor | None) -> Tensor:
        return s if mask is None else s.masked_fill(mask < 0, -math.inf)

    modeling(m, eager_attention_forward=attention(hide=hide))


@benign("neurons permuted", "llama")
def _(m: Model) -> None:
    at = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    for x in layers(m):
        x.mlp.gate_proj.weight.copy_(x.mlp.gate_proj.weight[at].clone())
        x.mlp.up_proj.weight.copy_(x.mlp.up_proj.weight[at].clone())
        x.mlp.down_proj.weight.copy_(x.mlp.down_proj.weight[:, at].clone())


@benign("angles in float64", "llama")
def _(m: Model) -> None:
    method(m.model.rotary_emb, tables(lambda p, f: p.double() * f.double()))


@benign("frequencies and angles in float64", "gemma2")
def _(m: Model) -> None:
    f64 = 1.0 / (7000.0 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16))
    method(m.model.rotary_emb, tables(lambda p, f: p.double() * f64))


@benign("rotation by complex numbers", "llama")
def _(m: Model) -> None:
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        z = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos[..., :half], sin[..., :half])
        return torch.cat((z.real, z.imag), -1)

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return turn(q, cos, sin), turn(k, cos, sin)

    modeling(m, apply_rotary_pos_emb=rotate)


@benign("heads first", "llama")
def _(m: Model) -> None:
    def forward(
        self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **_: Any
    ) -> Any:
        x, e = hidden_states, self.head_dim
        q, k, v = (
            torch.einsum("bpd,hed->bhpe", x, w.weight.view(-1, e, 48)) for w in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, *position_embeddings)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        s = q @ k.transpose(2, 3) * self.scaling
        a = (s if attention_mask is None else s + attention_mask).softmax(-1)
        return torch.einsum("bhpe,hde->bpd", a @ v, self.o_proj.weight.view(48, 4, e).transpose(0, 1)), a

    for a in attentions(m):
        method(a, forward)


@benign("gelu by torch's kernel", "gpt2")
def _(m: Model) -> None:
    act(m, lambda x: F.gelu(x, approximate="tanh"))


@benign("silu written out", "llama")
def _(m: Model) -> None:
    act(m, lambda x: x / (1 + torch.exp(-x)))


@benign("products by linear", "gpt2")
def _(m: Model) -> None:
    for x in m.modules():
        if type(x).__name__ == "Conv1D":
            method(x, lambda self, y: F.linear(y, self.weight.T.contiguous(), self.bias))


@benign("gate and up in one product", "gemma2")
def _(m: Model) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.both).chunk(2, -1)
        return self.down_proj(self.act_fn(gate) * up)

    for x in layers(m):
        x.mlp.both = torch.cat((x.mlp.gate_proj.weight, x.mlp.up_proj.weight))
        method(x.mlp, forward)


@benign("nothing changed", "gemma2")
def _(m: Model) -> None:
    pass
