"""What an implementation holds is found by its value, whatever its name is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from twinlens.ops import RotaryTable
from twinlens.repair import handles
from twinlens.repair.handles import Holder


class Held(nn.Module):
    """Somebody's attention: a few numbers under names of its own."""

    def __init__(self, **numbers: Any) -> None:
        super().__init__()
        for name, value in numbers.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(4.0, 8.0), (1 / 4.0, 1 / 8.0), (16.0, 64.0), (16, 64), (1 / 16.0, 1 / 64.0), (2.0, math.sqrt(8.0))],
)
def test_a_number_is_set_in_the_form_in_which_it_is_held(held: float, wanted: float) -> None:
    module = Held(anything=held, other=3.7)
    [handle] = handles.numbers(Holder("attn", module), 4.0, 8.0)
    handle.set()
    assert module.anything == pytest.approx(wanted) and type(module.anything) is type(held)
    assert module.other == 3.7
    assert handle.words.startswith("attn.anything = ")
    handle.undo()
    assert module.anything == held


def test_what_is_off_is_found_by_a_like_name() -> None:
    module = Held(attn_logit_softcapping=None, window=None, softcap_of_another=3.0)
    [handle] = handles.switches(Holder("attn", module), "softcap", 50.0)
    handle.set()
    assert module.attn_logit_softcapping == 50.0 and module.window is None


def test_a_precomputed_table_is_computed_anew() -> None:
    old, new = RotaryTable(width=8, base=500.0), RotaryTable(width=8, base=10000.0)
    module = Held()
    module.register_buffer("freqs", old.frequencies(torch.arange(8)[None]))
    [handle] = handles.tables(Holder("rope", module), old, new)
    handle.set()
    assert torch.equal(module.freqs, new.frequencies(torch.arange(8)[None]))
    handle.undo()
    assert torch.equal(module.freqs, old.frequencies(torch.arange(8)[None]))


def test_holders_are_those_of_a_layer_and_configs() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Held(x=1.0), Held(x=1.0)])
    model.config = object()
    assert [h.path for h in handles.holders(model, ["layers.1"])] == ["layers.1", "config"]


def test_a_tied_weight_gets_a_parameter_of_its_own() -> None:
    model = nn.Module()
    model.embed, model.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    model.head.weight = tied = model.embed.weight
    before, reference = tied.detach().clone(), torch.randn(5, 3)
    handle = handles.untied(model, "head.weight", tied, tied.data, reference)
    handle.set()
    assert torch.equal(model.head.weight, reference) and torch.equal(model.embed.weight, before)
    handle.undo()
    assert model.head.weight is model.embed.weight
