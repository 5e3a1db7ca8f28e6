"""What one mistake in the code changes: alike in all like steps, in one place of each layer, in layers of two kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import twinlens
from twinlens.inputs import given
from twinlens.museum import named
from twinlens.museum.tiny import ALL, random_tokens, tiny, tiny_gemma2, tiny_gpt2, tiny_llama
from twinlens.museum.visit import compared, misses
from twinlens.parity.changes import Feed, Leave, SetField, Variant, twins
from twinlens.parity.fit import in_one_part
from twinlens.parity.hypotheses import as_beside
from twinlens.parity.merged import merge
from twinlens.parity.meter import Meter
from twinlens.parity.mistakes import levelled, together, unread, without
from twinlens.parity.score import Scorer
from twinlens.sites import split
from twinlens.spec import Spec


def norms(spec: Spec) -> list[SetField]:
    sites = [s for s in spec.sites if s.endswith("hook_normalized")]
    return [SetField((site,), "kind", "layer") for site in sites]


def test_everywhere_comes_first_and_then_each_place() -> None:
    spec = twinlens.load(tiny_llama()).spec
    everywhere, *places = together(norms(spec), spec)
    assert {c.site for c in everywhere} == {c.site for c in norms(spec)}
    assert [{c.site for c in place} for place in places] == [
        {f"blocks.{i}.ln1.hook_normalized" for i in range(3)},
        {f"blocks.{i}.ln2.hook_normalized" for i in range(3)},
        {"ln_final.hook_normalized"},
    ]


def test_what_is_left_out_is_left_out_in_every_layer_or_in_one() -> None:
    spec = twinlens.load(tiny_llama()).spec
    one = [Leave((f"blocks.{i}.ln1.hook_normalized", f"blocks.{i}.ln1.hook_out")) for i in range(3)]
    assert list(together(one, spec)) == [tuple(one), *((change,) for change in one)]


def test_layers_of_two_kinds_may_be_taken_for_each_other() -> None:
    spec = twinlens.load(tiny_gemma2()).spec
    scores = [f"blocks.{i}.attn.hook_attn_scores" for i in range(4)]
    windows = [SetField((s,), "window", None if spec.at[s].op.window else 8) for s in scores]  # type: ignore[attr-defined]
    mistakes = list(together(windows, spec))
    assert [len(m) for m in mistakes] == [2, 2, 4]
    assert {c.site for c in mistakes[-1]} == set(scores)


def test_like_steps_may_have_one_value_everywhere() -> None:
    spec = twinlens.load(tiny_gpt2(scale_attn_by_inverse_layer_idx=True)).spec
    values = {c.value for mistake in levelled(spec.steps) for c in mistake if c.name == "scale"}  # type: ignore[union-attr]
    first = 12**0.5
    assert {round(v / first) for v in values} == {1, 2, 3}
    assert list(levelled(twinlens.load(tiny_llama()).spec.steps)) == []


def test_a_number_that_nobody_reads_is_its_default() -> None:
    spec = twinlens.load(tiny_gemma2()).spec
    assert SetField(("hook_embed",), "factor", 1.0) in list(unread(spec.steps))


def test_two_like_parts_may_both_be_missing() -> None:
    spec = twinlens.load(tiny_llama()).spec
    gone = [Leave((f"blocks.{i}.{ln}.hook_normalized",)) for i in range(3) for ln in ("ln1", "ln2")]
    [both] = without(gone, spec)
    assert set(both) == set(gone)
    assert list(without(gone[::2], spec)) == []


def test_a_table_may_be_as_the_one_beside_it_is() -> None:
    spec = twinlens.load(ALL["gemma3_text"]()).spec
    tables: dict[str, Any] = {name: spec.at[f"{name}.hook_cos"].op for name in ("rotary", "rotary.local")}
    found = list(as_beside(SimpleNamespace(steps=spec.steps), spec))  # type: ignore[arg-type]
    made = [{(c.site, c.name, c.value) for c in change} for change in found]
    here, there = ("rotary.hook_cos", "base"), ("rotary.local.hook_cos", "base")
    assert {(*here, tables["rotary.local"].base)} in made
    assert {(*there, tables["rotary"].base)} in made
    assert {(*here, tables["rotary.local"].base), (*there, tables["rotary"].base)} in made
    assert all(set(c.sites) <= {f"{c.site[:-3]}cos", f"{c.site[:-3]}sin"} for change in found for c in change)


@pytest.mark.parametrize("name", ["silu-gelu-confusion", "causal-mask-missing", "gemma2-window-dropped"])
def test_a_mistake_is_found_for_some_forwards(name: str) -> None:
    """The first positions tell one from another; and where they show nothing of it, all of them do."""
    _, report = compared(named(name), "logits")
    assert misses(named(name), report) == []
    assert report.diagnosis_cost <= 80


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_gemma2])
def test_the_first_positions_look_at_no_later_ones(build: Callable[[], Any]) -> None:
    model: Any = twinlens.load(build())
    tokens = random_tokens(build(), 2, 40)
    sites = {**given(tokens), "logits": model(tokens)}
    (whole,) = merge(model.spec, sites, model.weight, Meter(1.0))
    head, variant = whole.head(10), Variant((fed(tokens),))
    assert head.value.shape[1] == 10
    assert Scorer(head, model.spec).base.ratio.is_close
    assert not Scorer(head, model.spec).score(variant).ratio.is_close
    assert torch.allclose(head.stepwise(variant), whole.stepwise(variant)[:, :10], rtol=0, atol=1e-3)


def test_calls_with_a_cache_are_looked_at_in_part_as_well() -> None:
    reference: Any = tiny_llama()
    candidate = copy.deepcopy(reference)
    for layer in candidate.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    tokens = random_tokens(reference, 1, 60)
    report = twinlens.compare(reference, candidate, tokens=tokens, calls=[20, 40], sites="logits")
    assert [(c.parameter, c.candidate, c.layers) for c in report.causes] == [("mlp.act", "gelu", [0, 1, 2])]


def fed(tokens: Tensor) -> Feed:
    """Other ids, of all positions."""
    return Feed("hook_embed", "tokens", (tokens + 1) % 90, "other")


def test_a_field_is_tied_to_those_that_mean_the_same() -> None:
    """A rotation has a layout, and so has a fused product."""
    spec = twinlens.load(tiny("glm4")).spec
    rotated = ("blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k")
    assert twins(spec.steps, rotated[0], "layout") == rotated
    other = Variant((SetField(rotated, "layout", "half"),)).tied_to(spec.steps)
    assert [c.sites for c in other.changes if isinstance(c, SetField)] == [rotated]


def test_a_small_fault_of_one_layer_is_looked_for_on_all_positions() -> None:
    """Two ways to compute gelu differ by less than the first positions tell."""
    reference: Any = tiny_gpt2()
    candidate = copy.deepcopy(reference)
    candidate.transformer.h[2].mlp.act = torch.nn.GELU()
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40), sites="logits")
    assert [(c.parameter, c.candidate, c.layers) for c in report.causes] == [("mlp.act", "gelu", [2])]


def test_a_number_of_one_part_of_every_layer_is_one() -> None:
    found = in_one_part(twinlens.load(ALL["qwen3"]()).spec.steps)
    parts = {split(n.site)[1].partition(".")[0]: len(n.sites) for n in found if n.name == "eps"}
    assert parts == {"ln1": 3, "ln2": 3, "attn": 6}


@pytest.mark.sliced
@pytest.mark.parametrize("level", ["logits", "logprobs"])
def test_the_epsilon_of_queries_and_keys_is_named_from_afar(level: str) -> None:
    exhibit = named("mistral3-projector-eps-not-passed")
    assert misses(exhibit, compared(exhibit, level)[1]) == []
