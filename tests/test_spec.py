"""Specs: steps, units, merged steps."""

from __future__ import annotations

import pytest
import torch

import twinlens
from twinlens import declare
from twinlens.inputs import prepare
from twinlens.museum.tiny import FAMILIES, random_tokens
from twinlens.sites import INPUTS, axes, generic, is_known
from twinlens.spec import evaluate, exact, units

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_sites_are_known_and_have_their_axes(family: str) -> None:
    theirs = FAMILIES[family]()
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    _, cache = native.run_with_cache(tokens)
    shape = native.spec.shape
    sizes = {"b": 2, "p": 24, "s": 24, "d": shape.d_model, "v": shape.vocabulary}
    sizes |= {"h": shape.heads, "k": shape.kv_heads, "e": shape.head_width}
    for site, tensor in cache.items():
        assert is_known(site)
        for axis, size in zip(axes(site), tensor.shape, strict=True):
            assert size == sizes.setdefault(axis, size), site


@every_family
def test_every_step_reads_what_was_written(family: str) -> None:
    spec = declare(FAMILIES[family]().config.to_dict())
    known = set[str](INPUTS)
    for step in spec.steps:
        assert known.issuperset(step.reads)
        assert step.writes not in known
        known.add(step.writes)
    assert spec.sites[-1] == "logits"
    assert {s for s in map(generic, spec.sites) if "blocks" in s} == {
        generic(s) for s in spec.sites if s.startswith("blocks.1.")
    }


@every_family
def test_a_merged_step_is_its_steps(family: str) -> None:
    theirs = FAMILIES[family]()
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    _, cache = native.run_with_cache(tokens)
    given = {"blocks.1.hook_resid_pre", "rotary.hook_cos", "rotary.hook_sin"} & set(cache)
    steps = native.spec.between("blocks.1.attn.hook_z", given)
    assert len(steps) < len(native.spec.steps) / 3
    sites = {name: cache[name] for name in given} | prepare(native.spec, tokens)
    found = evaluate(steps, sites, native.weight)["blocks.1.attn.hook_z"]
    assert torch.equal(found, cache["blocks.1.attn.hook_z"])


@every_family
def test_exact_is_float64_throughout(family: str) -> None:
    theirs = FAMILIES[family]()
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    sites = prepare(native.spec, tokens)
    written = evaluate(exact(native.spec.steps), sites, lambda n: native.weight(n).double())
    assert {tensor.dtype for tensor in written.values()} == {torch.float64}
    torch.testing.assert_close(written["logits"].float(), native(tokens), rtol=1e-3, atol=1e-3)


def test_units_absorb_only_what_is_there() -> None:
    spec = declare(FAMILIES["llama"]().config.to_dict(), attention="sdpa")
    assert {generic(s) for s in spec.hidden} == {
        "blocks.L.attn.hook_attn_scores",
        "blocks.L.attn.hook_pattern",
    }
    alone = [spec.at["blocks.0.attn.hook_z"]]
    assert next(iter(units(alone))).absorbed == ()
    kept = {u.step.writes for u in units(spec.steps, keep={"blocks.1.attn.hook_pattern"})}
    assert "blocks.1.attn.hook_attn_scores" in kept
    assert "blocks.0.attn.hook_attn_scores" not in kept


def test_readers() -> None:
    spec = declare(FAMILIES["llama"]().config.to_dict())
    readers = {step.writes for step in spec.readers["blocks.0.ln1.hook_out"]}
    assert readers == {f"blocks.0.attn.hook_{part}" for part in "qkv"}
