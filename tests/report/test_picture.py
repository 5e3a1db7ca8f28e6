from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.results import drawn, error
from twinlens.parity.result import Finding
from twinlens.report.picture import MOST_ROWS, WIDTH, Depth, bar, depths, picture


@given(st.integers(0), st.integers(-20, -1))
def test_a_bar_stays_in_its_cells(seed: int, low: int) -> None:
    r = Random(seed)
    depth = Depth(error(r), error(r), error(r))
    assert len(bar(depth, low, 0)) <= WIDTH


def test_a_bar_is_full_as_far_as_is_injected() -> None:
    assert bar(Depth(1e-2, 0.0, 1e-2), -4, 0) == "█" * (WIDTH // 2)
    assert bar(Depth(0.0, 1e-2, 1e-2), -4, 0) == "░" * (WIDTH // 2)
    assert bar(Depth(1e-2, 1.0, 1.0), -4, 0) == "█" * (WIDTH // 2) + "░" * (WIDTH // 2)
    assert bar(Depth(0.0, 0.0, 0.0), -4, 0) == ""


def test_nothing_is_drawn_where_nothing_differs() -> None:
    assert not list(picture([Finding("logits", "equal", 0, 0, 0, 1.0, 0)]))


@given(st.integers(0))
def test_rows_are_few(seed: int) -> None:
    assert len(depths(drawn(seed).findings)) <= MOST_ROWS + 3


@pytest.mark.parametrize("layers", [1, 26, 100])
def test_layers_of_a_deep_model_share_rows(layers: int) -> None:
    sites = [f"blocks.{n}.hook_resid_post" for n in range(layers)]
    rows = depths([Finding(s, "innocent", 1e-3, 0, 1e-3, 1.0, 1e-2) for s in sites])
    first, last = next(iter(rows)), list(rows)[-1]
    assert first.split("-")[0] == "0"
    assert last.split("-")[-1] == str(layers - 1)
