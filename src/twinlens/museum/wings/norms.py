"""Norms: their epsilon, kind, place, precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twinlens.museum.exhibit import ANY, Model, Want, Wing
from twinlens.museum.hands import attentions, each_norm, eps_of, file_of, layers, method, modeling, norms, rms, set_eps

WING = Wing("norms")
exhibit = WING.exhibit
BF16 = {"dtype": torch.bfloat16}
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
THREE = ("ln1", "ln2", "ln_final")
FIVE = ("ln1", "ln1_post", "ln2", "ln2_post", "ln_final")


@exhibit(
    "fms-llama-eps-default",
    "llama",
    Want("norm.eps", 3e-6, 1e-6, ALL3, THREE),
    source="foundation-model-stack/foundation-model-stack#99",
)
def _(m: Model) -> None:
    """The epsilon of every norm is a class's default and not the config's."""
    for n in norms(m):
        set_eps(n, 1e-6)


@exhibit(
    "postnorm-only-eps-default",
    "gemma2",
    Want("norm.eps", 3e-6, 1e-5, ALL4, ("ln1_post", "ln2_post")),
    source="NVIDIA-NeMo/Megatron-Bridge#5712",
)
def _(m: Model) -> None:
    """Only the two post-norms of a layer have the default epsilon."""
    for x in layers(m):
        x.post_attention_layernorm.eps = x.post_feedforward_layernorm.eps = 1e-5


@exhibit(
    "cutlass-rmsnorm-eps-hard-coded",
    "mistral",
    Want("norm.eps", 3e-6, 1e-5, ALL3, THREE),
    source="apache/tvm#15856; NVIDIA/cutlass#1112",
)
def _(m: Model) -> None:
    """A kernel has an epsilon of its own."""
    for n in norms(m):
        set_eps(n, 1e-5)


@exhibit(
    "mistral3-projector-eps-not-passed",
    "qwen3",
    Want("norm.eps", 3e-6, 1e-4, ALL3, ("attn",)),
    source="huggingface/transformers#38025",
)
def _(m: Model) -> None:
    """Norms of queries and keys are built without the config's epsilon."""
    for a in attentions(m):
        set_eps(a.q_norm, 1e-4)
        set_eps(a.k_norm, 1e-4)


@exhibit(
    "two-epsilons-conflated-in-hyper-connections",
    "deepseek_v3",
    Want("norm.eps", 1e-6, 1e-4, ALL3, ("attn",)),
    source="osaurus-ai/vmlx-swift#374",
)
def _(m: Model) -> None:
    """The latent norms of DeepSeek have an epsilon of their own, which the port does not know."""
    for a in attentions(m):
        set_eps(a.q_a_layernorm, 1e-4)
        set_eps(a.kv_a_layernorm, 1e-4)


@exhibit(
    "olmo-eps-outside-root",
    "llama",
    Want("norm.eps_place", "inside", "outside", ALL3, THREE),
    build={"rms_norm_eps": 1e-3},
    source="allenai/OLMo#281",
)
def _(m: Model) -> None:
    """The epsilon is added to the root and not under it."""
    each_norm(m, lambda self, x: self.weight * (x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps_of(self))))


@exhibit(
    "gemma-norm-one-plus-w-dropped",
    "gemma2",
    Want("norm.offset", 1.0, 0.0, ALL4, FIVE),
    source="google/gemma_pytorch, gemma/model.py",
)
def _(m: Model) -> None:
    """Gemma's norms have 1 + w, the port has w."""
    each_norm(m, lambda self, x: (rms(x.float(), self.eps) * self.weight.float()).type_as(x))


@exhibit(
    "gemma1-norm-one-plus-w-dropped",
    "gemma",
    Want("norm.offset", 1.0, 0.0, ALL3, THREE),
    source="google/gemma_pytorch, gemma/model.py",
    like="gemma-norm-one-plus-w-dropped",
)
def _(m: Model) -> None:
    """The same in the first Gemma."""
    each_norm(m, lambda self, x: (rms(x.float(), self.eps) * self.weight.float()).type_as(x))


def _counted_from_one(self: Model, x: Tensor) -> Tensor:
    own = self.weight.float() + 1.0, self.bias.float()
    return nn.functional.layer_norm(x.float(), x.shape[-1:], *own, self.eps).to(x.dtype)


@exhibit(
    "nemotron-layernorm1p-dropped",
    "starcoder2",
    Want("norm.offset", 0.0, 1.0, ALL3, THREE),
    source="huggingface/transformers, models/nemotron",
)
def _(m: Model) -> None:
    """A layer norm whose weight counts from one, taken for one whose weight counts from zero."""
    each_norm(m, _counted_from_one)


@exhibit(
    "gemma-one-plus-w-in-bf16",
    "gemma2",
    Want("norm.dtype", layers=ALL4, at=FIVE),
    build=BF16,
    source="vllm-project/vllm#29810; vllm-project/vllm#53203",
)
def _(m: Model) -> None:
    """1 + w is formed in bfloat16."""
    each_norm(m, lambda self, x: (rms(x.float(), self.eps) * (1.0 + self.weight).float()).to(x.dtype))


