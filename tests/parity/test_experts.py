"""Routers and experts: what is wrong with them is named, and what only looks so is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import twinlens
from bench.calibration import shuffled
from twinlens.museum.tiny import ALL, EAGER_ONLY, random_tokens, tiny

SPARSE = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
Change = Callable[[Any], None]


def blocks(model: Any) -> list[Any]:
    return [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")]


def router(block: Any) -> Any:
    return getattr(block, "gate", None) or block.router


def each_router(**fields: Any) -> Change:
    def change(model: Any) -> None:
        for block in blocks(model):
            for name, value in fields.items():
                before = getattr(router(block), name)
                setattr(router(block), name, value(before) if callable(value) else value)

    return change


def each_experts(**fields: Any) -> Change:
    def change(model: Any) -> None:
        for block in blocks(model):
            for name, value in fields.items():
                setattr(block.experts, name, value)

    return change


def rolled(*, with_router: bool) -> Change:
    """The first layer's experts in another order, their router with them or not."""

    def change(model: Any) -> None:
        block = blocks(model)[0]
        for tensor in (*block.experts.parameters(), *(router(block).parameters() if with_router else ())):
            tensor.data = tensor.data.roll(1, 0)

    return change


def ups_first(model: Any) -> None:
    experts = blocks(model)[0].experts
    gate = experts._apply_gate
    if model.config.model_type == "gpt_oss":
        experts._apply_gate = lambda x: gate(torch.stack((x[..., 1::2], x[..., ::2]), -1).flatten(-2))
    else:
        experts._apply_gate = lambda x: gate(torch.cat(x.chunk(2, -1)[::-1], -1))


def without_shared(model: Any) -> None:
    for block in blocks(model):
        block.shared_experts.forward = torch.zeros_like


def routed(score: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Change:
    def change(model: Any) -> None:
        for block in blocks(model):

            def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight)
                return logits, *score(logits, self.top_k)

            router(block).forward = MethodType(forward, router(block))

    return change


