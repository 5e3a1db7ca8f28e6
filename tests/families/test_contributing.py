"""The family that CONTRIBUTING.md adds is one, to the last bit."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import twinlens
from tests.families.test_bits import assert_equal_everywhere
from twinlens.families import FAMILIES
from twinlens.museum import tiny
from twinlens.museum.tiny import left_padded, random_tokens

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def stablelm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page says: one file, one row of src/twinlens/museum/tiny.py."""
    text = PAGE.read_text(encoding="utf-8").partition("## Add a family")[2].partition("\n## ")[0]
    code, row = (
        re.findall(r"```python\n(.*?)```", text, re.S)[0],
        re.findall(r'^\+    ("stablelm": .*)$', text, re.M)[0],
    )
    file = ModuleType("twinlens.families.stablelm")
    exec(compile(code, str(PAGE), "exec"), vars(file))
    assert len(code.splitlines()) < 80
    monkeypatch.setitem(FAMILIES, "stablelm", file)
    monkeypatch.setitem(tiny.CONFIGS, "stablelm", eval(f"{{{row}}}", vars(tiny))["stablelm"])


@pytest.mark.usefixtures("stablelm")
@pytest.mark.parametrize("config", [{}, {"use_parallel_residual": True}, {"use_qkv_bias": False}], ids=str)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_page_adds_a_family(config: dict[str, Any], attn: str, dtype: torch.dtype) -> None:
    model = tiny.tiny("stablelm", attn=attn, dtype=dtype, **config)
    assert_equal_everywhere(model, random_tokens(model), None)
    assert_equal_everywhere(model, *left_padded(model, (31, 12)))


@pytest.mark.usefixtures("stablelm")
def test_its_faults_are_named_at_once() -> None:
    reference, candidate = (tiny.tiny("stablelm") for _ in range(2))
    with torch.no_grad():
        candidate.get_parameter("model.layers.1.self_attn.k_proj.bias").zero_()
        candidate.get_submodule("model.layers.2.self_attn").scaling *= 1.01  # type: ignore[operator]
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40))
    assert [(c.parameter, c.layers, c.status) for c in report.causes] == [
        ("bias", [1], "proved"), ("attn.scale", [2], "proved"),
    ]  # fmt: skip
    assert report.fix(candidate).verdict == "identical"