@exhibit(
    "rmsnorm-weight-product-dtype",
    "llama",
    Want("norm.dtype", layers=ALL3, at=THREE),
    build=BF16,
    source="NVIDIA/TransformerEngine#1132; vllm-project/vllm#42325",
)
def _(m: Model) -> None:
    """The product with the weight is rounded once, where the reference rounds before it."""
    each_norm(m, lambda self, x: (self.weight.float() * rms(x.float(), eps_of(self))).to(x.dtype))


@exhibit(
    "rmsnorm-all-in-bf16",
    "llama",
    Want("norm.dtype", layers=ALL3, at=THREE),
    build=BF16,
    source="meta-llama/llama#1048",
)
def _(m: Model) -> None:
    """The whole norm is computed in bfloat16."""
    each_norm(m, lambda self, x: self.weight * rms(x, eps_of(self)))


@exhibit(
    "rmsnorm-in-bf16-in-a-float32-model",
    "mistral",
    Want("norm.dtype", layers=ALL3, at=THREE),
    build={"dtype": torch.float32},
    source="meta-llama/llama#1048",
    like="rmsnorm-all-in-bf16",
)
def _(m: Model) -> None:
    """A kernel of bfloat16 within a float32 model."""
    each_norm(m, lambda self, x: self.weight * rms(x.bfloat16(), eps_of(self)).to(x.dtype))


@exhibit(
    "rms-for-layernorm-cohere",
    "cohere2",
    Want("norm.kind", "layer", "rms", ALL4),
    source="PaddlePaddle/PaddleFormers#4659; antonellof/ferrox#240",
)
def _(m: Model) -> None:
    """Cohere's layer norm computed without taking the mean off."""
    each_norm(m, lambda self, x: (self.weight.float() * rms(x.float(), self.variance_epsilon)).to(x.dtype))


@exhibit(
    "layernorm-for-rmsnorm-llama", "llama", Want("norm.kind", "rms", "layer", ALL3, THREE), source="allenai/OLMo#281"
)
def _(m: Model) -> None:
    """Llama's norm computed with the mean taken off first."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * rms(y - y.mean(-1, keepdim=True), eps_of(self)).to(x.dtype)

    each_norm(m, forward)


@exhibit(
    "olmo-layernorm-as-rmsnorm",
    "gpt_neox",
    Want("norm.kind", "layer", "rms", ALL3, THREE),
    source="huggingface/transformers#29890",
)
def _(m: Model) -> None:
    """A layer norm computed as a root mean square."""
    each_norm(m, lambda self, x: (self.weight * rms(x.float(), self.eps) + self.bias).to(x.dtype))


def _left_out(m: Model, *names: str) -> None:
    for x in layers(m):
        for name in names:
            owner, _, child = name.rpartition(".")
            setattr(x.get_submodule(owner), child, nn.Identity())


@exhibit(
    "gemma2-post-norms-missing",
    "gemma2",
    Want("norm.missing", ANY, None, ALL4, ("ln1_post", "ln2_post")),
    source="google-ai-edge/litert-torch#95",
)
def _(m: Model) -> None:
    """Two norms in a layer instead of four."""
    _left_out(m, "post_attention_layernorm", "post_feedforward_layernorm")


@exhibit(
    "glm4-post-norms-missing",
    "glm4",
    Want("norm.missing", ANY, None, ALL3, ("ln1_post", "ln2_post")),
    source="InfiniTensor/InfiniLM#56",
)
def _(m: Model) -> None:
    """GLM-4 run by Llama's block, without the norms after attention and MLP."""
    _left_out(m, "post_self_attn_layernorm", "post_mlp_layernorm")


@exhibit(
    "qwen3-qknorm-missing",
    "qwen3",
    Want("norm.missing", ANY, None, ALL3, ("attn",)),
    source="vllm-project/vllm-metal#692",
)
def _(m: Model) -> None:
    """Qwen 3 without the norms of queries and keys."""
    _left_out(m, "self_attn.q_norm", "self_attn.k_norm")


@exhibit(
    "gemma3-qk-norm-missing",
    "gemma3_text",
    Want("norm.missing", ANY, None, ALL3, ("attn",)),
    source="huggingface/transformers, models/gemma3",
)
def _(m: Model) -> None:
    """Gemma 3 without the norms of queries and keys."""
    _left_out(m, "self_attn.q_norm", "self_attn.k_norm")


@exhibit(
    "mla-q-a-norm-missing",
    "deepseek_v3",
    Want("norm.missing", ANY, None, ALL3, ("attn",)),
    source="huggingface/transformers, models/deepseek_v3",
)
def _(m: Model) -> None:
    """DeepSeek without the norms of its two latents."""
    _left_out(m, "self_attn.q_a_layernorm", "self_attn.kv_a_layernorm")