def _sigmoid(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = logits.sigmoid().topk(k, -1)
    return best.values / best.values.sum(-1, keepdim=True), best.indices


def _chosen_first(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = logits.topk(k, -1)
    return best.values.softmax(-1), best.indices


def sinks(model: Any) -> None:
    model.model.layers[1].self_attn.sinks.data[2] += 0.1


WEIGHTS = "mlp.router.hook_weights"
FAULTS: list[tuple[tuple[str, ...], str, Change, str, str]] = [
    (SPARSE, "one expert less", each_router(top_k=lambda k: k - 1), "router.top_k", WEIGHTS),
    (SPARSE, "up before gate", ups_first, "mlp.gate_order", "hook_out"),
    (SPARSE[:2] + SPARSE[3:], "experts in another order", rolled(with_router=False), "weight", "hook_out"),
    (("gpt_oss",), "experts in another order", rolled(with_router=False), "weight bias", "hook_out"),
    (("qwen3_moe", "deepseek_v3"), "no sum", each_router(norm_topk_prob=False), "router.norm", WEIGHTS),
    (("deepseek_v3",), "scale", each_router(routed_scaling_factor=2.525), "router.scale", WEIGHTS),
    (("deepseek_v3",), "one group", each_router(topk_group=1), "router.groups", WEIGHTS),
    (("deepseek_v3",), "no bias", each_router(e_score_correction_bias=torch.zeros_like), "router.bias", WEIGHTS),
    (("deepseek_v3",), "no shared expert", without_shared, "experts.shared", "mlp.hook_out"),
    (("mixtral", "qwen3_moe"), "sigmoid", routed(_sigmoid), "router.score", WEIGHTS),
    (("gpt_oss",), "no limit", each_experts(limit=1e9), "mlp.limit", "mlp.hook_out"),
    (("gpt_oss",), "slope", each_experts(alpha=1.5), "mlp.alpha", "mlp.hook_out"),
    (("gpt_oss",), "a sink", sinks, "attn.sinks", "attn.hook_pattern"),
]
PLANTED = [(f, name, change, p, site) for families, name, change, p, site in FAULTS for f in families]


def changed(family: str, change: Change, seed: int = 0) -> tuple[Any, Any, Tensor]:
    model: Any = tiny(family, seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return model, other, random_tokens(model, 2, 40, seed)


@pytest.mark.parametrize(
    ("family", "name", "change", "parameter", "site"), PLANTED, ids=lambda x: x if type(x) is str else ""
)
def test_named(family: str, name: str, change: Change, parameter: str, site: str) -> None:
    report = twinlens.compare(*(pair := changed(family, change))[:2], tokens=pair[2])
    assert report.verdict == "different"
    assert {c.parameter for c in report.causes} == set(parameter.split())
    assert all(c.site.endswith(site) and c.status == "proved" for c in report.causes)
    assert report.explained in ("identical", "rounding")


HONEST: list[tuple[tuple[str, ...], str, Change]] = [
    (SPARSE, "experts one by one", lambda m: m.set_experts_implementation("eager")),
    (SPARSE, "each row with its own", lambda m: m.set_experts_implementation("batched_mm")),
    (("mixtral", "qwen3_moe", "gpt_oss"), "all in another order", rolled(with_router=True)),
    (("mixtral", "qwen3_moe"), "softmax of the chosen", routed(_chosen_first)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "name", "change"), [(f, name, c) for families, name, c in HONEST for f in families],
    ids=lambda x: x if type(x) is str else "",
)  # fmt: skip
def test_another_way_to_run_them_is_no_fault(family: str, name: str, change: Change, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and name == "softmax of the chosen":
        change = routed(lambda logits, k: _chosen_first(logits.float(), k))
    model: Any = tiny(family, dtype=dtype)
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    report = twinlens.compare(model, other, tokens=random_tokens(model, 2, 40))
    assert report.verdict in ("identical", "rounding")
    assert report.causes == []


@pytest.mark.parametrize("length", [1, 2, 7, 120])
@pytest.mark.parametrize("family", SPARSE)
def test_whatever_experts_are_hit(family: str, length: int) -> None:
    """Code that loops over them is another graph in each call; in bfloat16 some tokens go to others."""
    model: Any = tiny(family, dtype=torch.bfloat16)
    other = copy.deepcopy(model)
    model.set_experts_implementation("eager")
    if family not in EAGER_ONLY:
        other.set_attn_implementation("sdpa")
    report = twinlens.compare(model, other, tokens=random_tokens(model, 1, length, seed=length))
    assert report.verdict in ("identical", "rounding")
    assert report.causes == []


def test_a_token_that_takes_another_expert_within_rounding_is_counted() -> None:
    model: Any = tiny("mixtral", dtype=torch.bfloat16)
    other: Any = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")
    tokens = random_tokens(model, 2, 120, seed=3)
    report = twinlens.compare(model, other, tokens=tokens)
    assert report.verdict == "rounding"
    sites = [twinlens.load(m).run_with_cache(tokens)[1] for m in (model, other)]
    taken = [[s[f"blocks.{i}.mlp.router.hook_indices"].sort(-1).values for i in range(3)] for s in sites]
    flipped = torch.stack([(a != b).any(-1) for a, b in zip(*taken, strict=True)]).any(0)
    assert report.flips == int(flipped.sum()) > 0


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_another_activation_of_experts_is_no_rounding_of_16_bits(family: str) -> None:
    reference: Any = tiny(family, dtype=torch.bfloat16)
    candidate = copy.deepcopy(reference)
    for block in blocks(candidate):
        block.experts.act_fn = torch.nn.ReLU()
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    assert [(c.parameter, c.reference, c.candidate) for c in report.causes] == [("mlp.act", "silu", "relu")]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_experts_in_another_order_with_their_router_are_the_same_function(family: str) -> None:
    """gpt-oss holds its experts [in, out], DeepSeek's router has a bias and groups."""
    reference = ALL[family]()
    candidate = copy.deepcopy(reference)
    shuffled.experts(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 24, seed=1))
    assert (report.verdict, report.causes, report.unexplained) == ("rounding", [], [])
    assert report.gauges
