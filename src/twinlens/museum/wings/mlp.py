"""The MLP: activation, gate, limits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import act, layers, mlp

WING = Wing("MLP")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)


@exhibit(
    "gemma-gelu-erf-for-tanh",
    "gemma",
    Want("mlp.act", "gelu_tanh", "gelu", ALL3),
    source="huggingface/transformers#29402; vllm-project/vllm#3411; mlc-ai/mlc-llm#2106",
)
def _(m: Model) -> None:
    """GELU by erf, where the checkpoint was trained with tanh."""
    act(m, F.gelu)


@exhibit(
    "tei-all-gelu-as-tanh",
    "gpt_neox",
    Want("mlp.act", "gelu", "gelu_tanh", ALL3),
    source="huggingface/text-embeddings-inference#753",
)
def _(m: Model) -> None:
    """GELU by tanh for erf."""
    act(m, lambda x: F.gelu(x, approximate="tanh"))


@exhibit(
    "pocket-tts-exact-gelu",
    "starcoder2",
    Want("mlp.act", "gelu_tanh", "gelu", ALL3),
    source="kyutai-labs/pocket-tts#278",
)
def _(m: Model) -> None:
    """GELU by erf in a family whose name for it says gelu."""
    act(m, F.gelu)


@exhibit(
    "quick-gelu-for-gelu",
    "gpt2",
    Want("mlp.act", "gelu_tanh", "quick_gelu", ALL3),
    source="huggingface/transformers, activations.py",
)
def _(m: Model) -> None:
    """x · sigmoid(1.702 x) for GELU."""
    act(m, lambda x: x * torch.sigmoid(1.702 * x))


@exhibit(
    "gelu-f16-table",
    "gpt2",
    Want("mlp.dtype", layers=ALL3),
    build={"dtype": torch.float32},
    source="ggml-org/llama.cpp, ggml/src/ggml-cpu/vec.h",
)
def _(m: Model) -> None:
    """GELU from a table in float16."""
    act(m, lambda x: F.gelu(x.half().float(), approximate="tanh").half().float())


@exhibit(
    "relu2-as-relu", "opt", Want("mlp.act", "relu", "relu2", ALL3), source="huggingface/transformers, models/nemotron"
)
def _(m: Model) -> None:
    """The square of relu taken for relu, or the other way round."""
    act(m, lambda x: F.relu(x).square())


@exhibit(
    "silu-gelu-confusion",
    "llama",
    Want("mlp.act", "silu", "gelu", ALL3),
    source="huggingface/transformers, activations.py",
)
def _(m: Model) -> None:
    """GELU for SiLU."""
    act(m, F.gelu)


@exhibit("gate-up-swapped", "llama", Want(("mlp.gate_order", "weight"), layers=ALL3), source="ml-explore/mlx-lm#767")
def _(m: Model) -> None:
    """Gate and up are exchanged in the weights."""
    for x in layers(m):
        a, b = x.mlp.gate_proj.weight, x.mlp.up_proj.weight
        before = a.clone()
        a.copy_(b)
        b.copy_(before)


@exhibit(
    "gate-up-swapped-in-code",
    "qwen3",
    Want("mlp.gate_order", "gate", "up", ALL3),
    source="ml-explore/mlx-lm#767",
    like="gate-up-swapped",
)
def _(m: Model) -> None:
    """Gate and up are exchanged in the code."""
    mlp(m, lambda self, x: self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x)))


def _halves(w: Tensor) -> None:
    w.copy_(torch.cat(w.chunk(2)[::-1]).clone())


@exhibit(
    "phi3-fused-gate-up-halves-swapped",
    "phi3",
    Want(("mlp.gate_order", "weight"), layers=ALL3),
    source="charlie12345/ROCmFPX#49; flashinfer-ai/flashinfer#4130",
)
def _(m: Model) -> None:
    """The halves of the fused product are exchanged."""
    for x in layers(m):
        _halves(x.mlp.gate_up_proj.weight)


@exhibit(
    "glm4-fused-gate-up-halves-swapped",
    "glm4",
    Want("mlp.gate_order", layers=ALL3),
    source="charlie12345/ROCmFPX#49; flashinfer-ai/flashinfer#4130",
    like="phi3-fused-gate-up-halves-swapped",
)
def _(m: Model) -> None:
    """The halves of the fused product are read in the other order."""

    def forward(self: Model, x: Tensor) -> Tensor:
        up, gate = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))

    mlp(m, forward)


def _gate(m: Model, f: Model) -> None:
    for x in layers(m):
        x.mlp.experts._apply_gate = f.__get__(x.mlp.experts)


@exhibit(
    "gpt-oss-gate-up-halves-for-interleaved",
    "gpt_oss",
    Want("mlp.gate_order", "interleaved", "gate_up", ALL4),
    source="huggingface/transformers, models/gpt_oss",
)
def _(m: Model) -> None:
    """Gate and up are read as halves, where they alternate."""

    def gate(self: Model, both: Tensor) -> Tensor:
        g, up = both.chunk(2, -1)
        g, up = g.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * g * torch.sigmoid(g * self.alpha)

    _gate(m, gate)


@exhibit(
    "gpt-oss-swiglu-limit-ignored",
    "gpt_oss",
    Want("mlp.limit", 2.5, None, ALL4),
    source="vllm-project/vllm-ascend#4467",
)
def _(m: Model) -> None:
    """The limit of the gated units is not read."""
    for x in layers(m):
        x.mlp.experts.limit = 1e9


@exhibit(
    "gpt-oss-swiglu-alpha-one",
    "gpt_oss",
    Want(("mlp.alpha", "mlp.act"), layers=ALL4),
    source="vllm-project/vllm-ascend#4467",
)
def _(m: Model) -> None:
    """SiLU with 1 in the place of 1.702."""
    for x in layers(m):
        x.mlp.experts.alpha = 1.0


@exhibit(
    "gpt-oss-up-plus-one-missing",
    "gpt_oss",
    Want(("mlp.offset", "mlp.shift"), 1.0, 0.0, ALL4),
    source="vllm-project/vllm-ascend#4467",
)
def _(m: Model) -> None:
    """up for up + 1."""

    def gate(self: Model, both: Tensor) -> Tensor:
        g, up = both[..., ::2], both[..., 1::2]
        g, up = g.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return up * g * torch.sigmoid(g * self.alpha)

    _gate(m, gate)


@exhibit(
    "gpt-oss-expert-bias-dropped",
    "gpt_oss",
    Want("bias", layers=ALL4),
    source="vllm-project/vllm-ascend#4467; vllm-project/vllm-gaudi#441",
)
def _(m: Model) -> None:
    """The experts' biases are not loaded."""
    for x in layers(m):
        x.mlp.experts.down_proj_bias.zero_()
        x.mlp.experts.gate_up_proj_bias.zero_()


@exhibit("neuron-permutation", "llama", source="permutation symmetry of MLPs (Git Re-Basin, arXiv 2209.04836)")
def _(m: Model) -> None:
    """Neurons stand in another order in all three products."""
    at = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    for x in layers(m):
        for w in (x.mlp.gate_proj.weight, x.mlp.up_proj.weight):
            w.copy_(w[at].clone())
        x.mlp.down_proj.weight.copy_(x.mlp.down_proj.weight[:, at].clone())


@exhibit("up-scaled-down-scaled-back", "qwen2", source="design trial of this project", like="two-faults-that-cancel")
def _(m: Model) -> None:
    """A factor 2 in one product and a half in the next."""
    for x in layers(m):
        x.mlp.up_proj.weight.mul_(2.0)
        x.mlp.down_proj.weight.mul_(0.5)


@exhibit("silu-written-out", "llama", source="huggingface/transformers, activations.py", like="silu-gelu-confusion")
def _(m: Model) -> None:
    """x / (1 + exp(-x))."""
    act(m, lambda x: x / (1 + torch.exp(-x)))