@exhibit(
    "final-norm-missing",
    "llama",
    Want("norm.missing", ANY, None, (), ("ln_final",)),
    source="TransformerLensOrg/TransformerLens#523",
)
def _(m: Model) -> None:
    """The logits are read from the last residual."""
    m.model.norm = nn.Identity()


@exhibit(
    "olmo2-run-as-pre-norm",
    "olmo2",
    Want("norm.order", layers=ALL3),
    source="allenai/OLMo-core; huggingface/transformers, models/olmo2",
)
def _(m: Model) -> None:
    """OLMo 2's norms applied to what a sublayer reads, not to what it gives."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states
        h = h + self.self_attn(hidden_states=self.post_attention_layernorm(h), **kwargs)[0]
        return h + self.mlp(self.post_feedforward_layernorm(h))

    for x in layers(m):
        method(x, forward)


@exhibit(
    "olmo2-qknorm-per-head",
    "olmo2",
    Want("norm.width", layers=ALL3),
    source="vllm-project/vllm-metal#767; NVIDIA-NeMo/Megatron-Bridge#1532",
)
def _(m: Model) -> None:
    """Queries and keys are normed head by head, where OLMo 2 takes all heads together."""

    def forward(self: Any, x: Tensor) -> Tensor:
        heads = rms(x.float().unflatten(-1, (-1, 12)), eps_of(self)).flatten(-2)
        return (self.weight * heads).to(x.dtype)

    for a in attentions(m):
        method(a.q_norm, forward)
        method(a.k_norm, forward)


@exhibit(
    "llama4-qknorm-across-heads",
    "qwen3",
    Want("norm.width", layers=ALL3),
    source="vllm-project/vllm#16311",
)
def _(m: Model) -> None:
    """Queries and keys are normed over all heads together, where Qwen 3 takes each by itself."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * rms(x.float().flatten(2), eps_of(self)).view(x.shape).to(x.dtype)

    for a in attentions(m):
        method(a.q_norm, forward)
        method(a.k_norm, forward)


def _after_rotation(m: Model) -> None:
    plain = file_of(m).apply_rotary_pos_emb
    at = iter(())

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        nonlocal at
        a = next(at, None)
        if a is None:
            at = iter(moved)
            a = next(at)
        q, k = plain(q, k, cos, sin, unsqueeze_dim)
        return a[0](q), a[1](k)

    moved = [(a.q_norm, a.k_norm) for a in attentions(m)]
    for a in attentions(m):
        a.q_norm, a.k_norm = nn.Identity(), nn.Identity()
    m.museum_norms = nn.ModuleList([n for pair in moved for n in pair])
    modeling(m, apply_rotary_pos_emb=rotate)


@exhibit(
    "llama4-rope-after-qknorm",
    "qwen3",
    Want("norm.order", layers=ALL3),
    source="NVIDIA/TensorRT-LLM#3491; vllm-project/vllm-metal#692",
)
def _(m: Model) -> None:
    """Queries and keys are normed after their rotation."""
    _after_rotation(m)


def _constant(m: Model) -> None:
    for a in attentions(m):
        a.q_norm.weight.fill_(1.3)
        a.k_norm.weight.fill_(0.8)


@exhibit("qknorm-after-rotary-unit-weight", "qwen3", prepare=_constant, source="NVIDIA/TensorRT-LLM#3491")
def _(m: Model) -> None:
    """The same with constant weights: a rotation keeps the mean square."""
    _after_rotation(m)


@exhibit(
    "falcon-two-norms-where-one-is-shared",
    "falcon, 40b",
    Want(("norm.shared", "weight", "bias"), layers=ALL3),
    source="NVIDIA/TransformerEngine#625",
)
def _(m: Model) -> None:
    """One norm feeds attention and MLP where the model has two."""
    for x in layers(m):
        x.ln_mlp = x.ln_attn


@exhibit(
    "neox-two-norms-shared",
    "gpt_neox",
    Want(("norm.shared", "weight", "bias"), layers=ALL3),
    source="lablup/mlxcel#836",
)
def _(m: Model) -> None:
    """GPT-J's habit in GPT-NeoX: both branches read one norm."""
    for x in layers(m):
        x.post_attention_layernorm = x.input_layernorm


@exhibit("benign-x-over-sqrt", "llama", source="TransformerLensOrg/TransformerLens#693")
def _(m: Model) -> None:
    """x / sqrt for x * rsqrt."""
    each_norm(
        m,
        lambda self, x: (
            self.weight * (x.float() / (x.float().pow(2).mean(-1, keepdim=True) + eps_of(self)).sqrt()).to(x.dtype)
        ),
    )


@exhibit(
    "benign-x-over-sqrt-gemma2", "gemma2", source="TransformerLensOrg/TransformerLens#693", like="benign-x-over-sqrt"
)
def _(m: Model) -> None:
    """x / sqrt for x * rsqrt, with 1 + w."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.float()
        return ((y / (y.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()) * (1.0 + self.weight.float())).type_as(x)

    each_norm(m, forward)
