"""Experts and their router."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import layers, method

WING = Wing("experts and router")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
ROUTED = (1, 2)  # deepseek_v3 has a dense first layer
SPARSE = (0, 2)  # qwen3_moe has a dense second layer


def routers(m: Model) -> list[Any]:
    """The routers of the layers that have one."""
    return [
        getattr(x.mlp, name)
        for x in layers(m)
        for name in ("gate", "router")
        if hasattr(x.mlp, "experts") and hasattr(x.mlp, name)
    ]


def _route(m: Model, weigh: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Another way from the router's logits to weights and experts."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight, getattr(self, "bias", None))
        weights, chosen = weigh(self, logits)
        return logits, weights.to(logits.dtype), chosen

    for router in routers(m):
        method(router, forward)


def _softmax_of_chosen(self: Any, s: Tensor) -> tuple[Tensor, Tensor]:
    top, at = s.float().topk(self.top_k, -1)
    return top.softmax(-1), at


@exhibit("mixtral-no-renormalisation", "mixtral", Want("router.norm", layers=ALL3), source="pytorch/torchtitan#1448")
def _(m: Model) -> None:
    """The weights of the chosen experts do not add to one."""
    _route(m, lambda self, s: s.float().softmax(-1).topk(self.top_k, -1))


@exhibit(
    "mixtral-softmax-after-topk",
    "mixtral",
    source="NVIDIA/TensorRT-LLM#2752; NVIDIA/Megatron-LM#955; osaurus-ai/vmlx-swift#96",
)
def _(m: Model) -> None:
    """Softmax over the chosen: the same as softmax, choice, renormalisation."""
    _route(m, _softmax_of_chosen)


@exhibit(
    "olmoe-softmax-after-topk",
    "qwen3_moe",
    Want(("router.score", "router.norm"), layers=SPARSE),
    build={"norm_topk_prob": False},
    source="lablup/mlxcel#391; ServiceNow/Fast-LLM#83",
)
def _(m: Model) -> None:
    """Softmax over the chosen, where the weights need not add to one."""
    _route(m, _softmax_of_chosen)


@exhibit(
    "qwen2moe-norm-topk-forced",
    "qwen3_moe",
    Want(("router.norm", "router.score"), layers=SPARSE),
    build={"norm_topk_prob": False},
    source="NVIDIA/TensorRT-LLM#13247",
)
def _(m: Model) -> None:
    """The weights are divided by their sum, though the config says not to: as a softmax over the chosen gives them."""

    def weigh(self: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        top, at = s.float().softmax(-1).topk(self.top_k, -1)
        return top / top.sum(-1, keepdim=True), at

    _route(m, weigh)


@exhibit(
    "qwen3moe-norm-topk-not-read",
    "qwen3_moe",
    Want("router.norm", layers=SPARSE),
    source="NVIDIA/TensorRT-LLM#13247",
    like="qwen2moe-norm-topk-forced",
)
def _(m: Model) -> None:
    """`norm_topk_prob` is not read."""
    _route(m, lambda self, s: s.float().softmax(-1).topk(self.top_k, -1))


@exhibit(
    "moe-raw-logits-as-weights", "qwen3_moe", Want("router.score", layers=SPARSE), source="sgl-project/sglang#35160"
)
def _(m: Model) -> None:
    """The router's logits are the weights."""
    _route(m, lambda self, s: s.topk(self.top_k, -1))


