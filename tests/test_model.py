"""The native model: hooks, caches, memory, inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

import twinlens
from twinlens import Hook, InputError, Model, SpecError
from twinlens.inputs import evaluate, prepare
from twinlens.museum.tiny import FAMILIES, left_padded, random_tokens, save, tiny_gpt2, tiny_llama
from twinlens.spec import stored_name

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_weights_are_shared(family: str) -> None:
    theirs = FAMILIES[family]()
    native = twinlens.load(theirs)
    parameters = dict(theirs.named_parameters(remove_duplicate=False))
    for name in native.spec.weight_names:
        assert native.weight(name).data_ptr() == parameters[stored_name(name)].data_ptr()


@every_family
def test_a_folder_is_the_live_model(family: str, tmp_path: Path) -> None:
    theirs = FAMILIES[family]()
    tokens, mask = left_padded(theirs)
    native = twinlens.load(save(theirs, tmp_path))
    assert torch.equal(native(tokens, mask), twinlens.load(theirs)(tokens, mask))


def test_the_kernel_is_the_live_models_own() -> None:
    assert twinlens.load(tiny_llama(attn="sdpa")).spec.hidden
    assert not twinlens.load(tiny_llama(attn="sdpa"), attention="eager").spec.hidden


def test_another_dtype() -> None:
    native = twinlens.load(tiny_llama(), dtype=torch.bfloat16)
    theirs = tiny_llama(dtype=torch.bfloat16)
    tokens = random_tokens(theirs)
    assert torch.equal(native(tokens), theirs(tokens, use_cache=False).logits)


@every_family
def test_a_cache_holds_every_site_and_changes_nothing(family: str) -> None:
    theirs = FAMILIES[family]()
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    logits, cache = native.run_with_cache(tokens)
    assert tuple(cache) == native.spec.sites
    assert torch.equal(logits, native(tokens))


def test_sites_inside_a_kernel_are_computed_beside_it() -> None:
    theirs = tiny_llama(attn="sdpa")
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    logits, cache = native.run_with_cache(tokens, names=lambda n: n.endswith("hook_pattern"))
    assert list(cache) == [f"blocks.{n}.attn.hook_pattern" for n in range(3)]
    assert torch.equal(logits, native(tokens))
    _, eager = twinlens.load(theirs, attention="eager").run_with_cache(tokens)
    assert torch.equal(cache["blocks.0.attn.hook_pattern"], eager["blocks.0.attn.hook_pattern"])


@every_family
def test_heads_sum_to_what_attention_writes(family: str) -> None:
    theirs = FAMILIES[family]()
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    names = ["blocks.1.attn.hook_result", "blocks.1.attn.hook_out"]
    _, cache = native.run_with_cache(tokens, names=names)
    result, out = cache[names[0]], cache[names[1]]
    assert result.shape == (2, 24, 4, 48)
    bias = dict(native.spec.at[names[1]].weights).get("b")
    total = result.sum(2) + (native.weight(bias.name) if bias else 0.0)
    torch.testing.assert_close(total, out, rtol=1e-4, atol=1e-4)


def test_hooks_see_replace_and_come_in_order() -> None:
    native = twinlens.load(tiny_llama())
    tokens = random_tokens(tiny_llama())
    fired: list[str] = []

    def see(tensor: Tensor, hook: Hook) -> None:
        fired.append(f"{hook.layer()} {hook.name}")

    def double(tensor: Tensor, hook: Hook) -> Tensor:
        return 2 * tensor

    site = "blocks.1.hook_mlp_out"
    hooks = [(lambda name: name.endswith("hook_z"), see), (site, double), (site, see)]
    changed = native.run_with_hooks(tokens, fwd_hooks=hooks)
    assert fired == [
        "0 blocks.0.attn.hook_z",
        "1 blocks.1.attn.hook_z",
        "1 blocks.1.hook_mlp_out",
        "2 blocks.2.attn.hook_z",
    ]
    spec = native.spec.edit(twinlens.Set("blocks.1.hook_resid_post", "factor", 2.0))
    assert torch.equal(changed, Model(spec, native.weight)(tokens))


def test_a_hook_inside_a_kernel_unfuses_it() -> None:
    theirs = tiny_gpt2(attn="sdpa")
    native, tokens = twinlens.load(theirs), random_tokens(theirs)
    first = torch.zeros(24, 24)
    first[:, 0] = 1.0

    def only_the_first(pattern: Tensor, hook: Hook) -> Tensor:
        return first.expand_as(pattern)

    seen: dict[str, Tensor] = {}
    native.run_with_hooks(
        tokens,
        [
            ("blocks.0.attn.hook_pattern", only_the_first),
            ("blocks.0.attn.hook_z", lambda z, hook: seen.update(z=z)),
            ("blocks.0.attn.hook_v", lambda v, hook: seen.update(v=v)),
        ],
    )
    torch.testing.assert_close(seen["z"], seen["v"][:, :1].expand_as(seen["z"]))


def test_gradients_flow_from_a_hook_on() -> None:
    native, tokens = twinlens.load(tiny_llama()), random_tokens(tiny_llama())
    assert not native(tokens).requires_grad
    kept: list[Tensor] = []

    def watch(tensor: Tensor, hook: Hook) -> Tensor:
        kept.append(tensor.detach().requires_grad_())
        return kept[0]

    native.run_with_hooks(tokens, [("blocks.1.hook_resid_pre", watch)])[0, -1, 3].backward()
    assert kept[0].grad is not None
    assert kept[0].grad[0].abs().sum() > 0
    assert kept[0].grad[1].abs().sum() == 0


def test_a_plain_forward_keeps_no_site_alive() -> None:
    native, tokens = twinlens.load(tiny_llama()), random_tokens(tiny_llama())
    [*rows] = native._plan(frozenset())
    alive, most = set[str](), 0
    for row in rows:
        alive |= {row.unit.step.writes}
        alive -= set(row.frees)
        most = max(most, len(alive))
    assert alive == {"logits"}
    assert most <= 10
    assert native(tokens).shape == (2, 24, 103)


BAD = [
    (torch.zeros(0, 4, dtype=torch.long), "empty"),
    (torch.zeros(2, 0, dtype=torch.long), "empty"),
    (torch.zeros(2, 3), r"torch\.float32"),
    (torch.zeros(3, dtype=torch.long), r"\[batch, position\]"),
    (torch.tensor([[1, 2], [3, 101]]), r"tokens\[1, 1\] is 101.*0 to 100"),
    (torch.tensor([[1, -2]]), r"tokens\[0, 1\] is -2"),
    (torch.zeros(1, 129, dtype=torch.long), "positions 0 to 127"),
]


@pytest.mark.parametrize(("tokens", "message"), BAD)
def test_bad_tokens(tokens: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        twinlens.load(tiny_gpt2())(tokens)


def test_bad_mask_and_positions() -> None:
    native, tokens = twinlens.load(tiny_gpt2()), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match="attention_mask"):
        native(tokens, torch.ones(2, 4))
    with pytest.raises(InputError, match="positions"):
        native(tokens, positions=torch.arange(3))


def test_an_unknown_site_names_near_ones() -> None:
    native, tokens = twinlens.load(tiny_gpt2()), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match=r"near are blocks\.1\.attn\.hook_q"):
        native.run_with_hooks(tokens, [("blocks.1.hook_q", lambda x, hook: None)])
    with pytest.raises(InputError, match="picks no site"):
        native.run_with_cache(tokens, names=lambda name: False)


def test_inputs_change_as_the_spec_says() -> None:
    theirs = tiny_gpt2()
    native, (tokens, mask) = twinlens.load(theirs), left_padded(theirs)
    from_mask = "maximum(cumsum(mask) - 1, 0)"
    spec = native.spec.edit(twinlens.Input("positions", from_mask))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    edited = Model(spec, native.weight)(tokens, mask)
    assert torch.equal(edited, native(tokens, mask, positions))
    unmasked = native.spec.edit(twinlens.Input("mask", "1"))
    assert torch.equal(Model(unmasked, native.weight)(tokens, mask), native(tokens))
    assert torch.equal(prepare(native.spec, tokens, mask)["slots"], torch.arange(24))


@pytest.mark.parametrize("text", ["__import__('os')", "tokens.sum()", "1.5", "x", "mask ** 2", "("])
def test_an_expression_is_arithmetic_only(text: str) -> None:
    with pytest.raises(InputError, match="no change of an input"):
        evaluate(text, {"tokens": torch.ones(1)}, "tokens")


def test_a_step_that_reads_what_is_not_there() -> None:
    native = twinlens.load(tiny_llama())
    spec = native.spec.edit(twinlens.Rewire("blocks.0.hook_resid_mid", ("logits", "hook_embed")))
    with pytest.raises(SpecError, match=r"blocks\.0\.hook_resid_mid reads logits"):
        Model(spec, native.weight)


def test_the_door_is_light() -> None:
    code = """
import json, sys
import twinlens, twinlens.checkpoint, twinlens.model
print(json.dumps([m for m in ("transformers", "rich", "typer", "numpy.f2py") if m in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout) == []


def test_the_door_lists_what_it_opens() -> None:
    assert set(twinlens.__all__) == set(twinlens._MODULE_OF)
    assert twinlens.__version__ == metadata.version("twinlens")
    for name in twinlens.__all__:
        assert getattr(twinlens, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        twinlens.nothing  # noqa: B018
