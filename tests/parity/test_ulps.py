"""A constant that is off by a rounding of itself is an order of evaluation; by ten of them it is a fault."""

from __future__ import annotations

import dataclasses

import pytest

import twinlens
from twinlens.museum.tiny import ALL, random_tokens
from twinlens.spec import Spec


def off(spec: Spec, op: str, field: str, by: float) -> Spec:
    """The spec with a field of every such step off by a part of its value."""
    sites = [s.writes for s in spec.steps if type(s.op).__name__ == op]
    value = getattr(dataclasses.replace(spec.at[sites[0]].op), field)
    return spec.set_fields(sites, field, value * (1 + by))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "llama"])
@pytest.mark.parametrize(
    ("op", "field"), [("Scores", "scale"), ("Scores", "softcap"), ("NormWeight", "offset"), ("Embed", "factor")]
)
def test_an_ulp_is_no_cause(family: str, op: str, field: str) -> None:
    model = ALL[family](300)
    native = twinlens.load(model)
    if not any(getattr(s.op, field, None) for s in native.spec.steps if type(s.op).__name__ == op):
        return
    tokens = random_tokens(model, 2, 40, 300)
    for by, verdicts in ((1e-7, {"identical", "rounding"}), (2e-6, {"different"})):
        report = twinlens.compare(native, twinlens.Model(off(native.spec, op, field, by), native.weight), tokens=tokens)
        assert report.verdict in verdicts, (by, report.causes)
        assert report.unexplained == []
        assert len({c.parameter for c in report.causes}) == (report.verdict == "different")
