"""A second module takes the places of the first only where no bit of its probe sets it apart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from twinlens.capture import Placement, placed, record, trace
from twinlens.capture.recorder import probe, repeats
from twinlens.museum.tiny import FAMILIES, random_tokens
from twinlens.subjects import subject


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_takes_the_places_and_is_recorded_alike(family: str) -> None:
    model: Any = FAMILIES[family]()
    other: Any = copy.deepcopy(model)
    declared = subject(model).declaration()
    assert declared is not None
    known = list[Placement]()
    tokens = random_tokens(model)
    record(model, declared.spec, declared.weights, tokens, known=known)
    [first] = known
    taken = placed(other, declared.spec, declared.weights, known=known)
    assert taken.places is first.places
    own = {p.data_ptr() for p in other.parameters()}
    assert all(a.tensor.data_ptr() in own for a in taken.anchors.values() if a.owner is not None)
    quick = record(other, declared.spec, declared.weights, tokens, known=known)
    slow = record(other, declared.spec, declared.weights, tokens)
    assert quick.calls[0].placed == slow.calls[0].placed
    assert quick.weights_equal == slow.weights_equal
    assert not quick.weights
    for site, tensor in slow.calls[0].sites.items():
        assert torch.equal(quick.calls[0].sites[site], tensor), site


def scaled(model: Any) -> None:
    model.model.layers[1].self_attn.scaling *= 1.01


def damaged(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3] *= 0.5


def exchanged(model: Any) -> None:
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def other_kernel(model: Any) -> None:
    model.set_attn_implementation("sdpa")


def unused_row(model: Any) -> None:
    """A row of the table that no token of the probe reads: the constant alone differs."""
    with torch.no_grad():
        ids, _ = probe(subject(model).said(), None)
        row = next(i for i in range(model.config.vocab_size) if i not in ids)
        model.model.embed_tokens.weight[row] += 1.0


@pytest.mark.parametrize("change", [scaled, damaged, exchanged, other_kernel, unused_row])
def test_whatever_differs_is_placed_by_itself(change: Any) -> None:
    model: Any = FAMILIES["llama"]()
    other: Any = copy.deepcopy(model)
    change(other)
    declared = subject(model).declaration()
    assert declared is not None
    ids, _ = probe(declared.spec, None)
    assert repeats(trace(model, ids), trace(model, ids))
    assert not repeats(trace(model, ids), trace(other, ids))
