"""A search ends: with what came nearest where its patience is spent, at once where the defaults explain."""

from __future__ import annotations

import pytest

import twinlens
from tests.parity.judged import BY_NAME, compared, misses
from twinlens.parity import examine


def judged(name: str) -> tuple[list[str], twinlens.Report]:
    _, report = compared(BY_NAME[name], afar=True)
    return misses(BY_NAME[name], report), report


def test_a_search_without_patience_says_what_came_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "PATIENCE", 600)
    _, report = judged("llama: layout and base")
    assert report.verdict == "different"
    assert report.causes == []
    assert report.unexplained[0].nearest


def test_what_a_config_that_is_not_read_leaves_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "PATIENCE", 6000)
    missed, _ = judged("llama: scaling and base lost")
    assert missed == []
