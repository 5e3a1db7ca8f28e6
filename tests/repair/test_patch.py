"""A patch says what to change in the implementation's own words, and leaves the implementation as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import twinlens
from twinlens.museum import named
from twinlens.museum.tiny import random_tokens, tiny_llama
from twinlens.museum.visit import compared


def patched(name: str) -> tuple[Any, twinlens.Report, str]:
    candidate, report = compared(named(name))
    before = copy.deepcopy(candidate.state_dict()), candidate.forward
    text = report.patch()
    assert all(torch.equal(x, candidate.state_dict()[n]) for n, x in before[0].items())
    assert candidate.forward == before[1]
    return candidate, report, text


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("silu-gelu-confusion", ["--- a/transformers/models/llama/modeling_llama.py", "act_fn(self.gate_proj(x))"]),
        ("decode-position-off-by-one", ["+++ b/transformers/models/llama/modeling_llama.py", "cos = emb.cos()"]),
        ("olmo2-run-as-pre-norm", ["--- a/twinlens/museum/wings/norms.py", "return h + self.mlp("]),
    ],
)
def test_what_stands_in_the_code_is_a_diff_of_its_file(name: str, lines: list[str]) -> None:
    text = patched(name)[2]
    assert all(line in text for line in lines), text
    added = [line for line in text.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert added and all(line[1:].lstrip().startswith("# twinlens: ") for line in added)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemma2-scale-14-97-vs-16", "model.layers.0.self_attn.scaling = 0.2041241452  # was 0.2182178902"),
        ("sdpa-without-window", "config.sliding_window = 8  # was None"),
        ("o-proj-columns-in-other-head-order", "model.layers.0.self_attn.o_proj.weight: "),
    ],
)
def test_what_the_implementation_holds_is_said_by_its_name(name: str, words: str) -> None:
    assert words in patched(name)[2]


def test_code_that_has_no_file_is_named() -> None:
    made: dict[str, Callable[..., Any]] = {}
    exec("def forward(self, x):\n    return self.down_proj(self.gate_proj(x).relu() * self.up_proj(x))", made)
    reference = tiny_llama()
    candidate: Any = copy.deepcopy(reference)
    for layer in candidate.model.layers:
        layer.mlp.forward = made["forward"].__get__(layer.mlp)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    assert "<string>:2 in forward: blocks.*.mlp.hook_post: computed as Gate(" in report.patch()
