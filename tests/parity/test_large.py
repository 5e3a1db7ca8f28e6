"""Vocabularies whose tables fill the memory: judged part by part, with the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import twinlens
from twinlens.museum.tiny import random_tokens, tiny_gemma2
from twinlens.ops import Op, Unembed
from twinlens.parity import oracle, weighing
from twinlens.parity.oracle import _constant
from twinlens.report import words


def peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def cap(model: nn.Module) -> None:
    model.config.final_logit_softcapping = 25.0  # type: ignore[union-attr]


def factor(model: nn.Module) -> None:
    model.model.embed_tokens.embed_scale *= 1.1  # type: ignore[operator, union-attr]
    model.model.embed_tokens.scalar_embed_scale *= 1.1  # type: ignore[operator, union-attr]


def rows(model: nn.Module) -> None:
    order = torch.arange(model.lm_head.weight.shape[0])  # type: ignore[union-attr]
    order[3:40] = order[3:40].flip(0)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight[order])  # type: ignore[union-attr, index]


FAULTS = [(cap, "unembed.softcap"), (factor, "embed.scale"), (rows, "weight")]


@pytest.mark.parametrize(("fault", "parameter"), FAULTS)
def test_a_large_vocabulary_needs_no_square_of_it(fault: Callable[[nn.Module], None], parameter: str) -> None:
    reference, candidate = (tiny_gemma2(vocab_size=30_000, num_hidden_layers=1) for _ in range(2))
    fault(candidate)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = peak()
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 1, 16))
    assert [c.parameter for c in report.causes] == [parameter]
    assert report.explained == "identical"
    assert peak() - before < 30_000**2  # bytes; one float64 for each pair of rows would be eight times as much


@pytest.mark.parametrize(("fault", "parameter"), FAULTS)
def test_parts_say_what_the_whole_says(
    fault: Callable[[nn.Module], None], parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, candidate = tiny_gemma2(), tiny_gemma2()
    fault(candidate)
    whole = twinlens.compare(reference, candidate)
    monkeypatch.setattr(oracle, "LARGE", 100)
    monkeypatch.setattr(weighing, "_PART", 7)
    parts = twinlens.compare(reference, candidate)
    assert [c.parameter for c in parts.causes] == [parameter]
    said, expected = ([(c.site, c.layers, c.status, words.change(c)) for c in r.causes] for r in (parts, whole))
    assert said == expected  # of sums in another order what they cost may differ by a step
    assert (parts.verdict, parts.explained) == (whole.verdict, whole.explained)


def test_a_large_product_is_done_once_for_all_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = tiny_gemma2(), tiny_gemma2()
    cap(candidate)
    monkeypatch.setattr(oracle, "LARGE", 100)
    done, plain = list[tuple[str, int, float]](), oracle.in_parts

    def counted(op: Op, reads: Sequence[Tensor], arguments: Mapping[str, Tensor], *of: Any) -> Tensor:
        x = _constant(reads[0])
        if isinstance(op, Unembed):
            done.append((str(of), x.shape[1], float(x.sum())) if x is not None else ("a derivative", 0, 0.0))
        return plain(op, reads, arguments, *of)

    monkeypatch.setattr(oracle, "in_parts", counted)
    report = twinlens.compare(reference, candidate)
    assert [c.parameter for c in report.causes] == ["unembed.softcap"]
    assert len(done) <= 3 * len(set(done))  # merged steps are made anew where the reference is looked at, and a cause
