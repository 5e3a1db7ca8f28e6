"""What holds for every operation, present and future."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cases import MAKE, OURS, cases
from tests.ops.drawn import Case, each
from twinlens.fields import from_smooth, kind_of, kinds, to_smooth
from twinlens.ops import REGISTRY, Op

# torch.func.jvp compiles its own formulas with torch.jit.script at first use
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    # the checker of types looks at a random entry of a tuple
    pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies"),
]
every_op = pytest.mark.parametrize("name", OURS)
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
C = 8.0  # of the rounding scale; the worst of 60 draws of every combination was 6.2


def test_every_operation_has_a_case() -> None:
    assert set(MAKE) == set(OURS)


# ---------------------------------------------------------------------------------- derivatives


def derivative(case: Case, op: Op, name: str) -> tuple[Tensor, Tensor]:
    """By jvp, and by central differences with Richardson's correction, in float64."""

    def at(value: Tensor) -> Tensor:
        return case(op.replace(**{name: value}))

    now = torch.tensor(float(vars(op)[name]), dtype=torch.float64)
    _, slope = torch.func.jvp(at, (now,), (torch.ones_like(now),))
    h = 1e-3 * now
    wide, narrow = ((at(now + s) - at(now - s)) / (2 * s) for s in (h, h / 2))
    return slope, (4 * narrow - wide) / 3


def assert_derivatives(case: Case, op: Op) -> None:
    op = op.exact()
    for name, kind, _ in kinds(op):
        if kind.name == "number":
            slope, difference = derivative(case, op, name)
            seen = difference[difference.abs() < 1e300]
            scale = seen.abs().max() if len(seen) else torch.tensor(1.0)
            error = (slope - difference).abs().nan_to_num(0.0).max()
            assert error <= 1e-6 * scale + 1e-12, f"{op} {name}: {error} of {scale}"


@every_op
@few
@given(data=st.data())
def test_derivatives(name: str, data: st.DataObject) -> None:
    case = data.draw(cases(name)).to(torch.float64)
    for op in each(case.op, "choice"):
        assert_derivatives(case, op)


NUMBERS = sorted(
    (op, f.name) for op in OURS for f in dataclasses.fields(REGISTRY[op]) if f.metadata["kind"].name == "number"
)


