"""No site is placed wrongly, whatever was changed; and what can be seen is found."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.capture.faults import Planted, build, planted
from tests.capture.ports import ports
from tests.capture.table import port_row, row
from twinlens.capture import record
from twinlens.museum.tiny import ALL, random_tokens
from twinlens.subjects import subject

FAULTS = planted()
BOTH = ("honest", "scale", "rotary base", "exchanged", "embed", "post-norm", "windows")


def label(value: object) -> str:
    return value.name if isinstance(value, Planted) else str(value)


@pytest.mark.parametrize("fault", FAULTS, ids=label)
def test_every_site_is_found_or_said_to_be_unseen(fault: Planted) -> None:
    candidate = build(fault)
    found = row(candidate)
    assert found.wrong == []
    assert set(found.with_evidence("hidden")) == candidate.hidden
    assert all(s.endswith(fault.absent) for s in found.with_evidence("missing"))


@pytest.mark.parametrize("fault", [f for f in FAULTS if any(b in f.name for b in BOTH)], ids=label)
def test_the_same_in_bfloat16(fault: Planted) -> None:
    found = row(build(fault, torch.bfloat16))
    assert found.wrong == []
    assert all(s.endswith(fault.absent) for s in found.with_evidence("missing"))


@pytest.mark.parametrize("port", ports(), ids=lambda port: port[0])
def test_ports_in_layouts_of_their_own(port: tuple) -> None:
    found = port_row(*port)
    assert found.wrong == []
    assert found.with_evidence("missing") == []


def test_a_step_at_fault_is_placed_by_what_follows_only() -> None:
    [fault] = [f for f in FAULTS if f.name == "llama scale"]
    found = row(build(fault))
    assert found.with_evidence("provisional") == [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(3)]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_stream_scaled_between_two_layers_is_placed_behind_the_factor(family: str) -> None:
    """The norm that reads it replays on either side, the sum does not."""
    model: Any = ALL[family]()
    other: Any = copy.deepcopy(model)
    layer = other.model.layers[0]
    plain = layer.forward
    layer.forward = lambda *args, **kwargs: 0.5 * plain(*args, **kwargs)
    declared = subject(model).declaration()
    assert declared is not None
    sites = record(other, declared.spec, declared.weights, random_tokens(model)).calls[0].sites
    assert torch.equal(sites["blocks.1.hook_resid_pre"], 0.5 * sites["blocks.0.hook_resid_post"])
