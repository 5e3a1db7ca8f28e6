"""A module that was mended by a graft runs whatever an unmended one runs, rightly, or says that it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import twinlens
from tests.capture.faults import blocks, with_attention
from twinlens.capture import trace
from twinlens.capture.follow import Follower
from twinlens.errors import CaptureError
from twinlens.museum.tiny import left_padded, random_tokens, tiny

Plant = Callable[[Any], None]
SHAPES = [(1, 17), (3, 29), (2, 1), (1, 1)]


def relu(model: Any) -> None:
    for x in blocks(model):
        held = getattr(x.mlp, "experts", x.mlp)
        setattr(held, "act" if hasattr(held, "act") else "act_fn", nn.ReLU())


def norm(model: Any) -> None:
    """What attention reads is the residual stream, which others read as it is."""
    setattr(blocks(model)[1], "ln_1" if hasattr(blocks(model)[1], "ln_1") else "input_layernorm", nn.Identity())


def halved(model: Any) -> None:
    mlp = blocks(model)[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) * 0.5


def eps(model: Any) -> None:
    """In code, so that no attribute holds it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.1)).to(x.dtype)

    for x in blocks(model):
        x.post_attention_layernorm.forward = MethodType(forward, x.post_attention_layernorm)


def chosen(count: int) -> Plant:
    """Another number of experts, in code."""

    def forward(self: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(hidden.reshape(-1, self.hidden_dim), self.weight)
        values, indices = F.softmax(logits.float(), dim=-1).topk(count, dim=-1)
        return logits, values / values.sum(-1, keepdim=True), indices

    def plant(model: Any) -> None:
        for x in blocks(model):
            x.mlp.gate.forward = MethodType(forward, x.mlp.gate)

    return plant


def later(model: Any) -> None:
    """The rotary tables are of positions one less but for the first: shifted alike, they would change nothing."""
    rotary = model.base_model.rotary_emb
    plain = rotary.forward

    def forward(x: Tensor, position_ids: Tensor) -> Any:
        return plain(x, (position_ids - 1).clamp_min(0))

    rotary.forward = forward


def scale(model: Any) -> None:
    with_attention(scale=lambda s: 1 / 3.0)(model)


def bias(model: Any) -> None:
    model.lm_head.bias = nn.Parameter(torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(0)))


def mended(family: str, plant: Plant, shape: tuple[int, int] = (1, 17), **config: Any) -> tuple[Any, Any]:
    """A reference, and a candidate that one comparison on tokens of this shape has mended."""
    reference: Any = tiny(family, **config)
    candidate: Any = copy.deepcopy(reference)
    with torch.no_grad():
        plant(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, *shape, seed=1))
    assert report.verdict == "different"
    after = report.fix(candidate)
    assert after.verdict in ("identical", "rounding")
    assert any("computed as" in words for words in after.mended)
    return reference, candidate


def check(reference: Any, candidate: Any, tokens: Tensor, mask: Tensor | None = None) -> None:
    """The same, bit for bit, or up to rounding."""
    with torch.no_grad():
        theirs, ours = (m(tokens, attention_mask=mask).logits for m in (candidate, reference))
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    if not torch.equal(theirs[real], ours[real]):
        assert twinlens.compare(reference, candidate, tokens=tokens, mask=mask).verdict in ("identical", "rounding")


@pytest.mark.sliced
@pytest.mark.parametrize(
    ("family", "plant", "attn", "dtype"),
    [
        ("llama", relu, "eager", torch.bfloat16), ("llama", relu, "sdpa", torch.float32),
        ("llama", eps, "sdpa", torch.bfloat16), ("llama", norm, "eager", torch.float32),
        ("gemma2", relu, "eager", torch.float32), ("gemma2", norm, "eager", torch.bfloat16),
        ("gpt2", halved, "sdpa", torch.bfloat16), ("gpt2", norm, "eager", torch.float32),
        ("mixtral", norm, "sdpa", torch.float32), ("mixtral", eps, "eager", torch.bfloat16),
    ],
)  # fmt: skip
def test_a_mended_module_runs_any_batch_and_length(family: str, plant: Plant, attn: str, dtype: torch.dtype) -> None:
    reference, candidate = mended(family, plant, attn=attn, dtype=dtype)
    for rows, length in SHAPES:
        check(reference, candidate, random_tokens(reference, rows, length, seed=5))
    for lengths in ((24, 15), (30, 11, 3)):
        check(reference, candidate, *left_padded(reference, lengths=lengths))
    check(reference, candidate, random_tokens(reference, 2, 17, seed=6))


