"""Equality by words agrees with torch's, whatever the layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinlens.bits import each, equal

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=4),
    axes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 99),
    odd=st.booleans(),
)
def test_as_torch_says(dtype: torch.dtype, shape: list[int], axes: tuple[int, int], seed: int, odd: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, shape, generator=draw).to(dtype)
    y = x.clone()
    if odd and y.numel():
        y.view(-1)[seed % y.numel()] = 1 - x.view(-1)[seed % x.numel()].long()
    i, j = (a % max(x.ndim, 1) for a in axes)
    if x.ndim:
        x, y = x.transpose(i, j), y.transpose(i, j)
    assert equal(x, y) == torch.equal(x, y)
    assert equal(x, y.contiguous()) == torch.equal(x, y)


def test_what_words_alone_would_get_wrong() -> None:
    zeros = torch.zeros(4)
    assert equal(zeros, -zeros)
    nan = torch.full((4,), math.nan)
    assert equal(nan, nan.clone())
    assert not equal(zeros, zeros.double())
    assert not equal(zeros, torch.zeros(2, 2))


@pytest.mark.parametrize("at", [0, 1, 4, 8])
def test_views_with_gaps_and_odd_starts(at: int) -> None:
    base = torch.arange(40.0).reshape(8, 5)
    other = base.clone()
    other[at % 8, 4] += 1
    assert equal(base[:, :4], other[:, :4])
    assert not equal(base[at % 8 :, 1:], other[at % 8 :, 1:])
    assert equal(base.view(-1)[1:9], base.clone().view(-1)[1:9])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_name_gets_its_own_answer(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert each(lambda name: name in "bdf", "abcdefg") == {c: c in "bdf" for c in "abcdefg"}
        assert each(lambda _: True, []) == {}
    finally:
        torch.set_num_threads(before)
