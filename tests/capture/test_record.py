"""Recordings of live modules: right in values, in padding, in weights; and never stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.capture.faults import activation, rows_halved, scaling
from twinlens.capture import graft, placed, record
from twinlens.families import declare
from twinlens.museum.tiny import FAMILIES, Tensors, left_padded, random_tokens, tiny_llama
from twinlens.spec import evaluate


def declared(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    return declare(model.config.to_dict()), Tensors.of(model)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_every_site_is_recorded_bit_for_bit(family: str, rows: int, padded: bool) -> None:
    model = FAMILIES[family]()
    spec, weights = declared(model)
    tokens, mask = left_padded(model, lengths=(31, 40)[-rows:])
    if not padded:
        mask = torch.ones_like(tokens)
    recording = record(model, spec, weights.__getitem__, tokens, mask=mask if padded else None)
    slots = torch.arange(tokens.shape[1])
    given = {"tokens": tokens, "positions": slots.expand_as(tokens), "mask": mask, "slots": slots}
    truth = evaluate(spec.steps, given, weights.__getitem__)
    assert set(recording.sites) == set(truth)
    for site, tensor in recording.sites.items():
        assert torch.equal(tensor, truth[site]), site
    assert recording.weights == {}
    assert recording.weights_equal == set(spec.weight_names)


def test_a_damaged_weight_is_recorded_under_the_checkpoints_name() -> None:
    model = tiny_llama()
    spec, weights = declared(model)
    name = "model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).copy_(rows_halved([2, 7])(weights[name].clone()))
    recording = record(model, spec, weights.__getitem__, random_tokens(model))
    assert list(recording.weights) == [name]
    changed = (recording.weights[name] != weights[name]).any(1).nonzero().flatten()
    assert changed.tolist() == [2, 7]


def test_a_placement_is_made_anew_where_the_code_has_changed() -> None:
    model = tiny_llama()
    spec, weights = declared(model)
    before = placed(model, spec, weights.__getitem__)
    activation(F.relu)(model)
    tokens = random_tokens(model)
    recording = record(model, spec, weights.__getitem__, tokens, placement=before)
    assert torch.equal(
        recording.sites["blocks.1.mlp.hook_post"],
        recording.sites["blocks.1.mlp.hook_pre"].relu() * recording.sites["blocks.1.mlp.hook_pre_linear"],
    )


def test_only_what_is_asked_for_is_kept() -> None:
    model = tiny_llama()
    spec, weights = declared(model)
    recording = record(model, spec, weights.__getitem__, random_tokens(model), keep=["logits"])
    assert list(recording.sites) == ["logits"]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_graft_mends_to_the_last_bit_and_comes_off_again(rows: int) -> None:
    model = tiny_llama()
    spec, weights = declared(model)
    tokens = random_tokens(model, rows, 30)
    with torch.no_grad():
        wanted = model(tokens).logits
        activation(F.relu)(model)
        scaling(1 / 3.0)(model)
        faulty = model(tokens).logits
        at = [s for s in spec.sites if s.endswith(("mlp.hook_post", "attn_scores"))]
        mend = {s: lambda sites, s=s: spec.at[s](sites, weights.__getitem__) for s in at}
        grafted = graft(model, spec, weights.__getitem__, mend)
        assert torch.equal(model(tokens).logits, wanted)
        assert torch.equal(model(tokens, use_cache=False).logits, wanted)
        grafted.remove()
        assert torch.equal(model(tokens).logits, faulty)
    assert not torch.equal(faulty, wanted)


def test_what_is_remembered_of_a_module_never_hides_a_change() -> None:
    model = tiny_llama()
    spec, weights = declared(model)
    tokens = random_tokens(model)

    def recorded() -> Any:
        return record(model, spec, weights.__getitem__, tokens)

    clean = recorded()
    scaling(1 / 3.0)(model)  # a number: the code is the same, so the places are
    scores = recorded().sites["blocks.1.attn.hook_attn_scores"]
    assert not torch.equal(scores, clean.sites["blocks.1.attn.hook_attn_scores"])
    activation(F.relu)(model)  # other code
    found = recorded()
    assert found.sites["blocks.0.mlp.hook_post"].ne(clean.sites["blocks.0.mlp.hook_post"]).any()
    name = "model.layers.1.mlp.down_proj.weight"
    model.get_parameter(name).data[3] *= 2  # in place, behind torch's back
    assert list(recorded().weights) == [name]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_token_says_nothing_of_its_scores(family: str) -> None:
    """Softmax of one score is 1, whichever tensor it is: with a fault the site is missing, not guessed."""
    model: Any = FAMILIES[family]()
    spec, weights = declared(model)
    for layer in model.model.layers:
        layer.self_attn.scaling *= 1.1
    seen = record(model, spec, weights.__getitem__, random_tokens(model, 2, 1)).sites
    assert not any(site.endswith("scores") for site in seen)
    assert any(site.endswith("pattern") for site in seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_runs_twice(family: str) -> None:
    """What the next one reads is what the second run gave."""
    model: Any = FAMILIES[family]()
    spec, weights = declared(model)
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    once, read = layers[1].forward, dict[str, torch.Tensor]()
    layers[1].forward = lambda h, *a, **k: once(once(h, *a, **k), *a, **k)
    tokens = random_tokens(model)
    seen = record(model, spec, weights.__getitem__, tokens).sites
    norm = layers[2].ln_1 if family == "gpt2" else layers[2].input_layernorm
    norm.register_forward_pre_hook(lambda _, given: read.update(it=given[0]))
    with torch.no_grad():
        model(tokens, use_cache=False)
    assert torch.equal(seen["blocks.2.hook_resid_pre"], read["it"])
