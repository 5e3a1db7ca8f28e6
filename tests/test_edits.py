"""Edits and specs as data: they apply, invert, print and parse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens import ComparisonError, Input, Insert, Remove, Rewire, Set, SpecError, declare
from twinlens.difference import diff
from twinlens.edits import Edit, apply, parse, parse_edits
from twinlens.fields import Kind, kinds
from twinlens.museum.tiny import FAMILIES
from twinlens.ops import Normalize
from twinlens.spec import Spec, Step, Weight
from twinlens.text import format_spec, format_value, parse_spec, parse_value

# the checker of annotations picks at random which entry of a tuple it looks at
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
SPECS = {name: declare(build().config.to_dict()) for name, build in FAMILIES.items()}
every_family = pytest.mark.parametrize("family", FAMILIES)
some = settings(max_examples=20, deadline=None, database=None)
numbers = st.floats(allow_nan=False) | st.integers(-(10**30), 10**30)
names = st.text(min_size=1, max_size=12).filter(lambda s: "*" not in s and s.isprintable())


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Whatever a field of this kind may have."""
    choices: dict[str, st.SearchStrategy[Any]] = {
        "number": numbers,
        "integer": st.integers(-(2**63), 2**63),
        "choice": st.sampled_from(kind.alternatives or (None,)),
        "order": st.sampled_from(kind.alternatives or (None,)),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float64, None]),
        "size": st.integers(0, 99),
    }
    return choices[kind.name] | st.none() if kind.off else choices[kind.name]


@st.composite
def edits(draw: Any, the: Callable[[], Spec]) -> Edit:
    """One edit that fits a spec, which is handed over so that nobody prints it."""
    spec = the()
    site = draw(st.sampled_from(spec.sites))
    step = spec.at[site]
    layered = site.split(".", 2)
    if layered[0] == "blocks" and draw(st.booleans()):
        every = f"blocks.*.{layered[2]}"
    else:
        every = site
    kind = draw(st.sampled_from(["set", "weight", "remove", "rewire", "insert", "input"]))
    if kind == "set":
        name, about, _ = draw(st.sampled_from(list(kinds(step.op))))
        if about.name != "size":
            return Set(every, name, draw(values(about)))
    if kind == "weight" and step.weights:
        weight = Weight(draw(names), draw(st.booleans()))
        return Set(every, step.weights[0][0], draw(st.sampled_from([None, weight])))
    if kind == "remove" and site != spec.sites[0]:
        return Remove(every)
    if kind == "rewire":
        return Rewire(every, tuple(draw(st.lists(st.sampled_from(spec.sites), min_size=1))))
    if kind == "insert":
        new = Step(site + draw(st.sampled_from("xyz")), step.op, step.reads, step.weights)
        return Insert(new, **{draw(st.sampled_from(["before", "after"])): site})
    return Input("positions", draw(st.sampled_from(["positions + 1", "cumsum(mask) - 1", "slots"])))


@st.composite
def edited(draw: Any, family: str) -> Spec:
    """A family's spec after some edits; those that do not fit any more are left out."""
    spec = SPECS[family]
    for _ in range(draw(st.integers(0, 4))):
        edit = draw(edits(lambda spec=spec: spec))
        try:
            spec = edit.apply(spec)
        except SpecError:
            continue
    return spec


@every_family
@some
@given(data=st.data())
def test_a_difference_is_what_leads_there(family: str, data: st.DataObject) -> None:
    a, b = (data.draw(edited(family)) for _ in "ab")
    found = a.diff(b)
    assert apply(a, found) == b
    assert b.edit(*b.diff(a)) == a
    assert diff(a, a) == []
    assert [parse(str(edit)) for edit in found] == found


@every_family
@some
@given(data=st.data())
def test_a_spec_prints_and_parses(family: str, data: st.DataObject) -> None:
    spec = data.draw(edited(family))
    assert parse_spec(format_spec(spec)) == spec
    assert parse_spec(str(spec)) == spec


@some
@given(st.data())
def test_an_edit_prints_and_parses(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(SPECS)))
    edit = data.draw(edits(lambda: SPECS[family]))
    assert parse(str(edit)) == edit


