"""What one mistake in the code changes: alike in all like steps, in one place of each layer, in layers of two kinds."""

from __future__ import annotations

import twinlens
from twinlens.museum.tiny import tiny_gemma2, tiny_gpt2, tiny_llama
from twinlens.parity.afar import levelled, together, unread
from twinlens.parity.changes import Leave, SetField
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


def test_what_is_left_out_is_left_out_in_every_layer() -> None:
    spec = twinlens.load(tiny_llama()).spec
    one = [Leave((f"blocks.{i}.ln1.hook_normalized", f"blocks.{i}.ln1.hook_out")) for i in range(3)]
    assert list(together(one, spec)) == [tuple(one)]


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
