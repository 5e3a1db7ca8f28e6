"""Weights as they were converted, folded, merged, updated; kernels that only round otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import attention, attentions, layers, method, modeling

WING = Wing("weights, kernels and order")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)


@exhibit(
    "gpt2-conv1d-not-transposed",
    "gpt2",
    Want("weight", layers=ALL3),
    source="huggingface/transformers, pytorch_utils.py (Conv1D)",
)
def _(m: Model) -> None:
    """A square Conv1D is read as a linear product."""
    for a in attentions(m):
        a.c_proj.weight.copy_(a.c_proj.weight.T.clone())


@exhibit("square-projection-transposed", "llama", Want("weight", layers=ALL3), source="general")
def _(m: Model) -> None:
    """A square output product is transposed."""
    for a in attentions(m):
        a.o_proj.weight.copy_(a.o_proj.weight.T.clone())


@exhibit("weight-rows-scaled", "llama", Want("weight", layers=(1,)), source="general")
def _(m: Model) -> None:
    """One row is larger by 1 %."""
    layers(m)[1].mlp.down_proj.weight[3] *= 1.01


@exhibit("weight-row-zeroed", "mistral", Want("weight", layers=(2,)), source="general", like="weight-rows-scaled")
def _(m: Model) -> None:
    """One row is zero."""
    layers(m)[2].self_attn.o_proj.weight[7] = 0


@exhibit("stale-weights-one-step", "llama", Want("weight", layers=None), source="vllm-project/vime#64")
def _(m: Model) -> None:
    """All weights are those of the step before."""
    for w in m.parameters():
        w.add_(1e-3 * torch.randn(w.shape).sign().to(w.dtype))


@exhibit("adapter-merged-twice", "llama", Want("weight", layers=ALL3), source="general")
def _(m: Model) -> None:
    """A low-rank update is added twice."""
    for a in attentions(m):
        w = a.q_proj.weight
        w.add_((torch.randn(48, 2) @ torch.randn(2, 48) / 24).to(w.dtype))


@exhibit(
    "norm-fold-in-post-norm-block",
    "gemma2",
    Want("weight", layers=ALL4),
    source="TransformerLensOrg/TransformerLens#509",
)
def _(m: Model) -> None:
    """A post-norm's weight is folded into the product before it."""
    for x in layers(m):
        w = x.post_attention_layernorm.weight
        x.self_attn.o_proj.weight.mul_((1 + w)[:, None])
        w.zero_()


@exhibit("fold-on-wrong-layout", "llama", Want("weight", layers=ALL3), source="TransformerLensOrg/TransformerLens#1580")
def _(m: Model) -> None:
    """A norm's weight is folded into rows where it belongs into columns."""
    for x in layers(m):
        w = x.input_layernorm.weight
        x.self_attn.q_proj.weight.mul_(w[:, None])
        x.self_attn.k_proj.weight.mul_(w)
        x.self_attn.v_proj.weight.mul_(w)
        w.fill_(1.0)


@exhibit("int8-weights-round-to-nearest", "llama", Want("weight", layers=ALL3), source="JustVugg/colibri#1425")
def _(m: Model) -> None:
    """Weights through int8, by row."""
    for x in m.model.layers.modules():
        if isinstance(x, nn.Linear):
            s = x.weight.float().abs().amax(1, keepdim=True) / 127
            x.weight.copy_((x.weight / s).round() * s)


@exhibit(
    "norm-weight-folded",
    "llama",
    source="TransformerLensOrg/TransformerLens#489",
)
def _(m: Model) -> None:
    """Norm weights are folded into the products that read them."""
    for x in layers(m):
        a, n1, n2 = x.self_attn, x.input_layernorm.weight, x.post_attention_layernorm.weight
        for w in (a.q_proj.weight, a.k_proj.weight, a.v_proj.weight):
            w.mul_(n1)
        for w in (x.mlp.gate_proj.weight, x.mlp.up_proj.weight):
            w.mul_(n2)
        n1.fill_(1.0)
        n2.fill_(1.0)
    m.lm_head.weight.mul_(m.model.norm.weight)
    m.model.norm.weight.fill_(1.0)


@exhibit("head-permutation-within-group", "llama", source="nntile/nntile#347")
def _(m: Model) -> None:
    """The two heads that share a key/value head change places."""
    for a in attentions(m):
        a.q_proj.weight.copy_(a.q_proj.weight.view(2, 2, 12, 48).flip(1).reshape(48, 48).clone())
        a.o_proj.weight.copy_(a.o_proj.weight.view(48, 2, 2, 12).flip(2).reshape(48, 48).clone())


@exhibit("benign-sdpa-kernel", "llama", source="TransformerLensOrg/TransformerLens#694")
def _(m: Model) -> None:
    """sdpa for eager."""
    m.config._attn_implementation = "sdpa"


@exhibit(
    "benign-sdpa-kernel-left-padding",
    "qwen3",
    padded=True,
    source="TransformerLensOrg/TransformerLens#694",
    like="benign-sdpa-kernel",
)
def _(m: Model) -> None:
    """sdpa for eager, with left padding."""
    m.config._attn_implementation = "sdpa"


@exhibit("benign-merged-qkv", "llama", source="ServiceNow/Fast-LLM#525")
def _(m: Model) -> None:
    """One product for queries, keys and values."""

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


def _linears(m: Model, forward: Model) -> None:
    for x in m.modules():
        if isinstance(x, nn.Linear):
            method(x, forward)


@exhibit("benign-float64-linear", "llama", build={"dtype": torch.float32}, source="design trial of this project")
def _(m: Model) -> None:
    """Products in float64, rounded once."""
    _linears(m, lambda self, x: F.linear(x.double(), self.weight.double()).to(x.dtype))


@exhibit("tensor-parallel-sum-order", "llama", source="vllm-project/vllm#2679")
def _(m: Model) -> None:
    """Two halves of the output products, added."""

    def halves(self: Model, x: Tensor) -> Tensor:
        n = x.shape[-1] // 2
        return F.linear(x[..., :n], self.weight[:, :n]) + F.linear(x[..., n:], self.weight[:, n:])

    for x in layers(m):
        method(x.self_attn.o_proj, halves)
        method(x.mlp.down_proj, halves)


@exhibit("qwen-einsum-against-linear", "qwen2", source="TransformerLensOrg/TransformerLens#683")
def _(m: Model) -> None:
    """Attention by einsum, softmax by exp and sum."""

    def soften(s: Tensor) -> Tensor:
        e = torch.exp(s.float() - s.float().amax(-1, keepdim=True))
        return (e / e.sum(-1, keepdim=True)).to(s.dtype)

    written = attention(
        score=lambda q, k, s: torch.einsum("bhpe,bhse->bhps", q, k) * s,
        soften=soften,
        read=lambda a, v: torch.einsum("bhps,bhse->bhpe", a, v),
    )
    modeling(m, eager_attention_forward=written)
