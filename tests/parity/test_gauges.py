"""What changes no function is a gauge and no cause; what only looks like one is a cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import twinlens
from tests.parity.faults import ALL3
from twinlens.museum.hands import attentions, interleaved, layers, modeling
from twinlens.museum.tiny import ALL, FAMILIES, random_tokens, tiny


def neurons(m: Any) -> None:
    at = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    for x in layers(m):
        for w in (x.mlp.gate_proj.weight, x.mlp.up_proj.weight):
            w.copy_(w[at].clone())
        x.mlp.down_proj.weight.copy_(x.mlp.down_proj.weight[:, at].clone())


def pairs(m: Any) -> None:
    """Queries and keys as the interleaved layout wants them, and that layout."""
    for a in attentions(m):
        for w in (a.q_proj.weight, a.k_proj.weight):
            w.copy_(w.view(-1, 2, 6, 48).transpose(1, 2).reshape(w.shape).clone())
    modeling(m, apply_rotary_pos_emb=interleaved)


def heads(m: Any) -> None:
    """The two heads that share a key/value head change places."""
    for a in attentions(m):
        a.q_proj.weight.copy_(a.q_proj.weight.view(2, 2, 12, 48).flip(1).reshape(48, 48).clone())
        a.o_proj.weight.copy_(a.o_proj.weight.view(48, 2, 2, 12).flip(2).reshape(48, 48).clone())


def factor(m: Any) -> None:
    for x in layers(m):
        x.mlp.up_proj.weight.mul_(2.0)
        x.mlp.down_proj.weight.mul_(0.5)


def scale(m: Any) -> None:
    """The scale of the scores within the weights of the queries."""
    for a in attentions(m):
        a.q_proj.weight.mul_(a.scaling)
        a.scaling = 1.0


def compared(change: Callable[[Any], None]) -> twinlens.Report:
    reference, candidate = FAMILIES["llama"](), FAMILIES["llama"]()
    with torch.no_grad():
        change(candidate)
    return twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))


@pytest.mark.parametrize("change", [neurons, pairs, heads, factor, scale], ids=lambda f: f.__name__)
def test_a_gauge_is_said_and_accuses_nobody(change: Callable[[Any], None]) -> None:
    report = compared(change)
    assert (report.verdict, report.causes, report.unexplained) == ("rounding", [], [])
    assert len(report.gauges) == len(ALL3)


def test_half_a_gauge_is_a_cause() -> None:
    def half(m: Any) -> None:
        neurons(m)
        layers(m)[1].mlp.down_proj.weight[3] *= 0.5

    report = compared(half)
    assert report.verdict == "different"
    assert {i for c in report.causes for i in c.layers} == {1}


@pytest.mark.parametrize("readers", [("q_proj",), ("q_proj", "k_proj"), ("v_proj",)], ids=str)
def test_a_norm_that_is_folded_into_some_of_its_readers_is_a_fault(readers: tuple[str, ...]) -> None:
    def folded(m: Any) -> None:
        norm = layers(m)[1].input_layernorm.weight
        for name in readers:
            getattr(layers(m)[1].self_attn, name).weight.mul_(norm)
        norm.fill_(1.0)

    report = compared(folded)
    assert (report.verdict, report.gauges) == ("different", [])


def test_pairs_of_a_long_prompt() -> None:
    reference, candidate = FAMILIES["llama"](), FAMILIES["llama"]()
    with torch.no_grad():
        pairs(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 120, seed=3))
    assert (report.verdict, report.causes, len(report.gauges)) == ("rounding", [], len(ALL3))


def folded_norms(m: Any) -> None:
    """All norms in what reads them, as TransformerLens folds them."""
    for x in layers(m):
        for norm, readers in (
            (x.input_layernorm, (x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj)),
            (x.post_attention_layernorm, (x.mlp.gate_proj, x.mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1.0)
    m.lm_head.weight.mul_(m.model.norm.weight)
    m.model.norm.weight.fill_(1.0)


@pytest.mark.parametrize("sites", ["all", "sublayers"])
def test_norms_that_are_folded_are_gauges_whatever_is_seen(sites: str) -> None:
    reference, candidate = FAMILIES["llama"](), FAMILIES["llama"]()
    with torch.no_grad():
        folded_norms(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3), sites=sites)
    assert (report.verdict, report.causes, report.unexplained) == ("rounding", [], [])
    assert any("lm_head.weight" in words for words in report.gauges)


@pytest.mark.parametrize("family", ["phi3", "glm4"])
def test_neurons_of_a_fused_gate_in_another_order(family: str) -> None:
    reference, candidate = ALL[family](), ALL[family]()
    at = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for x in candidate.model.layers:
            w = x.mlp.gate_up_proj.weight
            w.copy_(torch.cat((w[:80][at], w[80:][at])).clone())
            x.mlp.down_proj.weight.copy_(x.mlp.down_proj.weight[:, at].clone())
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert (report.verdict, report.causes, report.unexplained) == ("rounding", [], [])


def centred(m: Any) -> None:
    head = m.lm_head.weight
    m.lm_head.weight = torch.nn.Parameter(head - head.mean(0, keepdim=True))


def test_a_centred_unembedding_moves_no_probability() -> None:
    report = compared(centred)
    assert (report.verdict, report.causes) == ("rounding", [])
    assert report.gauges[0].startswith("logits.shift: ")


def test_a_centred_unembedding_under_a_cap_is_a_fault() -> None:
    reference, candidate = FAMILIES["gemma2"](), FAMILIES["gemma2"]()
    with torch.no_grad():
        centred(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert (report.verdict, report.gauges) == ("different", [])
    assert [(c.parameter, c.site) for c in report.causes] == [("weight", "logits")]


def test_a_fused_product_in_another_order_is_a_gauge_where_a_kernel_hides_what_reads_it() -> None:
    """Queries show that it is; keys and values are not seen, and what is made of them must be right, too."""
    module: Any = tiny("gpt_neox")
    tokens = random_tokens(module, 2, 40)
    report = twinlens.compare(module, in_thirds(module, tokens))
    assert (report.verdict, report.causes) == ("rounding", [])
    assert len(report.gauges) == 3
    other: Any = tiny("gpt_neox")
    with torch.no_grad():
        for layer in other.gpt_neox.layers:  # values for keys
            weight = layer.attention.query_key_value.weight
            weight.copy_(weight.view(4, 3, 12, -1)[:, [0, 2, 1]].flatten(0, 2).clone())
    assert twinlens.compare(module, in_thirds(other, tokens)).verdict == "different"


def in_thirds(module: Any, tokens: torch.Tensor) -> twinlens.Recording:
    """A run that has all queries, all keys, all values in one tensor, and shows what a fused kernel does."""
    model: Any = twinlens.load(module)
    logits, cache = model.run_with_cache(tokens)
    hidden = ("hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern")
    sites = {s: cache[s] for s in cache if not s.endswith(hidden)} | {"logits": logits}
    for site in [s for s in sites if s.endswith("hook_qkv")]:
        sites[site] = sites[site].unflatten(-1, (4, 3, 12)).transpose(-3, -2).flatten(-3)
    return twinlens.Recording.from_tensors(sites, tokens=tokens)