@pytest.mark.sliced
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_positions_are_mended_in_both_tables(family: str, dtype: torch.dtype) -> None:
    """The sine at position 0 is exactly 0: it has no rounding that an error there could be measured in."""
    reference, candidate = mended(family, later, dtype=dtype)
    for shape in ((1, 17), (3, 29), (1, 1)):
        check(reference, candidate, random_tokens(reference, *shape, seed=5))
    tokens = random_tokens(reference, 2, 9)
    with torch.no_grad():
        theirs, ours = (m(tokens, position_ids=torch.arange(4, 13)[None]).logits for m in (candidate, reference))
    assert torch.equal(theirs, ours)


@pytest.mark.sliced
@pytest.mark.parametrize(("count", "shape"), [(1, (2, 1)), (1, (1, 17)), (3, (1, 17)), (3, (1, 1))])
def test_a_number_of_experts_is_mended_for_calls_of_any_length(count: int, shape: tuple[int, int]) -> None:
    """3 is also the number of layers, which is tried as what might hold it."""
    reference, candidate = mended("mixtral", chosen(count), shape)
    for rows, length in ((3, 29), (2, 1), (1, 1)):
        check(reference, candidate, random_tokens(reference, rows, length, seed=5))


@pytest.mark.sliced
@pytest.mark.parametrize(
    ("family", "plant"),
    [("mixtral", chosen(1)), ("qwen3_moe", relu), ("deepseek_v3", relu), ("gpt_oss", norm)],
)
def test_a_loop_over_the_experts_that_were_hit(family: str, plant: Plant) -> None:
    """In each call another graph, of which each replaced site changes what comes after it."""
    config = {"num_experts": 16} if family == "qwen3_moe" else {}
    reference, candidate = mended(family, plant, experts_implementation="eager", **config)
    for rows, length in ((3, 29), (1, 1)):
        check(reference, candidate, random_tokens(reference, rows, length, seed=5))


def generated(model: Any, **how: Any) -> Tensor:
    more = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(**more, **how)


@pytest.mark.sliced
@pytest.mark.parametrize(
    ("family", "plant", "config"),
    [
        ("llama", relu, {"attn": "sdpa"}), ("llama", norm, {}), ("llama", later, {}), ("llama", bias, {}),
        ("gpt2", halved, {}), ("gemma2", relu, {}), ("mixtral", chosen(1), {"experts_implementation": "eager"}),
    ],
)  # fmt: skip
def test_a_mended_model_generates_with_a_cache(family: str, plant: Plant, config: dict[str, Any]) -> None:
    reference, candidate = mended(family, plant, **config)
    tokens, mask = left_padded(reference, lengths=(12, 7))
    for how in (
        {"input_ids": tokens[:1]},
        {"input_ids": tokens, "attention_mask": mask},
        {"input_ids": tokens[:1, :1]},
    ):
        assert torch.equal(generated(candidate, **how), generated(reference, **how))


def test_scores_are_mended_in_calls_that_go_on_from_a_cache() -> None:
    """What a cache holds is nobody's to read: the graft keeps the keys that its calls showed."""
    reference, candidate = mended("llama", scale)
    tokens, mask = left_padded(reference, lengths=(12, 7))
    for how in ({"input_ids": tokens[:1]}, {"input_ids": tokens, "attention_mask": mask}):
        assert torch.equal(generated(candidate, **how), generated(reference, **how))


def test_a_cache_that_others_filled_or_changed_is_refused() -> None:
    reference, candidate = mended("llama", scale)
    tokens = random_tokens(reference, 2, 12)
    with torch.no_grad():
        theirs = reference(tokens, use_cache=True).past_key_values
        with pytest.raises(CaptureError, match="use_cache=False"):
            candidate(tokens[:, :1], past_key_values=theirs)
        own = candidate(tokens, use_cache=True).past_key_values
        own.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(CaptureError, match="use_cache=False"):
            candidate(tokens[:, :1], past_key_values=own)


def test_a_mask_in_other_words_is_refused_where_it_is_read() -> None:
    reference, candidate = mended("llama", scale)
    seen = torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
    with pytest.raises(CaptureError, match="attention_mask"):
        candidate(random_tokens(reference, 1, 9), attention_mask=seen)


def test_a_path_is_followed_by_the_code_around_each_place() -> None:
    """Without a value: a mask of padding brings nodes of its own, one token leaves some out."""
    model = tiny("llama")
    tokens, mask = left_padded(model)
    known = trace(model, tokens)
    for other in (trace(model, tokens, mask=mask), trace(model, tokens[:1, :1]), known):
        at = Follower(known, other)
        for node in known.nodes:
            if node.function == "linear":
                there = at(node.index)
                assert there is not None
                assert other.nodes[other.nodes[there].inputs[1]].owner == known.nodes[node.inputs[1]].owner
    assert all(at(n.index) == n.index for n in known.nodes if n.index in known.live)
