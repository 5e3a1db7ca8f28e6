"""How a layer is put together: named by what it computes, proved by injection, and of no layer that is as declared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3

import twinlens
from twinlens.museum import named
from twinlens.museum.hands import layers, method
from twinlens.museum.tiny import ALL, random_tokens, tiny
from twinlens.museum.visit import compared, misses
from twinlens.parity import structure
from twinlens.parity.changes import Variant
from twinlens.parity.rebuilt import Otherwise, Rebuilt
from twinlens.spec import Spec, Step, evaluate

AT_ONCE = (
    "falcon-parallel-as-sequential",
    "neox-two-norms-shared",
    "smollm3-rope-on-nope-layers",
    "qwen3moe-dense-layers-ignored",
    "shared-expert-input-overwritten",
    "qknorm-after-rotary-unit-weight",
)
"""The last keeps the function: where a norm's weight is constant, it may as well stand behind the rotation."""
IN_A_WHILE = (
    "neox-parallel-as-sequential",
    "cohere-parallel-as-sequential",
    "llama-in-parallel",
    "falcon-two-norms-where-one-is-shared",
    "olmo2-run-as-pre-norm",
    "llama4-rope-after-qknorm",
    "smollm3-nope-flag-read-inverted",
    "cohere2-rope-on-global-layers",
    "deepseek-first-dense-layer-as-moe",
)


@pytest.mark.parametrize("name", AT_ONCE)
def test_structure_is_named(name: str) -> None:
    exhibit = named(name)
    assert misses(exhibit, compared(exhibit)[1]) == []


@pytest.mark.sliced
@pytest.mark.parametrize("name", IN_A_WHILE)
def test_structure_is_named_in_other_families(name: str) -> None:
    test_structure_is_named(name)


def ways(spec: Spec, word: str) -> Iterator[Otherwise]:
    """Those of every layer that have this word, the first of each layer."""
    for layer in range(spec.shape.layers):
        yield from [o for o in structure.otherwise(spec, layer, {}) if o.word == word][:1]


def built(spec: Spec, word: str) -> tuple[Step, ...]:
    """All steps of a model with that otherwise in all layers."""
    changes = [Rebuilt("logits", o.rows, o.word, o.enters, o.was, o.value) for o in ways(spec, word)]
    return Variant(tuple(changes)).steps(spec.steps)


def test_a_parallel_model_in_sequence_is_what_transformers_makes_of_it() -> None:
    module = ALL["gpt_neox"]()
    tokens = random_tokens(module, 2, 12, seed=1)
    native = twinlens.load(module)
    steps = built(native.spec, "block.parallel")
    for block in layers(module):
        block.use_parallel_residual = False
    sites = {"tokens": tokens, "positions": torch.arange(12).expand(2, 12), "mask": torch.ones_like(tokens)}
    made = evaluate(steps, sites | {"slots": torch.arange(12)}, native.weight)
    torch.testing.assert_close(made["logits"], module(tokens).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_a_layer_like_all_others_has_no_other_layers_rows(family: str) -> None:
    spec = twinlens.load(ALL[family]()).spec
    assert not list(structure.as_in_other_layers(spec, 1))
    assert not list(structure.in_sequence(structure.rows_of(spec, 1), 1))


def test_new_rows_stand_before_what_reads_them() -> None:
    spec = twinlens.load(ALL["cohere2"]()).spec
    known = {"tokens", "positions", "mask", "slots"}
    for step in built(spec, "block.parallel"):
        assert known.issuperset(step.reads), step.writes
        known.add(step.writes)


def test_one_layer_in_sequence_is_told_as_one_layer_and_mended() -> None:
    """The norm that both branches share is made once more, of the stream with attention added."""
    reference, candidate = ALL["cohere2"](), ALL["cohere2"]()

    def forward(self: Any, hidden_states: Any, **kwargs: Any) -> Any:
        h = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return h + self.mlp(self.input_layernorm(h))

    method(layers(candidate)[2], forward)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 24, seed=3))
    (cause,) = report.causes
    assert (cause.parameter, cause.reference, cause.candidate) == ("block.parallel", "parallel", "sequential")
    assert (cause.site, cause.layers, cause.status) == ("blocks.2.hook_resid_mid", [2], "proved")
    assert "the stream with the first one added" in cause.evidence
    assert report.explained in ("identical", "rounding")
    assert report.fix(candidate).verdict in ("identical", "rounding")


def test_a_change_of_structure_is_one_change_whatever_it_touches() -> None:
    spec = twinlens.load(ALL["gpt_neox"]()).spec
    (first, *_) = ways(spec, "block.parallel")
    change = Rebuilt("blocks.0.hook_resid_post", first.rows, first.word, first.enters, first.was, first.value)
    once = Variant((change,)).steps(spec.steps)
    assert Variant((change,)).steps(once) == once
    assert change.kind == replace(change, site="blocks.0.mlp.hook_pre").kind


def test_a_row_that_other_layers_have_is_told_as_present_and_one_that_they_lack_as_missing() -> None:
    spec = twinlens.load(ALL["smollm3"]()).spec
    (there,), (gone, *_) = (list(structure.as_in_other_layers(spec, layer)) for layer in (1, 0))
    assert (there.word, there.was, there.value) == ("rotary.layers", None, "present")
    assert (gone.word, gone.was, gone.value) == ("rotary.layers", "present", None)
    assert there.enters == "blocks.1.attn.hook_rot_q" and gone.enters == "blocks.0.attn.hook_rot_q"


def test_keys_alone_are_normed_after_their_rotation() -> None:
    reference: Any = tiny("qwen3")
    candidate = copy.deepcopy(reference)
    for layer in candidate.model.layers:
        own = layer.self_attn
        plain = own.k_norm.forward
        own.k_norm.forward = lambda x: x

        def forward(*args: Any, own: Any = own, plain: Any = plain, **more: Any) -> Any:
            rotate = modeling_qwen3.apply_rotary_pos_emb
            modeling_qwen3.apply_rotary_pos_emb = lambda q, k, *a: (rotate(q, k, *a)[0], plain(rotate(q, k, *a)[1]))
            try:
                return type(own).forward(own, *args, **more)
            finally:
                modeling_qwen3.apply_rotary_pos_emb = rotate

        own.forward = forward
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    (cause,) = report.causes
    assert (cause.parameter, cause.site) == ("norm.order", "blocks.0.attn.k_norm.hook_normalized")
    assert "hook_k is normed after its rotation" in cause.evidence


def test_the_norm_of_one_sublayer_stands_before_it_and_that_of_the_other_does_not() -> None:
    reference: Any = tiny("olmo2")
    candidate = copy.deepcopy(reference)
    layer = candidate.model.layers[2]

    def forward(x: torch.Tensor, **more: Any) -> torch.Tensor:
        x = x + layer.post_attention_layernorm(layer.self_attn(hidden_states=x, **more)[0])
        return x + layer.mlp(layer.post_feedforward_layernorm(x))

    layer.forward = forward
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    (cause,) = report.causes
    assert (cause.parameter, cause.layers, report.unexplained) == ("norm.order", [2], [])
    assert cause.site == "blocks.2.ln2_post.hook_normalized"