@some
@given(numbers | st.text() | st.booleans() | st.none() | st.sampled_from([torch.float16]))
def test_a_value_prints_and_parses(value: object) -> None:
    if isinstance(value, str) and not value.isprintable():
        value = value.encode("ascii", "ignore").decode()
    back = parse_value(format_value(value))
    assert back == value
    assert type(back) is type(value)


def test_equal_edits_over_layers_are_one_line() -> None:
    spec = SPECS["gemma2"]
    lines = [
        "set blocks.*.attn.hook_attn_scores scale 4.898979485566356 -> 14.966629547095765",
        "set blocks.{0,2}.attn.hook_attn_scores window 8 -> None",
        'set blocks.3.attn.hook_z kernel "plain" -> "sdpa"',
        "input positions = positions + 1",
    ]
    assert list(map(str, spec.diff(spec.edit(*map(parse, lines))))) == lines


def test_a_row_of_every_layer_goes_and_comes_as_one() -> None:
    spec = SPECS["gemma2"]
    without = spec.edit(Remove("blocks.*.ln1_post.hook_out"), Remove("blocks.*.ln1_post.hook_normalized"))
    assert without.at["blocks.2.hook_attn_out"].reads == ("blocks.2.attn.hook_out",)
    assert len(spec.diff(without)) == 2
    [*back] = without.diff(spec)
    assert [type(edit) for edit in back] == [Insert, Insert, Rewire]
    assert "*" in str(back[0])


def test_a_star_is_the_layer_everywhere() -> None:
    norm = Step("blocks.*.attn.q_norm.hook_normalized", Normalize(1e-6), ("blocks.*.attn.hook_q",))
    spec = SPECS["llama"].edit(
        Insert(norm, after="blocks.{0,2}.attn.hook_v"),
        Set("blocks.*.attn.hook_q", "W", Weight("other.*.weight")),
    )
    assert spec.at["blocks.2.attn.q_norm.hook_normalized"].reads == ("blocks.2.attn.hook_q",)
    assert "blocks.1.attn.q_norm.hook_normalized" not in spec.at
    assert dict(spec.at["blocks.1.attn.hook_q"].weights)["W"].name == "other.1.weight"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("set blocks.*.attn.hook_attn_scores scael 1.0 -> 2.0", "no field 'scael'; it has scale"),
        ("set blocks.*.attn.hook_attn_scores scale 1.0 -> 2.0", "expects 1.0"),
        ("set blocks.9.attn.hook_z product -> 'split'", r"no blocks\.9"),
        ("set blocks.{0,9}.attn.hook_z product -> 'split'", r"no blocks\.9"),
        ("set hook_embed factor -> 'a'", "takes a number"),
        ("set blocks.*.attn.hook_z product -> 'other'", 'takes "matmul"'),
        ("set hook_embed factor -> print(1)", "no literal"),
        ("set hook_embed factor 2.0", "no edit"),
        ("remove nothing", "fits no site"),
        ("rewire hook_embed ->", "no edit"),
        ("insert after hook_embed: x = Foo(a=1)(tokens)", "no operation 'Foo'"),
        ("insert after hook_embed: x = Add(a=1)(tokens)", "Add has no field 'a'"),
        ("insert after hook_embed: x = Normalize()(tokens)", "lacks eps"),
        ("insert after hook_embed: logits = Add()(tokens)", "there already"),
        ("input tokens = __import__('os')", "no change of an input"),
        ("input logits = 1", "no input"),
        ("improve everything", "no edit"),
    ],
)
def test_an_edit_that_does_not_fit(line: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SPECS["llama"].edit(parse(line))


@pytest.mark.parametrize("text", ["", "spec()", "hook_embed = Add()(tokens)", "spec(family='x')"])
def test_a_text_that_is_no_spec(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


def test_comments_and_empty_lines() -> None:
    assert parse_edits("# why\n\nremove a.b\n") == [Remove("a.b")]


def test_other_geometry_is_no_edit() -> None:
    with pytest.raises(ComparisonError, match=r"shape|family"):
        diff(SPECS["llama"], SPECS["gpt2"])
