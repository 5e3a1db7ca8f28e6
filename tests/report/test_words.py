import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from twinlens.parity.result import Cause
from twinlens.report import words

SCALE = Cause(
    site="blocks.0.attn.hook_attn_scores",
    seen_at="blocks.0.attn.hook_z",
    parameter="attn.scale",
    reference=16.0,
    candidate=14.966629547,
    interval=(14.966629, 14.96663),
    layers=[0, 1],
    status="proved",
    evidence="= sqrt(224); error 9 times the step's own rounding",
)


@given(st.sets(st.integers(0, 99)))
def test_ranges_read_back(layers: set[int]) -> None:
    ends = [part.split("-") for part in words.ranges(layers).split(", ") if part]
    assert layers == {n for e in ends for n in range(int(e[0]), int(e[-1]) + 1)}


def test_layers_are_all_only_where_they_are() -> None:
    assert words.layers([0, 1, 2, 3], 4) == "all layers"
    assert words.layers([0, 1, 2, 3], 26) == "0-3"
    assert words.layers([0, 1, 3], 4) == "0-1, 3"
    assert words.layers([], 4) == "–"


def test_a_change_is_said_with_its_closed_form() -> None:
    assert words.change(SCALE) == "16 → 14.9666 = sqrt(224)"
    assert words.precision(SCALE) == "± 3e-08 of it"
    off = dataclasses.replace(SCALE, parameter="attn.softcap", candidate=None, evidence="")
    assert words.change(off) == "16 → off"
    name = "model.layers.0.mlp.down_proj.weight"
    weight = dataclasses.replace(SCALE, parameter="weight", reference=name, candidate=name)
    assert words.change(weight) == name
    bias = dataclasses.replace(SCALE, parameter="bias", reference="b", candidate=None, evidence="")
    assert words.change(bias) == "b → absent"


def test_a_closed_form_that_only_repeats_the_digits_is_left_out() -> None:
    plain = dataclasses.replace(SCALE, candidate=8.0, evidence="= 8; error 9")
    assert words.change(plain) == "16 → 8"
    power = dataclasses.replace(SCALE, candidate=1e4, evidence="= 1e4; error 9")
    assert words.change(power) == "16 → 10000"


def test_lines_of_many_layers_are_one() -> None:
    lines = [f"blocks.{n}.attn.scale = 16.0.0" for n in range(3)] + ["cfg.cap = 8"]
    assert words.by_layer(lines) == [
        ("blocks.L.attn.scale = 16.0.0", [0, 1, 2]),
        ("cfg.cap = 8", []),
    ]
