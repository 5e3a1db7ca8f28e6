"""Layouts: what one direction does, the other undoes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from twinlens.capture.layout import Wanted, distance, layouts, variants

SIZES = {"b": 2, "p": 13, "h": 4, "k": 2, "e": 6}
AXES = ("b", "p", "k", "e")
SHAPES = ((2, 13, 2, 6), (2, 2, 13, 6), (26, 12), (2, 13, 12), (2, 4, 13, 6), (8, 13, 6), (13, 2, 4, 6))


@given(st.sampled_from(SHAPES), st.integers(0, 2**31))
def test_theirs_is_ours_again(shape: tuple[int, ...], seed: int) -> None:
    ours = torch.randn(2, 13, 2, 6, generator=torch.Generator().manual_seed(seed))
    for layout in layouts(AXES, tuple(ours.shape), shape):
        theirs = layout.theirs(ours, torch.zeros(shape))
        assert theirs.shape == shape
        assert torch.equal(layout.ours(theirs, SIZES), ours)


def test_another_number_of_entries_holds_nothing() -> None:
    assert layouts(AXES, (2, 13, 2, 6), (2, 13, 3, 6)) == ()


def test_tables_may_be_half_as_wide_and_without_a_batch() -> None:
    half = torch.randn(1, 13, 4)
    table = torch.cat((half, half), -1).expand(2, -1, -1)
    forms = [tuple(form.value.shape) for form in variants(Wanted(table, ("b", "p", "r")))]
    assert {(2, 13, 8), (1, 13, 8), (2, 13, 4), (1, 13, 4)} <= set(forms)


def test_only_entries_that_count_are_compared() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, float("-inf")]])
    y = torch.tensor([[1.0, 2.0], [3.0, -3.4e38]])
    assert distance(x, Wanted(y, ("p", "s"), counts=y > -1e30)) == 0.0
    assert distance(x, Wanted(y, ("p", "s"))) > 1.0
