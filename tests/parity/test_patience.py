"""A search ends: with what came nearest where its patience is spent, at once where the defaults explain."""

from __future__ import annotations

import pytest
import torch

import twinlens
from tests.parity.faults import FAULTS
from tests.parity.judged import misses, sublayers
from twinlens.parity import examine

BY_NAME = {f"{fault.family}: {fault.name}": fault for fault in FAULTS}


def judged(name: str) -> tuple[list[str], twinlens.Report]:
    fault = BY_NAME[name]
    reference = fault.reference()
    tokens, mask = fault.inputs(reference)
    torch.manual_seed(0)
    given = sublayers(fault.candidate(reference), tokens, mask)
    report = twinlens.compare(reference, given, tokens=tokens, mask=mask)
    return misses(fault, report), report


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
