"""The demo's own parts on a tiny model; the whole of it with its environments."""

import io

import pytest
import torch
from rich.console import Console

from twinlens import demo
from twinlens.cli.watch import Watch
from twinlens.comparison import compare
from twinlens.museum.tiny import random_tokens, tiny_llama


@pytest.fixture
def show() -> demo.Show:
    return demo.Show(Console(file=io.StringIO(), width=100), Watch())


def test_a_claim_that_does_not_hold_is_said_and_kept(show):
    show.part("A", "a title", lambda: iter([("holds", True), ("fails", False)]))
    assert show.claims == [("holds", True), ("fails", False)]
    assert "✗ NOT SO: fails" in show.console.file.getvalue()


@pytest.mark.parametrize(("claims", "status"), [([("x", True)], 0), ([("x", True), ("y", False)], 1)])
def test_the_status_is_that_of_the_claims(monkeypatch, claims, status):
    monkeypatch.setattr(demo, "real", lambda show: show.claims.extend(claims))
    monkeypatch.setattr(demo, "released", lambda show: None)
    assert demo.main(Console(file=io.StringIO())) == status


def test_native_and_rounding_hold_on_a_tiny_model(show):
    eager, sdpa = tiny_llama(attn="eager"), tiny_llama(attn="sdpa")
    tokens = random_tokens(eager)
    assert all(held for _, held in demo.native(show, eager, tokens))
    assert all(held for _, held in demo.rounding(show, eager, sdpa, tokens))


def test_faults_are_planted_in_the_copy_only(monkeypatch):
    monkeypatch.setattr(demo, "SCALED", 1)
    monkeypatch.setattr(demo, "HALVED", 2)
    module = tiny_llama()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    copy = demo.damaged(module)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    changed = [n for n, t in copy.state_dict().items() if not torch.equal(t, before[n])]
    assert changed == ["model.layers.2.mlp.down_proj.weight"]


def test_the_planted_faults_are_named_and_mended(show, monkeypatch):
    monkeypatch.setattr(demo, "SCALED", 1)
    monkeypatch.setattr(demo, "HALVED", 2)
    module = tiny_llama()
    claims = list(demo.faults(show, module, random_tokens(module)))
    assert [claim for claim, held in claims if not held] == []
    assert len(claims) == 4


def test_a_missing_fault_fails_its_claims(show, monkeypatch):
    monkeypatch.setattr(demo, "damaged", lambda module: tiny_llama())
    monkeypatch.setattr(demo, "SCALED", 1)
    module = tiny_llama()
    claims = dict(demo.faults(show, module, random_tokens(module)))
    assert list(claims.values())[:2] == [False, False]
    assert compare(module, tiny_llama()).verdict in ("identical", "rounding")


@pytest.mark.environment
def test_the_first_case_holds(show):
    demo.released(show)
    assert len(show.claims) == 2
    assert all(held for _, held in show.claims)
