"""Calls with a cache: who can be called so, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import twinlens
from twinlens.errors import CaptureError, ComparisonError, InputError
from twinlens.museum.tiny import left_padded, random_tokens, tiny_llama


class Port(nn.Module):
    """A module that knows no cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens, use_cache=False).logits


def test_a_module_without_a_cache_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(CaptureError, match="takes no past_key_values"):
        twinlens.compare(model, Port(model), tokens=random_tokens(model, 1, 12), calls=[10, 1, 1])


def test_a_call_by_a_function_of_its_own_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(CaptureError, match="knows no cache"):
        twinlens.compare(
            model, model, tokens=random_tokens(model, 1, 12), calls=[10, 1, 1], call=lambda t, _: model(t).logits
        )


@pytest.mark.parametrize("calls", [[], [0, 2], [-1, 3], [13], [True, 1]])
def test_lengths_that_are_none(calls: list[int]) -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match="are no calls of 12 tokens"):
        twinlens.compare(model, model, tokens=random_tokens(model, 1, 12), calls=calls)


def test_a_recording_of_one_call_is_not_one_of_several() -> None:
    model = tiny_llama()
    tokens = random_tokens(model, 1, 12)
    logits = twinlens.load(model)(tokens)
    recording = twinlens.Recording.from_tensors({"logits": logits}, tokens=tokens)
    with pytest.raises(ComparisonError, match="has not 3 calls"):
        twinlens.compare(model, recording, tokens=tokens, calls=[10, 1, 1])


def test_what_the_lengths_leave_over_is_one_more_call() -> None:
    model = tiny_llama()
    tokens, mask = left_padded(model, (12, 8))
    report = twinlens.compare(model, model, tokens=tokens, mask=mask, calls=[10, 1])
    assert [r.verdict for r in report.calls] == ["identical"] * 3
    assert report.scope.startswith("3 calls of 10, 1, 1 tokens with a cache")


def test_positions_that_decoding_has_wrong_are_the_cache_s(tmp_path: object) -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    plain = candidate.model.forward

    def forward(input_ids: Tensor, past_key_values: object = None, **more: object) -> object:
        before = past_key_values.get_seq_length() if past_key_values is not None else 0  # type: ignore[attr-defined]
        if before:
            more["position_ids"] = (torch.arange(input_ids.shape[1]) + before + 1)[None]
        return plain(input_ids, past_key_values=past_key_values, **more)

    candidate.model.forward = forward
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 1, 20), calls=[17, 1, 1, 1])
    [cause] = report.causes
    assert (cause.site, cause.parameter, cause.reference, cause.candidate) == (
        "blocks.0.attn.hook_rot_k",
        "cache.position",
        0,
        1,
    )
    assert [r.verdict for r in report.calls] == ["identical", "different", "different", "different"]
    assert "in calls 1, 2, 3" in cause.evidence
    assert "Calls, each with what those before it left" in str(report)


def test_a_model_of_ours_goes_on_from_its_positions() -> None:
    reference = tiny_llama()
    plain = twinlens.load(reference)
    spec = plain.spec.set_fields(["rotary.hook_cos", "rotary.hook_sin"], "product", "divide")
    native = twinlens.Model(spec, plain.weight)
    report = twinlens.compare(reference, native, tokens=random_tokens(reference, 2, 40), calls=[36, 2, 1, 1])
    assert (report.verdict, report.causes) == ("rounding", [])
    assert [call.verdict for call in report.calls[1:]] == ["rounding"] * 3, "bits are other ones in each"


def test_a_fault_of_all_calls_is_one_cause_and_is_mended() -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    candidate.model.layers[1].self_attn.scaling *= 1.1
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 20), calls=[17, 1, 1, 1])
    [cause] = report.causes
    assert (cause.parameter, cause.layers) == ("attn.scale", [1])
    assert report.fix(candidate).verdict == "identical"
    assert candidate.model.layers[1].self_attn.scaling == pytest.approx(12**-0.5)