@exhibit(
    "moe-sigmoid-for-softmax",
    "qwen3_moe",
    Want("router.score", layers=SPARSE),
    source="NVIDIA/TensorRT-Model-Connect#669",
)
def _(m: Model) -> None:
    """Scores by sigmoid for softmax, renormalised."""

    def weigh(self: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        top, at = s.float().sigmoid().topk(self.top_k, -1)
        return top / top.sum(-1, keepdim=True), at

    _route(m, weigh)


def _deepseek(
    m: Model,
    *,
    score: Callable[[Tensor], Tensor] = torch.sigmoid,
    best: Callable[[Tensor], Tensor] = lambda g: g.topk(2, -1)[0].sum(-1),
    outside: float = -math.inf,
    biased: bool = False,
) -> None:
    def weigh(self: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        scores = score(s.float())
        choice = scores + self.e_score_correction_bias
        each = self.num_experts // self.num_group
        groups = best(choice.view(-1, self.num_group, each)).topk(self.topk_group, -1)[1]
        kept = torch.zeros(len(s), self.num_group).scatter(1, groups, 1).bool().repeat_interleave(each, -1)
        at = choice.masked_fill(~kept, outside).topk(self.top_k, -1)[1]
        weights = (choice if biased else scores).gather(1, at)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.routed_scaling_factor, at

    _route(m, weigh)


@exhibit(
    "deepseek-softmax-for-sigmoid",
    "deepseek_v3",
    Want("router.score", "sigmoid", "softmax", ROUTED),
    source="NVIDIA/TensorRT-Model-Connect#669",
)
def _(m: Model) -> None:
    """Scores by softmax for sigmoid."""
    _deepseek(m, score=lambda s: s.softmax(-1))


@exhibit(
    "deepseek-bias-used-in-weights",
    "deepseek_v3",
    Want("router.bias", layers=ROUTED),
    source="vllm-project/vllm#12002; huggingface/transformers#41647",
)
def _(m: Model) -> None:
    """The correction bias, meant for the choice, is in the weights too."""
    _deepseek(m, biased=True)


@exhibit(
    "deepseek-bias-ignored",
    "deepseek_v3",
    Want("router.bias", layers=ROUTED),
    source="NVIDIA/TensorRT-Model-Connect#669",
)
def _(m: Model) -> None:
    """The correction bias is not loaded."""
    for router in routers(m):
        router.e_score_correction_bias.zero_()


@exhibit(
    "deepseek-groups-by-max", "deepseek_v3", Want("router.groups", layers=ROUTED), source="vllm-project/vllm#13474"
)
def _(m: Model) -> None:
    """A group's score is its best expert, where it is the sum of two."""
    _deepseek(m, best=lambda g: g.amax(-1))


@exhibit(
    "deepseek-groups-ignored",
    "deepseek_v3",
    Want("router.groups", layers=ROUTED),
    source="EricLBuehler/mistral.rs#1278",
)
def _(m: Model) -> None:
    """All experts may be chosen."""
    for router in routers(m):
        router.num_group = router.topk_group = 1


def _negative(m: Model) -> None:
    for router in routers(m):
        router.e_score_correction_bias.sub_(1.0)


@exhibit(
    "router-negative-bias-rejected",
    "deepseek_v3",
    Want("router.groups", layers=ROUTED),
    prepare=_negative,
    source="flashinfer-ai/flashinfer#2168",
)
def _(m: Model) -> None:
    """The same where every bias is negative."""
    _deepseek(m, outside=0.0)


@exhibit(
    "deepseek-routed-scaling-dropped",
    "deepseek_v3",
    Want("router.scale", 2.5, 1.0, ROUTED),
    source="sgl-project/sglang-jax#1282",
)
def _(m: Model) -> None:
    """The factor on the weights is 1."""
    for router in routers(m):
        router.routed_scaling_factor = 1.0


@exhibit(
    "deepseek-norm-topk-missing", "deepseek_v3", Want("router.norm", layers=ROUTED), source="pytorch/torchtitan#1448"
)
def _(m: Model) -> None:
    """The weights are scaled and not normed."""
    for router in routers(m):
        router.norm_topk_prob = False


@exhibit(
    "router-bf16",
    "qwen3_moe",
    Want("router.dtype", layers=SPARSE),
    build={"dtype": torch.float32},
    source="sgl-project/sglang#33764; sgl-project/sglang#38695; ViperEkura/AstrAI#57",
)
def _(m: Model) -> None:
    """The router's product in bfloat16 in a float32 model."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = x.reshape(-1, x.shape[-1])
        logits = F.linear(flat.bfloat16(), self.weight.bfloat16()).float()
        top, at = logits.softmax(-1).topk(self.top_k, -1)
        return logits, top / top.sum(-1, keepdim=True), at

    for router in routers(m):
        method(router, forward)


@exhibit("router-top-k-off-by-one", "mixtral", Want("router.top_k", 2, 1, ALL3), source="JieShibo/MoLE#7")
def _(m: Model) -> None:
    """One expert for two."""
    for router in routers(m):
        router.top_k = 1


@exhibit(
    "qwen3moe-top-k-from-default",
    "qwen3_moe",
    Want("router.top_k", 3, 4, SPARSE),
    source="JieShibo/MoLE#7",
    like="router-top-k-off-by-one",
)
def _(m: Model) -> None:
    """Experts per token are a default."""
    for router in routers(m):
        router.top_k = 4


@exhibit(
    "gpt-oss-softmax-before-topk",
    "gpt_oss",
    Want(("router.score", "router.norm"), layers=ALL4),
    source="huggingface/transformers, models/gpt_oss",
)
def _(m: Model) -> None:
    """Softmax over all experts, then the choice, not renormalised."""
    _route(m, lambda self, s: s.softmax(-1).topk(self.top_k, -1))


@exhibit(
    "gpt-oss-router-bias-dropped",
    "gpt_oss",
    Want(("router.bias", "bias"), layers=ALL4),
    source="huggingface/transformers, models/gpt_oss",
)
def _(m: Model) -> None:
    """The router's bias is not loaded."""
    for router in routers(m):
        router.bias.zero_()


@exhibit(
    "shared-expert-dropped",
    "deepseek_v3",
    Want(("experts.shared", "weight"), layers=ROUTED),
    source="InternLM/lmdeploy#3491",
)
def _(m: Model) -> None:
    """The shared expert adds nothing."""
    for x in layers(m)[1:]:
        x.mlp.shared_experts.down_proj.weight.zero_()


@exhibit(
    "shared-expert-left-out-in-code",
    "deepseek_v3",
    Want("experts.shared", layers=ROUTED),
    source="InternLM/lmdeploy#3491",
    like="shared-expert-dropped",
)
def _(m: Model) -> None:
    """The shared expert is never called."""

    def forward(self: Any, x: Tensor) -> Tensor:
        _, weights, at = self.gate(x)
        return self.experts(x.view(-1, x.shape[-1]), at, weights).view(x.shape)

    for x in layers(m)[1:]:
        method(x.mlp, forward)


@exhibit(
    "shared-expert-input-overwritten",
    "deepseek_v3",
    Want("experts.shared", layers=ROUTED),
    source="vllm-project/vllm#28939",
)
def _(m: Model) -> None:
    """The shared expert reads what the others gave."""

    def forward(self: Any, x: Tensor) -> Tensor:
        _, weights, at = self.gate(x)
        y = self.experts(x.view(-1, x.shape[-1]), at, weights).view(x.shape)
        return y + self.shared_experts(y)

    for x in layers(m)[1:]:
        method(x.mlp, forward)


@exhibit(
    "expert-capacity-drops-tokens",
    "mixtral",
    Want("experts.capacity", layers=ALL3),
    source="NVIDIA-NeMo/Speech#10077; microsoft/Tutel#230; deepseek-ai/DeepSeek-V2#48",
)
def _(m: Model) -> None:
    """Tokens beyond an expert's capacity are dropped."""

    def weigh(self: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        top, at = s.float().softmax(-1).topk(self.top_k, -1)
        top = top / top.sum(-1, keepdim=True)
        capacity = math.ceil(s.shape[0] * self.top_k / s.shape[-1])
        taken = F.one_hot(at.flatten(), s.shape[-1]).cumsum(0).gather(1, at.flatten()[:, None]).view(at.shape)
        return top * (taken <= capacity), at

    _route(m, weigh)


@exhibit(
    "deepseek-first-dense-layer-as-moe",
    "deepseek_v3",
    Want("mlp.layers", layers=(0,)),
    source="huggingface/transformers, models/deepseek_v3 (first_k_dense_replace)",
)
def _(m: Model) -> None:
    """The dense first layer is run as a routed one."""
    m.model.layers[0].mlp = copy.deepcopy(m.model.layers[1].mlp)


@exhibit(
    "qwen3moe-dense-layers-ignored",
    "qwen3_moe",
    Want("mlp.layers", layers=(1,)),
    source="huggingface/transformers, models/qwen3_moe (mlp_only_layers)",
)
def _(m: Model) -> None:
    """A dense layer is run as a routed one."""
    m.model.layers[1].mlp = copy.deepcopy(m.model.layers[2].mlp)


def _experts_permuted(m: Model, router: bool) -> None:
    for x in layers(m):
        count = x.mlp.experts.gate_up_proj.shape[0]
        at = torch.randperm(count, generator=torch.Generator().manual_seed(4))
        for w in (x.mlp.experts.gate_up_proj, x.mlp.experts.down_proj, *([x.mlp.gate.weight] if router else [])):
            w.copy_(w[at].clone())


@exhibit("experts-permuted-with-router", "mixtral", source="NVIDIA/TensorRT-Model-Connect#669 (global expert ids kept)")
def _(m: Model) -> None:
    """Experts and the router's rows stand in another order."""
    _experts_permuted(m, router=True)


@exhibit(
    "experts-permuted-without-router",
    "mixtral",
    Want("weight", layers=ALL3),
    source="NVIDIA/TensorRT-Model-Connect#669",
)
def _(m: Model) -> None:
    """Experts stand in another order, the router's rows do not."""
    _experts_permuted(m, router=False)


@exhibit(
    "llama4-router-score-on-output",
    "mixtral",
    Want("router.apply", layers=ALL3),
    source="huggingface/transformers, models/llama4",
)
def _(m: Model) -> None:
    """The weight multiplies what an expert reads, not what it gives."""

    def forward(self: Any, x: Tensor, at: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i in range(at.shape[1]):
            y = x * weights[:, i : i + 1]
            both = torch.einsum("td,tgd->tg", y, self.gate_up_proj[at[:, i]])
            gate, up = both.chunk(2, -1)
            out = out + torch.einsum("tm,tdm->td", self.act_fn(gate) * up, self.down_proj[at[:, i]])
        return out

    for x in layers(m):
        method(x.mlp.experts, forward)
