import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.report.results import drawn
from twinlens.parity.result import Result
from twinlens.report import as_json, markdown, terminal
from twinlens.report.rows import page

few = settings(max_examples=50, deadline=None)


@few
@given(st.integers(0))
def test_text_fits_100_columns_without_colours(seed: int) -> None:
    result = drawn(seed)
    text = terminal.text(result)
    assert max(cell_len(line) for line in text.splitlines()) <= terminal.WIDTH
    assert "\x1b" not in text
    assert text.startswith(result.verdict.upper())


@few
@given(st.integers(0))
def test_each_row_has_a_cell_for_each_column(seed: int) -> None:
    result = drawn(seed)
    for table in page(result).tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert not table.numbered or len(table.notes) in (0, len(table.rows))


@few
@given(st.integers(0))
def test_markdown_tables_are_whole(seed: int) -> None:
    result = drawn(seed)
    cells = 0
    for line in markdown.text(result).splitlines():
        here = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else 0
        assert not (cells and here) or here == cells
        cells = here


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@few
@given(st.integers(0))
def test_json_is_strict_and_holds_everything(seed: int) -> None:
    result = drawn(seed)
    said = json.loads(as_json.text(result, after_fix=result), parse_constant=_refuse)
    assert set(vars(result)) <= set(said)
    assert said["after_fix"] == {k: v for k, v in said.items() if k not in ("twinlens", "after_fix")}
    for cause, row in zip(result.causes, said["causes"], strict=True):
        assert row["layers"] == cause.layers
        assert row["interval"] is None or len(row["interval"]) == 2
        assert _same(row["candidate"], cause.candidate)


def _same(said: object, meant: object) -> bool:
    if isinstance(meant, float) and not math.isfinite(meant):
        assert isinstance(said, str)
        return str(float(said)) == str(meant)
    return said == meant and type(said) is type(meant)


@pytest.mark.parametrize("verdict", ["identical", "rounding", "different"])
def test_a_bare_verdict_is_said(verdict: str) -> None:
    result = Result(verdict, [], scope="nothing")  # pyright: ignore[reportArgumentType]
    assert "same model" in terminal.text(result).splitlines()[0]
