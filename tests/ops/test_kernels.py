"""Fused kernels against the plain rows that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twinlens.ops import Mix, Normalize, NormWeight, Op, Scores, Softmax
from twinlens.spec import Step, Weight, evaluate, exact, units

few = settings(max_examples=8, deadline=None, database=None)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
C = 8.0
Sites = dict[str, Tensor]


def norm_rows(kind: str, offset: float, kernel: str) -> tuple[Step, ...]:
    weights = (("w", Weight("w")), ("b", Weight("b")))
    return (
        Step("n", Normalize(eps=1e-3, kind=kind), ("x",)),
        Step("y", NormWeight(offset=offset, kernel=kernel), ("n",), weights),
    )


def attention_rows(scores: Scores, kernel: str) -> tuple[Step, ...]:
    return (
        Step("s", scores, ("q", "k", "mask", "slots")),
        Step("a", Softmax(), ("s",)),
        Step("z", Mix(kv_map=scores.kv_map, kernel=kernel), ("a", "v")),
    )


def to(sites: Sites, dtype: torch.dtype) -> Sites:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in sites.items()}


def worst(steps: tuple[Step, ...], sites: Sites, dtype: torch.dtype, real: Tensor | None) -> float:
    """Of what the last step writes: the error of the kernel in units of the rows' rounding."""
    low = to(sites, dtype)
    high = to(low, torch.float64)
    unit = list(units(steps))[-1]
    assert len(unit.absorbed) == len(steps) - 1
    found = unit(low, low.__getitem__).double()
    rows = exact(steps)
    values = high | evaluate(rows, high, high.__getitem__)
    error = (found - values[steps[-1].writes]).abs() / (UNIT[dtype] * rounding(rows, values))
    return float(error.max() if real is None else error[real].max())


def rounding(rows: tuple[Step, ...], values: Sites) -> Tensor:
    """The rounding of all rows, carried to the last one."""
    carried = torch.zeros(())
    for step in rows:
        arguments = step.arguments(values.__getitem__)
        reads = [values[r] for r in step.reads]
        own = step.op.magnitude(*reads, **arguments)
        carried = own + _carry(step.op, carried, reads, arguments)
    return carried


def _carry(op: Op, size: Tensor, reads: list[Tensor], weights: Sites) -> Tensor | float:
    if isinstance(op, Softmax):
        pattern = op(reads[0])
        return pattern * (size + (pattern * size).sum(-1, keepdim=True))
    if isinstance(op, Mix):
        return op(size, reads[1].abs())
    if isinstance(op, NormWeight):
        return size * (weights["w"] + op.offset).abs()
    return 0.0


def norm_sites(seed: int) -> Sites:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 5, 24), "w": (24,), "b": (24,)}
    return {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}


def attention_sites(seed: int) -> Sites:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"q": (2, 9, 4, 6), "k": (2, 9, 2, 6), "v": (2, 9, 2, 6)}
    sites = {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    return sites | {"mask": mask, "slots": torch.arange(9)}


@every_dtype
@pytest.mark.parametrize("kind", ["rms", "layer"])
@few
@given(seed=st.integers(0, 2**32), offset=st.sampled_from([0.0, 1.0]))
def test_norm(dtype: torch.dtype, kind: str, seed: int, offset: float) -> None:
    steps, sites = norm_rows(kind, offset, "fused"), norm_sites(seed)
    assert worst(steps, sites, dtype, None) <= C


@every_dtype
@pytest.mark.parametrize("kv_map", ["repeat", "tile", "first"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("padded", [False, True])
@few
@given(seed=st.integers(0, 2**32), scale=st.floats(0.5, 8))
def test_sdpa(dtype: torch.dtype, kv_map: str, window: int | None, padded: bool, seed: int, scale: float) -> None:
    sites = attention_sites(seed)
    if not padded:
        sites["mask"] = torch.ones_like(sites["mask"])
    steps = attention_rows(Scores(scale, window=window, kv_map=kv_map), "sdpa")
    assert worst(steps, sites, dtype, sites["mask"].bool()) <= C


@every_dtype
def test_another_meaning_is_no_rounding(dtype: torch.dtype) -> None:
    sites = attention_sites(0)
    plain = evaluate(attention_rows(Scores(2.0), "plain"), sites, sites.__getitem__)["z"]
    real = sites["mask"].bool()
    for scores in (Scores(2.5), Scores(2.0, window=4), Scores(2.0, causal="none")):
        steps = attention_rows(scores, "sdpa")
        other = evaluate(steps, sites, sites.__getitem__)["z"]
        values = sites | evaluate(exact(steps), sites, sites.__getitem__)
        scale = UNIT[dtype] * rounding(exact(steps), values)
        assert ((other - plain).abs() / scale)[real].max() > C


def test_a_kernel_that_computes_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = torch.nn.functional.rms_norm
    monkeypatch.setattr(torch.nn.functional, "rms_norm", lambda x, s, w, eps: kernel(x, s, w, eps * 1.1))
    assert worst(norm_rows("rms", 0.0, "fused"), norm_sites(0), torch.float32, None) > C


def test_sdpa_has_no_cap_and_leaves_it_to_the_plain_rows() -> None:
    sites = attention_sites(0)
    capped = Scores(2.0, softcap=5.0)
    steps = attention_rows(capped, "sdpa")
    assert [u.step.writes for u in units(steps)] == ["s", "a", "z"]
    plain = evaluate(attention_rows(capped, "plain"), sites, sites.__getitem__)["z"]
    found, real = evaluate(steps, sites, sites.__getitem__)["z"], sites["mask"].bool()
    assert torch.equal(found[real], plain[real])


def test_sdpa_reads_all_keys_alike_where_a_query_may_see_none() -> None:
    sites = {site: x.float() if x.is_floating_point() else x for site, x in attention_sites(0).items()}
    strict = Scores(2.0, causal="strict")
    plain, found = (evaluate(attention_rows(strict, k), sites, sites.__getitem__)["z"] for k in ("plain", "sdpa"))
    real = sites["mask"].bool()
    assert torch.allclose(found[real], plain[real], atol=1e-5)


def test_a_norm_that_no_kernel_has_is_left_to_the_plain_rows() -> None:
    for how in ({"eps_place": "outside"}, {"variance": "unbiased"}):
        steps = norm_rows("layer", 0.0, "fused")
        other = (Step(steps[0].writes, steps[0].op.replace(**how), steps[0].reads), *steps[1:])
        assert [u.step.writes for u in units(other)] == ["n", "y"]


def test_a_kernel_gives_way() -> None:
    steps = attention_rows(Scores(2.0), "sdpa")
    assert [u.step.writes for u in units(steps)] == ["z"]
    assert [u.step.writes for u in units(steps, keep={"a"})] == ["s", "a", "z"]
    reader = Step("elsewhere", Softmax(), ("s",))
    assert [u.step.writes for u in units((*steps, reader))] == ["s", "a", "z", "elsewhere"]
