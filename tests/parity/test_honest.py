"""Recordings that no run can have made are refused by the sites' names; other sums are differences of a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import twinlens
from tests.parity.judged import sublayers
from twinlens.errors import RecordingError
from twinlens.museum.tiny import FAMILIES, random_tokens

Sites = dict[str, Tensor]


def recorded(family: str, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, twinlens.Recording]:
    model = FAMILIES[family](3, dtype=dtype)
    return model, sublayers(model, random_tokens(model), None)


def named(sites: Sites, rest: str) -> list[str]:
    return [s for s in sites if s.endswith(rest)]


def repeat(rest: str) -> Callable[[Sites], None]:
    """One buffer for every layer."""

    def lie(sites: Sites) -> None:
        for site in named(sites, rest):
            sites[site] = sites[named(sites, rest)[0]]

    return lie


def in_place(sites: Sites) -> None:
    """`x += mlp(…)`, and the hook before it kept x itself."""
    for site in named(sites, "hook_resid_mid"):
        sites[site] = sites[site.replace("mid", "post")]


def all_in_place(sites: Sites) -> None:
    for site in [s for s in sites if "hook_resid" in s]:
        sites[site] = sites[named(sites, "hook_resid_post")[-1]]


def one_layer(sites: Sites) -> None:
    """Every layer shows the first; nothing but the stream is there."""
    for rest in ("hook_resid_pre", "hook_resid_post"):
        repeat(rest)(sites)
    for site in list(sites):
        if not site.endswith(("resid_pre", "resid_post", "logits")):
            del sites[site]


def after_the_sum(sites: Sites) -> None:
    for site in named(sites, "hook_attn_out"):
        sites[site] = sites[site.replace("attn_out", "resid_mid")]


def stale(sites: Sites) -> None:
    """The buffer of a site was written again."""
    for site in named(sites, "hook_resid_mid"):
        sites[site] = sites[site] + torch.randn_like(sites[site])


LIES = [
    ("llama", repeat("hook_attn_out"), "blocks.1.hook_attn_out is bit for bit blocks.0.hook_attn_out"),
    ("gpt2", repeat("hook_mlp_out"), "blocks.1.hook_mlp_out is bit for bit"),
    ("llama", in_place, "all 3 from blocks.0.hook_resid_mid to blocks.1.hook_resid_pre"),
    ("gemma2", in_place, "all 3 from blocks.0.hook_resid_mid to blocks.1.hook_resid_pre"),
    ("gpt2", all_in_place, "from blocks.0.hook_resid_pre to blocks.2.hook_resid_post"),
    ("llama", one_layer, "blocks.0.hook_resid_pre and blocks.0.hook_resid_post"),
    ("gemma2", after_the_sum, "blocks.0.hook_attn_out is bit for bit blocks.0.hook_resid_mid"),
    ("llama", stale, "blocks.0.hook_resid_mid is not"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "lie", "words"), LIES)
def test_refused(family: str, lie: Callable[[Sites], None], words: str, dtype: torch.dtype) -> None:
    model, honest = recorded(family, dtype)
    sites = dict(honest.sites)
    assert twinlens.compare(model, honest).verdict != "different"
    lie(sites)
    with pytest.raises(RecordingError, match=words.replace(".", r"\.")):
        twinlens.compare(model, twinlens.Recording.from_tensors(sites, tokens=honest.tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_before_the_point(dtype: torch.dtype) -> None:
    """Gemma-2's sublayer output before its post-norm, and its embedding before its factor."""
    model, honest = recorded("gemma2", dtype)
    raw = dict[str, Tensor]()
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(
            lambda m, a, out, i=i: raw.__setitem__(f"blocks.{i}.hook_attn_out", out[0].detach())
        )
    with torch.no_grad():
        model(honest.tokens)
        plain = torch.nn.functional.embedding(honest.tokens, model.model.embed_tokens.weight)
    inner = twinlens.Recording.from_tensors({**honest.sites, **raw}, tokens=honest.tokens)
    unscaled = twinlens.Recording.from_tensors({**honest.sites, "hook_embed": plain}, tokens=honest.tokens)
    with pytest.raises(RecordingError, match=r"blocks\.0\.hook_attn_out is taken before .*\.attn\.hook_out"):
        twinlens.compare(model, inner)
    with pytest.raises(RecordingError, match=r"hook_embed is taken before its factor"):
        twinlens.compare(model, unscaled)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("shown", [("hook_q", "hook_attn_out", "hook_resid_pre"), ("hook_resid_pre",)])
def test_a_norm_after_its_weight(family: str, shown: tuple[str, ...]) -> None:
    model = FAMILIES[family](3)
    tokens = random_tokens(model)
    with torch.no_grad():
        logits, cache = twinlens.load(model).run_with_cache(tokens)
    sites = {s: cache[s] for s in cache if s.endswith((*shown, "ln1.hook_normalized"))} | {"logits": logits}
    honest = twinlens.Recording.from_tensors(sites, tokens=tokens)
    assert twinlens.compare(model, honest).verdict != "different"
    late = {s: cache[s.replace("normalized", "out")] for s in named(sites, "normalized")}
    with pytest.raises(RecordingError, match=r"ln1\.hook_normalized is taken after its weight .* so are 2 more"):
        twinlens.compare(model, twinlens.Recording.from_tensors({**sites, **late}, tokens=tokens))


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_sums_are_no_lies(factor: float, dtype: torch.dtype) -> None:
    """A model that adds half of what its MLP gives, or nothing, is another model and no broken recording."""
    model, _ = recorded("llama", dtype)
    tokens = random_tokens(model)
    reference = sublayers(model, tokens, None)
    for layer in model.model.layers:
        inner = layer.mlp.forward
        layer.mlp.forward = lambda x, inner=inner: inner(x) * factor
    candidate = sublayers(model, tokens, None)
    assert twinlens.compare(FAMILIES["llama"](3, dtype=dtype), candidate).verdict == "different"
    shown = dict(candidate.sites)
    for site in named(shown, "hook_mlp_out"):
        shown[site] = reference.sites[site] if factor == 0.0 else shown[site] / factor
    report = twinlens.compare(FAMILIES["llama"](3, dtype=dtype), twinlens.Recording.from_tensors(shown, tokens=tokens))
    assert report.verdict == "different"
