"""The reference is taken as it computes, also where that is not what its config says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import twinlens
from tests.parity.faults import FAULTS
from tests.parity.judged import BY_NAME, title
from twinlens.museum.tiny import FAMILIES, random_tokens, tiny_llama


def other_way_round(family: str, plant: Callable[[Any], None], **build: Any) -> tuple[Any, Any, twinlens.Report]:
    """The changed model as the reference of the honest one."""
    honest = FAMILIES[family](**build)
    changed: Any = copy.deepcopy(honest)
    with torch.no_grad():
        plant(changed)
    return changed, honest, twinlens.compare(changed, honest, tokens=random_tokens(honest, 2, 40, seed=3))


def twice(model: Any) -> None:
    once = model.model.norm.forward
    model.model.norm.forward = lambda x: once(once(x))


def skipped(model: Any) -> None:
    model.model.layers[1].forward = lambda h, **_: h


def coarse(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.bfloat16()


def untied(model: Any) -> None:
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(embedding.weight.clone())
    embedding.weight[5:60] *= 1.1


def test_what_nothing_explains_of_the_reference_is_no_rounding() -> None:
    _, _, report = other_way_round("llama", twice)
    assert (report.verdict, report.explained, report.causes) == ("different", "different", [])
    assert report.first_difference == "logits"  # what the candidate shows next
    assert [u.site for u in report.unexplained] == ["logits (of the reference itself)"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_of_coarse_frequencies_is_told_from_one_that_is_not(dtype: torch.dtype) -> None:
    _, honest, report = other_way_round("llama", coarse, dtype=dtype)
    (cause,) = report.causes
    assert (cause.parameter, cause.reference, cause.candidate) == ("rotary.dtype", "bfloat16", "float32")
    assert report.fix(honest).verdict == "identical"


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_a_reference_whose_head_is_not_its_embedding(family: str) -> None:
    changed, honest, report = other_way_round(family, untied)
    (cause,) = report.causes
    assert (cause.parameter, cause.site) == ("weight", "hook_embed")
    assert [(c.parameter, c.site) for c in report.reference_edits] == [("weight", "logits")]
    assert report.fix(honest).verdict == "identical"
    assert torch.equal(honest.lm_head.weight, changed.lm_head.weight)


def test_a_reference_that_skips_a_layer() -> None:
    _, honest, report = other_way_round("llama", skipped)
    assert {(c.parameter, c.reference, c.candidate) for c in report.causes} == {("residual.scale", 0.0, 1.0)}
    assert report.fix(honest).verdict == "identical"


def test_weights_of_a_reference_that_are_not_its_checkpoints() -> None:
    """A recording may show tensors of its own: what the candidate has of the checkpoint is then the difference."""
    honest = tiny_llama()
    changed: Any = copy.deepcopy(honest)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3] *= 2.0
    tokens = random_tokens(honest, 2, 40, seed=3)
    native = twinlens.load(honest)
    recorded = twinlens.capture.record(changed, native.spec, native.weight, tokens)
    report = twinlens.compare(recorded, native, tokens=tokens)
    (cause,) = report.causes
    assert (cause.parameter, cause.site, cause.layers) == ("weight", "blocks.1.mlp.hook_pre_linear", [1])
    assert "row 3 of 80: times 0.5" in cause.evidence


_OTHERWISE = (
    "gpt2: positions from one",
    "gpt2: positions from the padding mask",
    "llama: a layer does not rotate",
    "llama: in parallel",
    "gpt2: causal mask missing",
)
"""Steps that the reference has not, reads elsewhere or is given otherwise."""
_SOME = [*_OTHERWISE, *[title(f) for f in FAULTS if not f.benign and title(f) not in _OTHERWISE][::9]]


@pytest.mark.sliced
@pytest.mark.parametrize("name", _SOME)
def test_faults_of_the_reference_are_those_of_the_candidate_turned_round(name: str) -> None:
    """The candidate is honest, and differs from the reference; whatever is named mends it."""
    fault = BY_NAME[name]
    reference = fault.reference()
    torch.manual_seed(0)
    changed = fault.candidate(reference)
    tokens, mask = fault.inputs(reference)
    report = twinlens.compare(changed, reference, tokens=tokens, mask=mask)
    assert (report.verdict, report.explained) in (("different", "identical"), ("different", "rounding")), report
    assert report.fix(reference).verdict in ("identical", "rounding")


def test_a_reference_that_is_finer_than_declared_is_an_order() -> None:
    fault = BY_NAME["gemma2: frequencies and angles in float64"]
    reference = fault.reference()
    report = twinlens.compare(fault.candidate(reference), reference, tokens=fault.inputs(reference)[0])
    assert (report.verdict, report.causes) == ("rounding", [])


def test_a_recording_that_was_written_in_float64_is_what_was_recorded() -> None:
    model = tiny_llama()
    tokens = random_tokens(model, 2, 30)
    _, cache = twinlens.load(model).run_with_cache(tokens)
    wide = {site: x.double() for site, x in cache.items() if x.is_floating_point()}
    report = twinlens.compare(model, twinlens.Recording.from_tensors(wide, tokens=tokens))
    assert (report.verdict, report.causes) == ("identical", [])
