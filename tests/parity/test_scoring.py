"""Steps are scored from the sites right before them; numbers and precisions that mean nothing accuse nobody."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import twinlens
from tests.parity.judged import BY_NAME, compared, misses
from twinlens import ops
from twinlens.fields import kinds
from twinlens.museum.hands import attention, method, modeling, norms
from twinlens.museum.tiny import FAMILIES, random_tokens
from twinlens.ops import Normalize, NormWeight, Scores
from twinlens.parity.changes import SetField, Variant
from twinlens.parity.closed_form import closed_form
from twinlens.parity.judge import Judge
from twinlens.parity.merged import merge
from twinlens.parity.score import Found, Scorer


def test_a_kernels_last_step_is_judged_from_the_site_before_it() -> None:
    """The reference's kernel normalises once more; what the candidate shows is judged by itself, and its last step."""
    reference, candidate = FAMILIES["gpt2"](), FAMILIES["gpt2"]()

    def forward(self: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + self.eps).pow(-0.5) * self.weight + self.bias

    for norm in norms(candidate):
        method(norm, forward)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert (report.verdict, report.causes) == ("rounding", [])
    judge = report.judge
    assert isinstance(judge, Judge)
    steps = merge(judge.computed.spec, judge.candidate.sites, judge.weights, judge.meter)
    last = [m for m in steps if m.target.endswith("ln1.hook_out")]
    assert all(len(m.kernel_steps) > len(m.steps) == 1 for m in last)
    assert max(Scorer(m, judge.computed.spec).base.ratio.wide for m in last) < 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_softmax_in_float64_is_no_cause(family: str, dtype: torch.dtype) -> None:
    reference: Any = FAMILIES[family](dtype=dtype)
    candidate: Any = FAMILIES[family](dtype=dtype)

    def soften(s: Tensor) -> Tensor:
        return s.double().softmax(-1).to(s.dtype)

    modeling(candidate, eager_attention_forward=attention(soften=soften))
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert (report.verdict, report.causes) == ("rounding", [])


def test_a_sum_of_weight_and_offset_has_a_precision() -> None:
    w, x = torch.full((8,), 2.0**-9, dtype=torch.bfloat16), torch.ones(1, 1, 8)
    fine = NormWeight(offset=1.0, dtype=torch.float32)
    coarse = fine.replace(sum_dtype=torch.bfloat16)
    assert torch.equal(coarse(512 * x, w), torch.full((1, 1, 8), 512.0, dtype=torch.bfloat16))
    assert torch.equal(fine.replace(dtype=torch.float64)(512 * x, w.double()), torch.full((1, 1, 8), 513.0).double())
    for op, sum_is in ((fine, 1.0 + 2.0**-9), (coarse, 1.0)):  # torch's kernel is given the sum in its precision
        kernel = op.replace(kernel="fused").fused()
        assert kernel is not None
        expected = torch.full_like(x, sum_is)
        assert torch.allclose(kernel((Normalize(0.0),), x, w), expected, rtol=2.0**-22, atol=0.0)


def test_no_number_is_estimated_that_no_model_has() -> None:
    fields = {(name, k.parameter): k for op in (Scores(1.0), Normalize(1e-5)) for name, k, _ in kinds(op)}
    assert not fields["scale", "attn.scale"].allows(1e301)
    assert not fields["eps", "norm.eps"].allows(0.228)
    assert fields["eps", "norm.eps"].allows(1e-3)


@pytest.mark.parametrize("lowest", [-1e4, -1e9, -math.inf])
def test_a_mask_that_no_score_reaches_is_a_mask(lowest: float) -> None:
    reference: Any = FAMILIES["llama"]()
    candidate: Any = FAMILIES["llama"]()

    def hide(s: Tensor, mask: Tensor | None) -> Tensor:
        return s if mask is None else s.masked_fill(mask < 0, lowest)

    modeling(candidate, eager_attention_forward=attention(hide=hide))
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert (report.verdict, report.causes) in (("rounding", []), ("identical", []))


def test_a_number_below_the_noise_of_every_entry_is_named() -> None:
    fault = BY_NAME["llama: eps of one norm"]
    assert misses(fault, compared(fault, afar=True)[1]) == []


def test_a_number_that_is_not_finite_has_no_name() -> None:
    assert closed_form(math.inf, (1.0, math.inf)) is None
    assert ops.Scores(1.0).masked is None


def test_what_says_nothing_is_no_part_of_a_cause() -> None:
    reference: Any = FAMILIES["llama"]()
    candidate = copy.deepcopy(reference)
    candidate.model.layers[0].self_attn.scaling *= 1.1
    judge = twinlens.compare(reference, candidate, tokens=random_tokens(reference)).judge
    assert isinstance(judge, Judge)
    site = "blocks.0.attn.hook_attn_scores"
    steps = merge(judge.computed.spec, judge.candidate.sites, judge.weights, judge.meter)
    scorer = next(Scorer(m, judge.computed.spec) for m in steps if m.target == site)
    scale = SetField((site,), "scale", judge.computed.spec.at[site].op.scale / 1.1)  # type: ignore[attr-defined]
    both = Variant((scale, SetField((site,), "kv_map", "repeat")))
    assert scorer.telling(Found(both, scorer.score(both))).variant.changes == (scale,)
