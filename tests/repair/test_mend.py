"""A live module is mended by what it holds, by its weights, or by a graft; and what was done can be undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import twinlens
from twinlens.errors import CaptureError
from twinlens.museum import named
from twinlens.museum.tiny import random_tokens, tiny_gemma2, tiny_gpt2, tiny_llama
from twinlens.museum.visit import compared

Plant = Callable[[Any], None]


def mended(model: Any, plant: Plant, **how: Any) -> tuple[Any, twinlens.Report, twinlens.Report]:
    candidate = copy.deepcopy(model)
    with torch.no_grad():
        plant(candidate)
    tokens = random_tokens(model, 2, 17, seed=1)
    report = twinlens.compare(model, candidate, tokens=tokens)
    assert report.verdict != "identical"
    return candidate, report, report.fix(candidate, **how)


def scale(model: Any) -> None:
    for x in model.model.layers:
        x.self_attn.scaling = 0.25


def rows(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight[3] = 0.0


def thirds(model: Any) -> None:
    model.transformer.h[1].attn.c_attn.weight[:, 3] *= 2.0


def tied(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def bias(model: Any) -> None:
    """The reference has none, so that nothing of its holds what it should be."""
    model.lm_head.bias = nn.Parameter(torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(0)))


def norm(model: Any) -> None:
    """What attention reads is the residual stream, which others read as it is."""
    model.model.layers[1].input_layernorm = nn.Identity()


def code(model: Any) -> None:
    """A ReLU that no attribute holds."""
    for x in model.model.layers:
        x.mlp.forward = lambda y, m=x.mlp: m.down_proj(F.relu(m.gate_proj(y)) * m.up_proj(y))


def order(model: Any) -> None:
    for x in model.model.layers:
        half = x.mlp.down_proj.in_features // 2
        x.mlp.down_proj.forward = lambda y, w=x.mlp.down_proj.weight, n=half: (
            F.linear(y[..., :n], w[:, :n]) + F.linear(y[..., n:], w[:, n:])
        )


@pytest.mark.parametrize(
    ("build", "plant", "words"),
    [
        (tiny_llama, scale, "self_attn.scaling = "),
        (tiny_llama, rows, "mlp.up_proj.weight: "),
        (tiny_gpt2, thirds, "attn.c_attn.weight: "),
        (tiny_llama, tied, "lm_head.weight: a parameter of its own"),
        (tiny_llama, bias, "logits: computed as "),
        (tiny_llama, norm, "ln1."),
        (tiny_llama, code, "mlp.hook_post: computed as "),
    ],
)
def test_a_cause_is_mended_to_the_last_bit(build: Callable[[], Any], plant: Plant, words: str) -> None:
    after = mended(build(), plant)[2]
    assert (after.verdict, after.causes) == ("identical", [])
    assert any(words in said for said in after.mended), after.mended


def test_an_order_is_mended_only_when_it_is_asked_for() -> None:
    model = tiny_llama()
    assert mended(model, order)[2].verdict == "rounding"
    assert mended(model, order, order=True)[2].verdict == "identical"


def test_a_patch_says_what_to_change_and_changes_nothing() -> None:
    model = tiny_llama()
    candidate = copy.deepcopy(model)
    scale(candidate)
    tokens = random_tokens(model, 2, 17, seed=1)
    report = twinlens.compare(model, candidate, tokens=tokens)
    assert "self_attn.scaling = 0.288675" in report.patch()
    assert all(x.self_attn.scaling == 0.25 for x in candidate.model.layers)


def test_a_grafted_module_runs_other_texts_and_refuses_other_code() -> None:
    model = tiny_llama()
    candidate, _, _ = mended(model, code)
    other = random_tokens(model, 3, 29, seed=2)
    with torch.no_grad():
        assert torch.equal(candidate(other).logits, model(other).logits)
    for x in candidate.model.layers:
        x.mlp.forward = lambda y: y * 0.5
    with pytest.raises(CaptureError, match=r"other code|not visible"):
        candidate(other)


def test_a_recording_cannot_be_mended() -> None:
    model = tiny_llama()
    tokens = random_tokens(model, 1, 9, seed=1)
    with torch.no_grad():
        seen = twinlens.Recording.from_tensors({"logits": model(tokens).logits * 2}, tokens=tokens)
    with pytest.raises(twinlens.TwinlensError, match="patch"):
        twinlens.compare(model, seen, tokens=tokens).fix()


@pytest.mark.parametrize("layers", [2, 6])
def test_as_many_calls_for_many_layers_as_for_two(layers: int) -> None:
    """What mends one layer is set in the others at once."""
    reference = tiny_llama(num_hidden_layers=layers)
    candidate: Any = copy.deepcopy(reference)
    for layer in candidate.model.layers:
        layer.self_attn.scaling *= 1.25
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    calls = list[int]()
    candidate.register_forward_pre_hook(lambda *_: calls.append(1))
    assert report.fix(candidate).verdict == "identical"
    assert len(calls) <= 12


def test_a_head_that_is_not_tied_any_more_is_mended_where_it_is_read() -> None:
    def untied(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[5] += 0.3

    reference = tiny_gpt2()
    candidate: Any = copy.deepcopy(reference)
    with torch.no_grad():
        untied(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40))
    assert [c.parameter for c in report.causes] == ["weight"]
    assert report.fix(candidate).verdict == "identical"
    assert torch.equal(candidate.lm_head.weight, reference.transformer.wte.weight)
    assert torch.equal(candidate.transformer.wte.weight, reference.transformer.wte.weight)


def test_what_layers_share_is_not_changed_for_one_of_them() -> None:
    """A window in the config is every layer's; one layer alone has another one here."""
    reference: Any = tiny_gemma2()
    changed = copy.deepcopy(reference)
    own = changed.model.layers[0].self_attn
    plain = own.forward

    def wider(*args: Any, attention_mask: Any, **more: Any) -> Any:
        at = torch.arange(attention_mask.shape[-1])
        mask = torch.where((at[:, None] - at[None] == 8)[None, None], 0.0, attention_mask)
        return plain(*args, attention_mask=mask, **more)

    own.forward = wider
    report = twinlens.compare(changed, reference, tokens=random_tokens(reference, 2, 40))
    assert [(c.parameter, c.reference, c.candidate, c.layers) for c in report.causes] == [("attn.window", 9, 8, [0])]
    assert report.fix(reference).verdict == "identical"
    assert reference.config.sliding_window == 8


