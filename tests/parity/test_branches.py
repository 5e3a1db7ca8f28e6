"""To what a branch is added, and what is normed that is not declared to be: named at every visibility, and mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import twinlens
from twinlens.museum.hands import layers, method
from twinlens.museum.tiny import ALL, random_tokens

Change = Callable[[Any], None]


def found(change: Change, sites: str = "all", family: str = "llama") -> tuple[Any, twinlens.Report]:
    reference, candidate = ALL[family](), ALL[family]()
    change(candidate)
    return candidate, twinlens.compare(
        reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3), sites=sites
    )


def attention_to_the_normed_stream(model: Any) -> None:
    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x = self.input_layernorm(hidden_states)
        x = x + self.self_attn(hidden_states=x, **kwargs)[0]
        return x + self.mlp(self.post_attention_layernorm(x))

    method(layers(model)[1], forward)


def mlp_to_the_normed_stream(model: Any) -> None:
    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        x = self.post_attention_layernorm(x)
        return x + self.mlp(x)

    method(layers(model)[1], forward)


def mlp_to_the_stream_before_attention(model: Any) -> None:
    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(x))

    method(layers(model)[1], forward)


def attention_to_nothing(model: Any) -> None:
    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return x + self.mlp(self.post_attention_layernorm(x))

    method(layers(model)[1], forward)


STREAMS = [
    (attention_to_the_normed_stream, "norm.order", "blocks.1.ln1.hook_normalized", "on the stream"),
    (mlp_to_the_normed_stream, "norm.order", "blocks.1.ln2.hook_normalized", "on the stream"),
    (mlp_to_the_stream_before_attention, "residual.stream", "blocks.1.hook_resid_post", "hook_resid_pre"),
    (attention_to_nothing, "residual.stream", "blocks.1.hook_resid_mid", None),
]


@pytest.mark.sliced
@pytest.mark.parametrize("sites", ["all", "residual", "logits"])
@pytest.mark.parametrize(("change", "parameter", "site", "value"), STREAMS)
def test_to_what_a_branch_is_added(change: Change, parameter: str, site: str, value: str | None, sites: str) -> None:
    candidate, report = found(change, sites)
    (cause,) = report.causes
    assert (cause.parameter, cause.site, cause.candidate) == (parameter, site, value)
    assert (cause.layers, cause.status, report.unexplained) == ([1], "proved", [])
    assert report.fix(candidate).verdict == "identical"


def normed(module: Any, eps: float, width: int = 0) -> None:
    """What a product gives is normed, by heads of a width or all of it."""
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        y = plain(x)
        heads = y.unflatten(-1, (-1, width or y.shape[-1]))
        return F.rms_norm(heads, heads.shape[-1:], eps=eps).flatten(-2)

    module.forward = forward


@pytest.mark.sliced
@pytest.mark.parametrize(("sites", "eps"), [("all", 3e-6), ("all", 1e-6), ("residual", 1e-5)])
def test_queries_and_keys_are_normed_that_are_not_declared_to_be(sites: str, eps: float) -> None:
    def change(model: Any) -> None:
        for layer in layers(model):
            for name in ("q_proj", "k_proj"):
                normed(getattr(layer.self_attn, name), eps, layer.self_attn.head_dim)

    candidate, report = found(change, sites)
    assert {(c.parameter, c.candidate, c.status) for c in report.causes} == {("norm.missing", "present", "proved")}
    assert [c.layers for c in report.causes] == [[0, 1, 2]] * len(report.causes)
    assert report.causes[0].site == "blocks.0.attn.q_norm.hook_normalized"
    assert report.unexplained == []
    assert report.fix(candidate).verdict in ("identical", "rounding")


def test_what_a_sublayer_gives_is_normed() -> None:
    candidate, report = found(lambda model: normed(layers(model)[2].mlp.down_proj, 3e-6))
    (cause,) = report.causes
    assert (cause.parameter, cause.layers, cause.site) == ("norm.missing", [2], "blocks.2.ln2_post.hook_normalized")
    assert "is normed once more, by Normalize(eps=3e-06" in cause.evidence
    assert report.fix(candidate).verdict == "identical"


@pytest.mark.parametrize("family", ["olmo2", "gpt2", "cohere2", "gemma2"])
def test_another_stream_in_other_families(family: str) -> None:
    """A layer of which nothing is added to the stream that comes in."""

    def change(model: Any) -> None:
        layer = layers(model)[1]
        plain = layer.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = plain(x, *args, **kwargs)
            return (out[0] - x, *out[1:]) if isinstance(out, tuple) else out - x

        layer.forward = forward

    with torch.no_grad():
        _, report = found(change, family=family)
    assert report.verdict == "different"
    assert all(c.parameter in ("residual.stream", "weight") for c in report.causes)  # a wrong name would be worse
