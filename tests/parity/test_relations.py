"""What code does to a tensor between two steps, which no field says: read off, named and mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import twinlens
from twinlens.museum.hands import layers
from twinlens.museum.tiny import ALL, random_tokens

On = Callable[[Tensor], Tensor]


def gives(module: nn.Module, change: On) -> None:
    """The module gives what the change makes of its result."""

    def hook(module: nn.Module, args: Any, given: Any) -> Any:
        return (change(given[0]), *given[1:]) if isinstance(given, tuple) else change(given)

    module.register_forward_hook(hook)


def reads(module: nn.Module, change: On) -> None:
    """The module reads what the change makes of its argument."""
    module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))


def by_head(model: Any, change: On) -> On:
    width = layers(model)[1].self_attn.head_dim
    return lambda x: change(x.unflatten(-1, (-1, width))).flatten(-2)


def second(factor: float) -> On:
    """The second head times a factor."""

    def change(x: Tensor) -> Tensor:
        each = torch.ones(x.shape[-2], 1, dtype=x.dtype)
        each[1] = factor
        return x * each

    return change


def clipped(model: Any) -> None:
    for layer in layers(model):
        for name in ("q_proj", "k_proj", "v_proj"):
            gives(getattr(layer.self_attn, name), lambda x: x.clamp(-1.2, 1.2))


def attention(model: Any) -> Any:
    return layers(model)[1].self_attn


def halved(model: Any) -> None:
    gives(layers(model)[1], lambda x: 0.5 * x)


def mlp_clipped(model: Any) -> None:
    gives(layers(model)[1].mlp, lambda x: x.clamp(-1, 1))


def stream_in_bfloat16(model: Any) -> None:
    for layer in layers(model):
        gives(layer, lambda x: x.bfloat16().float())


def heads_turned(model: Any) -> None:
    reads(attention(model).o_proj, by_head(model, lambda x: x.flip(-2)))


def queries_turned(model: Any) -> None:
    gives(attention(model).q_proj, by_head(model, lambda x: x.flip(-2)))


def values_turned(model: Any) -> None:
    gives(attention(model).v_proj, by_head(model, lambda x: x.flip(-2)))


def values_late(model: Any) -> None:
    gives(attention(model).v_proj, lambda x: x.roll(1, 1))


def head_left_out(model: Any) -> None:
    reads(attention(model).o_proj, by_head(model, second(0.0)))


def head_made_smaller(model: Any) -> None:
    reads(attention(model).o_proj, by_head(model, second(0.9)))


def activated_twice(model: Any) -> None:
    gives(layers(model)[1].mlp.up_proj, F.silu)


def embedding_normed(model: Any) -> None:
    gives(model.model.embed_tokens, lambda x: F.layer_norm(x, x.shape[-1:]))


def attention_dropped(model: Any) -> None:
    gives(attention(model), lambda x: 0 * x)


def mlp_dropped(model: Any) -> None:
    gives(layers(model)[1].mlp, lambda x: 0 * x)


def norm_reads_half(model: Any) -> None:
    norm = layers(model)[1].post_attention_layernorm
    reads(norm, lambda x: x.half())
    gives(norm, lambda x: x.float())


FAULTS: dict[str, tuple[Callable[[Any], Any], str, Any, list[int]]] = {
    "a layer's result halved": (halved, "residual.scale", 0.5, [2]),
    "queries, keys and values clipped": (clipped, "attn.clip", 1.2, [0, 1, 2]),
    "what the MLP adds clipped": (mlp_clipped, "residual.clip", 1.0, [1]),
    "the stream in bfloat16": (stream_in_bfloat16, "residual.dtype", "bfloat16", [0, 1, 2]),
    "what heads give in reverse": (heads_turned, "attn.heads", "heads [3, 2, 1, 0]", [1]),
    "queries' heads in reverse": (queries_turned, "attn.heads", "heads [3, 2, 1, 0]", [1]),
    "values' heads in reverse": (values_turned, "attn.kv_map", "key/value heads [1, 0]", [1]),
    "values one position late": (values_late, "attn.positions", "each position that of 1 before", [1]),
    "a head left out": (head_left_out, "attn.factor", "head 1 times 0", [1]),
    "a head made smaller": (head_made_smaller, "attn.factor", "head 1 times 0.9", [1]),
    "the other half through the activation": (activated_twice, "mlp.act", "silu", [1]),
    "what a norm reads in float16": (norm_reads_half, "norm.dtype", "float16", [1]),
    "the embedding normed": (embedding_normed, "norm.missing", "present", []),
    "attention added to nothing": (attention_dropped, "residual.scale", 0.0, [1]),
    "the MLP added to nothing": (mlp_dropped, "residual.scale", 0.0, [1]),
}


def found(plant: Callable[[Any], Any], family: str = "llama", sites: str = "all") -> tuple[Any, twinlens.Report]:
    reference, candidate = ALL[family](), ALL[family]()
    with torch.no_grad():
        plant(candidate)
    tokens = random_tokens(reference, 2, 40, seed=3)
    return candidate, twinlens.compare(reference, candidate, tokens=tokens, sites=sites)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_no_field_says_is_read_off_and_mended(fault: str) -> None:
    plant, parameter, value, where = FAULTS[fault]
    candidate, report = found(plant)
    assert {(c.parameter, c.candidate, tuple(c.layers), c.status) for c in report.causes} == {
        (parameter, value, tuple(where), "proved")
    }
    assert report.unexplained == []
    assert report.fix(candidate).verdict in ("identical", "rounding")


@pytest.mark.sliced
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe", "olmo2", "mistral"])
@pytest.mark.parametrize("fault", FAULTS)
def test_in_other_families(fault: str, family: str) -> None:
    """The part of the model that it is told of may be another one: before a norm it is not yet the stream."""
    plant, parameter, value, _ = FAULTS[fault]
    _, report = found(plant, family)
    assert {c.parameter.partition(".")[2] for c in report.causes} == {parameter.partition(".")[2]}
    assert value in {c.candidate for c in report.causes}
    assert report.unexplained == []


def test_a_stream_that_every_layer_clamps_is_so_before_the_last_norm_too() -> None:
    def planted(model: Any) -> None:
        for layer in layers(model):
            gives(layer, lambda x: x.clamp(-4, 4))

    _, report = found(planted, "gemma3_text")
    assert {(c.parameter, c.candidate) for c in report.causes} == {("residual.clip", 4.0)}
    assert report.unexplained == []


def values_clipped(model: Any) -> None:
    gives(attention(model).v_proj, lambda x: x.clamp(-1.5, 1.5))


@pytest.mark.parametrize(("plant", "value", "where"), [(clipped, 1.2, [0, 1, 2]), (values_clipped, 1.5, [1])])
@pytest.mark.parametrize("sites", ["sublayers", "residual"])
def test_a_bound_is_fitted_where_products_are_hidden(
    plant: Callable[[Any], Any], value: float, where: list[int], sites: str
) -> None:
    candidate, report = found(plant, sites=sites)
    assert [(c.parameter, c.candidate, c.layers) for c in report.causes] == [("attn.clip", value, where)]
    assert report.fix(candidate).verdict in ("identical", "rounding")


@pytest.mark.sliced
@pytest.mark.parametrize("sites", ["logits", "logprobs"])
def test_a_bound_of_all_layers_is_fitted_from_afar(sites: str) -> None:
    _, report = found(clipped, sites=sites)
    assert [(c.parameter, c.candidate, c.layers) for c in report.causes] == [("attn.clip", 1.2, [0, 1, 2])]


@pytest.mark.parametrize("sites", ["residual", "logits"])
def test_from_afar_nothing_is_read_off(sites: str) -> None:
    plant, *_ = FAULTS["what heads give in reverse"]
    _, report = found(plant, sites=sites)
    assert report.causes == []
    assert report.unexplained


def test_a_factor_that_a_field_says_is_that_field() -> None:
    def planted(model: Any) -> None:
        attention(model).scaling *= 1.25

    _, report = found(planted)
    assert [c.parameter for c in report.causes] == ["attn.scale"]


@pytest.mark.parametrize("sites", ["all", "logits"])
def test_a_bias_of_the_logits_is_read_off(sites: str) -> None:
    bias = torch.linspace(-1, 1, 211)

    def planted(model: Any) -> None:
        gives(model.lm_head, lambda x: x + bias[: x.shape[-1]])

    _, report = found(planted, sites=sites)
    assert [(c.parameter, c.reference, c.candidate) for c in report.causes] == [("bias", None, "lm_head.bias")]


def test_a_bias_under_a_cap_is_read_off() -> None:
    bias = torch.linspace(-1, 1, 500)

    def planted(model: Any) -> None:
        gives(model.lm_head, lambda x: x + bias[: x.shape[-1]])

    _, report = found(planted, "gemma2")
    assert [(c.parameter, c.candidate) for c in report.causes] == [("bias", "model.embed_tokens.bias")]
