"""Some exhibits, run at the levels of visibility; `make museum` runs all."""

from __future__ import annotations

import dataclasses

import pytest

from twinlens.museum import named
from twinlens.museum.exhibit import Want
from twinlens.museum.visit import compared, misses

FROM_AFAR = [
    "silu-gelu-confusion",
    "gemma2-scale-14-97-vs-16",
    "gemma2-local-global-swapped",
    "causal-mask-missing",
    "kv-heads-tiled-for-repeated",
    "square-projection-transposed",
]


@pytest.mark.sliced
@pytest.mark.parametrize("level", ["logits", "logprobs"])
@pytest.mark.parametrize("name", FROM_AFAR)
def test_what_all_layers_have_is_named_from_logits(name: str, level: str) -> None:
    assert misses(named(name), compared(named(name), level)[1]) == []


IN_ALL_LAYERS = [
    "qwen2-qkv-bias-dropped",
    "gemma3-qk-norm-missing",
    "neox-parallel-as-sequential",
    "neox-two-norms-shared",
    "olmo2-run-as-pre-norm",
    "layer-that-does-not-rotate",
    "partial-rotary-full-width",
    "gemma3-local-global-base-swapped",
    "layer-weights-swapped",
    "glm-half-for-interleaved",
    "gguf-qk-permutation-left-in",
    "gemma4-consecutive-global-layers",
    "untied-head-replaced-by-embedding",
]

FROM_THE_STREAM = [
    "softcap-applied-after-mask",
    "gpt-oss-value-bias-folded-with-sinks",
    "gpt-oss-expert-bias-dropped",
    "experts-permuted-without-router",
    "o-proj-columns-in-other-head-order",
    "internlm3-positions-doubled",
    "qwen3-qknorm-missing",
    "olmo2-qknorm-per-head",
    "low-rank-kv-bias-dropped",
    "final-norm-folded-into-tied-embedding",
    "gemma3-local-base-used-everywhere",
    "gemma3-scaling-applied-to-local-layers",
]


@pytest.mark.sliced
@pytest.mark.parametrize(
    ("name", "level"),
    [*((name, "logits") for name in IN_ALL_LAYERS), *((name, "residual") for name in FROM_THE_STREAM)],
)
def test_what_is_hidden_between_sites_is_named(name: str, level: str) -> None:
    assert misses(named(name), compared(named(name), level)[1]) == []


IN_16_BITS = [
    "gpt-oss-gate-up-halves-for-interleaved",
    "nemotron-layernorm1p-dropped",
    "marinfold-transformers5-rope-block-ignored",
    "centred-unembedding",
]


@pytest.mark.parametrize("name", IN_16_BITS)
def test_what_16_bits_hide_is_no_more_than_what_they_round(name: str) -> None:
    assert misses(named(name), compared(named(name), dtype="bfloat16")[1]) == []


@pytest.mark.parametrize("level", ["logits", "logprobs"])
def test_a_constant_per_token_accuses_nobody(level: str) -> None:
    exhibit = named("centred-unembedding")
    report = compared(exhibit, level)[1]
    assert misses(exhibit, report) == []
    assert bool(report.gauges) == (level == "logits")  # of log-probabilities nothing is to be seen


def test_biases_folded_in_another_way_accuse_nobody() -> None:
    """Seen from the tokens' own log-probabilities alone, of which each position has one."""
    exhibit = named("value-bias-folded-no-sinks")
    report = compared(exhibit, "logprobs")[1]
    assert misses(exhibit, report) == []
    assert report.verdict == "rounding"


def test_what_is_wanted_is_missed_where_it_is_not_said() -> None:
    """The judge of exhibits can say no."""
    exhibit = named("gemma2-final-softcap-dropped")
    report = compared(exhibit, "logits")[1]
    assert misses(exhibit, report) == []
    for want in (
        Want("unembed.scale", 10.0, None, ()),
        Want("unembed.softcap", 10.0, 30.0, ()),
        Want("unembed.softcap", 10.0, None, (1,)),
    ):
        assert misses(dataclasses.replace(exhibit, causes=(want,)), report) != []
    assert misses(dataclasses.replace(exhibit, causes=()), report) != []
