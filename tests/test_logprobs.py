"""What a server shows of its logits: of which tokens, where nobody knows what follows, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import twinlens
from twinlens.errors import InputError
from twinlens.logprobs import following, with_logprobs
from twinlens.museum.tiny import left_padded, random_tokens, tiny_llama


def served(model: Any, tokens: Tensor, mask: Tensor | None = None, n: int = 5) -> dict[str, Tensor]:
    """As a server says it: of the tokens that follow, and of the n best."""
    with torch.no_grad():
        logits = model(tokens, **({} if mask is None else {"attention_mask": mask})).logits
    values = F.log_softmax(logits, -1)
    top = values.topk(n, -1)
    chosen = values[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return {"logprobs.chosen": chosen, "logprobs.top": top.values, "logprobs.top_ids": top.indices}


@pytest.mark.parametrize("sites", [{"logprobs.chosen"}, {"logprobs.top", "logprobs.top_ids"}], ids=["chosen", "top"])
def test_either_is_enough_to_say_the_same_model(sites: set[str]) -> None:
    model = tiny_llama()
    tokens = random_tokens(model, 2, 30)
    shown = {k: v for k, v in served(model, tokens).items() if k in sites}
    report = twinlens.compare(model, twinlens.Recording.from_tensors(shown, tokens=tokens), tokens=tokens)
    assert (report.verdict, report.causes) in (("identical", []), ("rounding", []))
    assert {f.site for f in report.findings} == sites - {"logprobs.top_ids"}


def test_padding_decides_nothing() -> None:
    model = tiny_llama()
    tokens, mask = left_padded(model, (30, 17))
    shown = served(model, tokens, mask)
    shown["logprobs.chosen"][1, :13] = float("nan")  # of padding, and of the first real token
    shown["logprobs.top"][1, :13] = 7.0
    recording = twinlens.Recording.from_tensors(shown, tokens=tokens, mask=mask)
    report = twinlens.compare(model, recording, tokens=tokens, mask=mask)
    assert (report.verdict, report.causes) in (("identical", []), ("rounding", []))


def test_of_which_tokens_nobody_knows_what_follows() -> None:
    tokens, mask = torch.tensor([[5, 6, 7], [1, 8, 9]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert following(tokens, mask).tolist() == [[6, 7, -1], [-1, 9, -1]]


def test_the_rows_are_the_softmax() -> None:
    model = tiny_llama()
    tokens = random_tokens(model, 2, 12)
    native = twinlens.load(model)
    spec = with_logprobs(native.spec)
    seen = served(model, tokens)
    logits = native(tokens)
    ids = following(tokens, torch.ones_like(tokens))
    assert torch.equal(spec.at["logprobs.top"].op(logits, seen["logprobs.top_ids"]), seen["logprobs.top"])
    assert torch.equal(spec.at["logprobs.chosen"].op(logits, ids)[:, :-1, 0], seen["logprobs.chosen"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("logprobs.top_ids"), "recorded without logprobs.top_ids"),
        (lambda s: s.update({"logprobs.top_ids": s["logprobs.top_ids"].float()}), "where integers"),
        (lambda s: s.update({"logprobs.top_ids": s["logprobs.top_ids"] + 1000}), "this model's ids are 0 to 102"),
        (lambda s: s.update({"logprobs.chosen": s["logprobs.top"][..., 0]}), "logprobs.chosen has shape"),
    ],
)
def test_bad_input_is_one_sentence(change: Any, said: str) -> None:
    model = tiny_llama()
    tokens = random_tokens(model, 2, 12)
    shown = served(model, tokens)
    change(shown)
    with pytest.raises(InputError, match=said):
        twinlens.compare(model, twinlens.Recording.from_tensors(shown, tokens=tokens), tokens=tokens)


def test_two_live_models_that_differ_are_compared_by_what_a_server_shows() -> None:
    model, other = tiny_llama(), tiny_llama()
    other.lm_head.register_forward_hook(lambda module, x, y: y * 0.5)
    report = twinlens.compare(model, other, tokens=random_tokens(model, 2, 30), sites="logprobs")
    assert [(c.parameter, c.candidate) for c in report.causes] == [("unembed.scale", 0.5)]
    assert report.unsteady == []