def regrouped(model: Any) -> None:
    """Key/value heads exchanged with all that belongs to them, in every layer; and a row that is halved."""
    for layer in model.model.layers:
        a = layer.self_attn
        for product, axis in ((a.q_proj, 0), (a.k_proj, 0), (a.v_proj, 0), (a.o_proj, 1)):
            product.weight.copy_(torch.cat(product.weight.chunk(2, dim=axis)[::-1], dim=axis))
    model.model.layers[1].self_attn.o_proj.weight[3] *= 0.5


@pytest.mark.parametrize("config", [{}, {"attn": "sdpa"}, {"dtype": torch.bfloat16}])
def test_weights_that_belong_together_are_mended_together(config: dict[str, Any]) -> None:
    """Queries without their keys would be worse than both as they were: what is no fault is left in other layers."""
    candidate, _, after = mended(tiny_llama(**config), regrouped)
    assert (after.verdict, after.causes) == ("rounding", [])
    copied = {words.split(":")[0] for words in after.mended}
    assert copied == {f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert len(after.gauges) == 2
    reference, tokens = tiny_llama(**config), random_tokens(candidate, 3, 11, seed=7)
    assert twinlens.compare(reference, candidate, tokens=tokens).verdict == "rounding"


@pytest.mark.sliced
@pytest.mark.parametrize("name", ["partial-rotary-full-width", "gemma3-local-base-used-everywhere"])
def test_a_table_is_mended_where_it_is_read(name: str) -> None:
    """Of one width that no layer shows, or the same as that of other layers, which have it rightly."""
    candidate, report = compared(named(name))
    after = report.fix(candidate)
    assert (after.verdict, after.causes) == ("identical", [])


def test_layers_whose_norms_stand_elsewhere_are_mended_as_a_whole() -> None:
    """Each step in its place would be right, and the layer not; and what it keeps in a cache is not what it reads."""
    candidate, report = compared(named("olmo2-run-as-pre-norm"))
    after = report.fix(candidate)
    assert (after.verdict, after.causes) == ("identical", [])
    tokens = random_tokens(candidate, 1, 9)
    kept = candidate(tokens, use_cache=True).past_key_values
    assert torch.equal(candidate(tokens).logits, named("olmo2-run-as-pre-norm").reference()(tokens).logits)
    with pytest.raises(CaptureError, match="use_cache=False"):
        candidate(tokens[:, :1], past_key_values=kept)


@pytest.mark.parametrize("name", ["neox-two-norms-shared", "easylm-theta-never-passed", "llama-in-parallel"])
def test_what_was_told_from_logits_is_mended_where_it_is(name: str) -> None:
    """The recording showed logits alone; the model that is to be mended shows all."""
    candidate, report = compared(named(name), "logits")
    after = report.fix(candidate)
    assert (after.verdict, after.causes) == ("identical", [])
