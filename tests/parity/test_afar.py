"""What one mistake in the code changes: alike in all like steps, in one place of each layer, in layers of two kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import twinlens
from twinlens.museum.tiny import ALL, tiny_gemma2, tiny_gpt2, tiny_llama
from twinlens.parity.afar import levelled, together, unread, without
from twinlens.parity.changes import Leave, SetField
from twinlens.parity.hypotheses import as_beside
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