@pytest.mark.parametrize(("op_name", "field"), NUMBERS)
def test_a_kernel_without_a_derivative_is_caught(op_name: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = REGISTRY[op_name].__call__

    def deaf(self: Op, *reads: Tensor, **weights: Tensor) -> Tensor:
        return call(self.replace(**{field: _deaf(vars(self)[field])}), *reads, **weights)

    case = _example(op_name)
    monkeypatch.setattr(REGISTRY[op_name], "__call__", deaf)
    with pytest.raises(AssertionError):
        _all_derivatives(case)


def _all_derivatives(case: Case) -> None:
    for op in each(case.op, "choice"):
        assert_derivatives(case, op)


def _deaf(value: object) -> object:
    """The value without its tangent, as a kernel that takes a Python float sees it."""
    if not isinstance(value, Tensor):
        return value
    with torch.no_grad():
        return torch.autograd.forward_ad.unpack_dual(value).primal.detach().clone()


def _example(name: str) -> Case:
    from hypothesis import find

    return find(cases(name), lambda _: True, settings=settings(database=None)).to(torch.float64)


@pytest.mark.parametrize(("op_name", "field"), NUMBERS)
@pytest.mark.parametrize("value", [0.3, 16.0])
def test_a_smooth_coordinate_and_back(op_name: str, field: str, value: float) -> None:
    kind = kind_of(REGISTRY[op_name], field)
    assert from_smooth(kind, to_smooth(kind, value)) == pytest.approx(value, rel=1e-14)


# --------------------------------------------------------------------------------------- orders


def assert_rounding(case: Case, op: Op, dtype: torch.dtype) -> None:
    """The operation in a dtype is within C units of rounding of its exact form."""
    low = case.to(dtype)
    high = low.to(torch.float64)
    exact = high(op.exact())
    scale = Case(op, high.reads, high.weights).magnitude()
    ratio = _error(low(op), exact) / (UNIT[dtype] * scale + 1e-37)
    assert ratio.max() <= C, f"{op} in {dtype}: {ratio.max()}"


def _error(found: Tensor, exact: Tensor) -> Tensor:
    """The difference; the smallest number of any dtype, where a query may not look, is the same."""
    closed = exact < -1e30
    assert torch.equal(found < -1e30, closed)
    return (found.double() - exact).abs().masked_fill(closed, 0.0)


@every_op
@pytest.mark.parametrize("dtype", UNIT, ids=str)
@few
@given(data=st.data())
def test_every_order_is_the_plain_formula_to_rounding(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(cases(name))
    case = Case(_rounded(case.op, dtype), case.reads, case.weights)
    for op in each(case.op, "order", "choice"):
        assert_rounding(case, op, dtype)


def _rounded(op: Op, dtype: torch.dtype) -> Op:
    """Numbers that a dtype holds, so that only the computation rounds."""
    return op.replace(
        **{name: float(torch.tensor(value).bfloat16()) for name, kind, value in kinds(op) if kind.name == "number"}
    )


@pytest.mark.parametrize(("op_name", "field"), NUMBERS)
def test_a_wrong_number_is_no_rounding(op_name: str, field: str) -> None:
    found = False
    case = _example(op_name)
    for op in each(case.op, "choice"):
        wrong = op.replace(**{field: vars(op)[field] * 1.1})
        different = case(wrong.exact()).nan_to_num() - case(op.exact()).nan_to_num()
        scale = Case(op, case.reads, case.weights).magnitude()
        found |= bool((different.abs() / scale > C * UNIT[torch.float32]).any())
    assert found


def slices(case: Case, p: int) -> Case:
    """Row p of everything of which the operation says that it needs no other."""

    def row(axes: str, t: Tensor) -> Tensor:
        at = axes.split().index("p")
        return t.narrow(at, p, 1)

    reads = tuple(
        (axes, row(axes, t) if by_row else t) for (axes, t), by_row in zip(case.reads, _by_row(case), strict=True)
    )
    return Case(case.op, reads, case.weights)


def _by_row(case: Case) -> tuple[bool, ...]:
    return case.op.rows_alone()[: len(case.reads)]


@every_op
@few
@given(data=st.data())
def test_a_row_needs_what_by_row_says(name: str, data: st.DataObject) -> None:
    case = data.draw(cases(name)).to(torch.float64)
    for op in each(case.op, "choice"):
        if not any(op.rows_alone()):
            continue  # it needs all rows of all that it reads
        whole, rounding = case(op), C * 2**-53 * Case(op, case.reads, case.weights).magnitude() + 1e-300
        axis = 2 if name in ("Scores", "Softmax") else 1
        for p in (0, 3, 4):
            alone = slices(case, p)(op)
            assert (_error(alone, whole.narrow(axis, p, 1)) <= rounding.narrow(axis, p, 1)).all()


IN_PARTS = [name for name in OURS if REGISTRY[name].parts is not Op.parts]


@pytest.mark.parametrize("name", IN_PARTS)
@few
@given(data=st.data(), entries=st.integers(1, 200))
def test_parts_are_the_whole(name: str, data: st.DataObject, entries: int) -> None:
    case = data.draw(cases(name)).to(torch.float64)
    op, magnitude = case.op.exact(), case.magnitude()
    parts = list(op.parts(entries, *[tensor for _, tensor in case.reads], **case.weights))
    for what, whole in (("__call__", case(op)), ("magnitude", magnitude)):
        joined = torch.cat([getattr(one, what)(*reads, **weights) for one, reads, weights in parts], dim=2)
        assert joined.shape == whole.shape
        assert (_error(joined, whole) <= C * 2**-53 * magnitude + 1e-300).all()
    table = case.weights["W"]
    block = table[: len(table) // max(getattr(op, "heads", 0), 1)] if getattr(op, "heads", 0) else table[:1]
    largest = max(weights["W"].numel() for _, _, weights in parts)
    assert largest <= (table.numel() if name == "Embed" else max(entries, block.numel()))


_OTHERWISE = ("ChosenLogProb", "RouterLogits", "Select", "TopLogProbs", "Unembed")
"""What their dtype says is what they store; a choice is whole numbers."""


@every_op
@few
@given(data=st.data())
def test_dtypes_come_out_as_they_go_in(name: str, data: st.DataObject) -> None:
    case = data.draw(cases(name)).to(torch.bfloat16)
    if name in ("RotaryTable",):
        case = Case(case.op.replace(out=torch.bfloat16), case.reads)
    for op in each(case.op, "dtype"):
        if getattr(op, "out", None) in (None, torch.bfloat16) and name not in _OTHERWISE:
            assert case(op).dtype == torch.bfloat16
    if case.op.removable:
        assert case().shape == case.reads[0][1].shape
