"""A config is read whole, in its old and new spelling, or refused with the key at fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from twinlens import ConfigError, UnknownArchitecture, declare
from twinlens.families import FAMILIES as DECLARED
from twinlens.families.config import IRRELEVANT
from twinlens.museum.tiny import ALL, CONFIGS, ROPE
from twinlens.spec import stored_name

every_family = pytest.mark.parametrize("family", ALL)


def config_of(family: str, **config: Any) -> dict[str, Any]:
    return ALL[family](**config).config.to_dict()


@pytest.mark.parametrize("rope", ROPE)
def test_old_spelling_of_rotary(rope: str) -> None:
    new = config_of("llama", rope=rope)
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": ROPE[rope]["rope_theta"], "torch_dtype": "float32"}
    kind = ROPE[rope]["rope_type"]
    if kind != "default":
        scaling = {k: v for k, v in ROPE[rope].items() if k not in ("rope_theta", "rope_type")}
        for name in ("type", "rope_type"):
            assert declare(old | {"rope_scaling": scaling | {name: kind}}) == declare(new)
    else:
        assert declare(old | {"rope_scaling": None}) == declare(new)


@pytest.mark.parametrize("family", [f for f in ALL if "rope_parameters" in CONFIGS[f][1] and f != "gemma3_text"])
def test_old_spelling_in_every_family(family: str) -> None:
    new = config_of(family)
    said = new["rope_parameters"]
    old = {k: v for k, v in new.items() if k != "rope_parameters"} | {"rope_theta": said["rope_theta"]}
    if "partial_rotary_factor" in said:
        old |= {{"gpt_neox": "rotary_pct"}.get(family, "partial_rotary_factor"): said["partial_rotary_factor"]}
    if said["rope_type"] != "default":
        old["rope_scaling"] = {k: v for k, v in said.items() if k not in ("rope_theta", "partial_rotary_factor")}
    assert declare(old) == declare(new)
    assert declare(old | {"rope_theta": 7001.0}) != declare(new)


def test_gemma3_of_one_base_for_each_kind_of_layer() -> None:
    new = config_of("gemma3_text", layer_types=None, num_hidden_layers=7)
    old = {k: v for k, v in new.items() if k not in ("layer_types", "rope_parameters")}
    old |= {"rope_theta": 7000.0, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert declare(old | {"sliding_window_pattern": 6}) == declare(new)
    windows = [declare(old).at[f"blocks.{i}.attn.hook_attn_scores"].op.window for i in range(7)]  # type: ignore[attr-defined]
    assert windows == [8, 8, 8, 8, 8, None, 8]


@pytest.mark.parametrize("family", ["cohere2", "qwen2", "qwen3", "smollm3"])
def test_without_layer_types(family: str) -> None:
    """Older configs say by a pattern which layers slide."""
    more = {} if family == "cohere2" else {"use_sliding_window": True, "sliding_window": 8}
    new = config_of(family, num_hidden_layers=6, **more)
    assert declare({k: v for k, v in new.items() if k not in ("layer_types", "no_rope_layers")}) == declare(new)


def test_a_stretch_that_is_left_out_follows_from_both_lengths() -> None:
    said = {k: v for k, v in ROPE["yarn"].items() if k != "factor"}
    config = config_of("llama", rope="yarn") | {"max_position_embeddings": 64}
    assert declare(config | {"rope_parameters": said}) == declare(config)


@pytest.mark.parametrize("kinds", [["full_attention"], ["linear_attention"] * 3])
def test_kinds_of_layers_that_are_not_known(kinds: list[str]) -> None:
    with pytest.raises(ConfigError, match="layer_types"):
        declare(config_of("qwen2") | {"layer_types": kinds})


def test_gemma2_without_layer_types_alternates() -> None:
    new = config_of("gemma2")
    old = {k: v for k, v in new.items() if k not in ("layer_types", "rope_parameters")}
    assert declare(old | {"rope_theta": 7000.0}) == declare(new)


def test_gpt2_as_on_the_hub() -> None:
    hub = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    assert declare(hub).shape.positions == 1024


@every_family
def test_an_unknown_key_is_named(family: str) -> None:
    with pytest.raises(ConfigError, match=r"logit_temperature=2\.0"):
        declare(config_of(family) | {"logit_temperature": 2.0})


@every_family
def test_a_missing_key_is_named(family: str) -> None:
    config = config_of(family)
    del config["vocab_size"]
    with pytest.raises(ConfigError, match="'vocab_size'"):
        declare(config)


@every_family
def test_an_unknown_activation_is_named(family: str) -> None:
    config = config_of(family)
    names = ("activation_function", "activation", "hidden_activation", "hidden_act")
    key = next(name for name in names if name in config)
    with pytest.raises(ConfigError, match="'mish'"):
        declare(config | {key: "mish"})


def test_an_unknown_scaling_is_named() -> None:
    config = config_of("llama")
    for rope in ({"rope_type": "spiral"}, {"rope_type": "linear", "factor": 2.0, "beta": 1.0}):
        with pytest.raises(ConfigError, match=rope["rope_type"]):
            declare(config | {"rope_parameters": rope})


def test_a_scaling_without_its_number_is_named() -> None:
    with pytest.raises(ConfigError, match="factor"):
        declare(config_of("llama") | {"rope_parameters": {"rope_type": "linear"}})


def test_a_value_that_means_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_bidirectional_attention"):
        declare(config_of("gemma2") | {"use_bidirectional_attention": True})


def test_an_unknown_architecture_lists_those_known() -> None:
    with pytest.raises(UnknownArchitecture, match=r"gemma2, .*gpt2, .*llama.*mamba\.py"):
        declare({"model_type": "mamba"})


@every_family
def test_every_weight_of_transformers_is_used(family: str) -> None:
    model = ALL[family]()
    spec = declare(model.config.to_dict(), dtype=torch.float32)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        n for n, _ in model.named_parameters()
    }
    assert set(map(stored_name, spec.weight_names)) == set(model.state_dict()) - tied
    assert set(DECLARED) == {kind for kind, _, _ in CONFIGS.values()}


@every_family
def test_a_key_that_is_left_out_means_what_the_class_means(family: str) -> None:
    """Or is asked for: a default of our own that is another one would be the commonest fault of all."""
    whole = config_of(family)
    wrong = list[str]()
    for key in whole.keys() - {"model_type", "architectures", "transformers_version"}:
        without = {k: v for k, v in whole.items() if k != key}
        try:
            ours = declare(without)
        except ConfigError:
            continue
        theirs = CONFIG_MAPPING[whole["model_type"]].from_dict(without).to_dict()
        meant = declare(theirs | ({key: None} if key == "intermediate_size" else {}))  # the weights say it
        if ours != meant:
            wrong.append(key)
    assert wrong == []


@pytest.mark.parametrize(("key", "value"), [("pruned_heads", {"0": [1]}), ("quantization_config", {"bits": 4})])
def test_what_changes_the_function_of_any_family(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        declare(config_of("gpt2") | {key: value})


WRONG: list[object] = [0, -3, "48", float("nan"), [None], {"a": 1}, ["silu"], 10**400]


@every_family
def test_whatever_stands_at_a_key_is_read_or_refused(family: str) -> None:
    """A traceback would fail this: every key of every family, with values of every kind."""
    whole = config_of(family)
    rotary = whole.get("rope_parameters") or {}
    changed: list[dict[str, Any]] = [{key: value} for key in whole.keys() - IRRELEVANT.keys() for value in WRONG]
    changed += [{"rope_parameters": rotary | {key: value}} for key in rotary for value in WRONG]
    said = list[str]()
    for change in changed:
        try:
            declare(whole | change)
        except (ConfigError, UnknownArchitecture) as error:
            said.append(str(error))
    assert said
    assert not [words for words in said if "\n" in words or len(words) > 600]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0 where a whole number from 1"),
        ({"num_hidden_layers": -2}, "num_hidden_layers=-2 where a whole number from 1 to 10000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 where"),
        ({"hidden_size": "48"}, "hidden_size='48' where a whole number"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps='x' where a number of at least 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan where"),
        ({"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] where a name"),
        ({"attention_bias": "false"}, "attention_bias='false' where true or false"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\] where an object"),
        ({"rope_parameters": {"rope_type": ["x"]}}, r"rope_type=\['x'\] where a name"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor=0 where a number above 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "3 rotated numbers of the 12 of a head"),
        ({"num_key_value_heads": 3}, "4 heads share 3 keys and values"),
        ({"num_attention_heads": 96, "num_key_value_heads": 96, "head_dim": None}, "each 0 wide"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\] where a name"),
    ],
)
def test_a_value_that_cannot_be_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        declare(config_of("llama") | change)


def test_lists_of_another_length_are_named() -> None:
    longrope = config_of("phi3") | {"rope_parameters": ROPE["longrope"] | {"partial_rotary_factor": 0.5}}
    with pytest.raises(ConfigError, match="6 numbers in short_factor where 3 were expected"):
        declare(longrope)
    with pytest.raises(ConfigError, match=r"no_rope_layers=\[1\], and that it has 3 layers"):
        declare(config_of("smollm3") | {"no_rope_layers": [1]})


def test_a_stretch_that_is_left_out_counts_for_the_scores_too() -> None:
    said = {k: v for k, v in ROPE["yarn, mscale"].items() if k != "factor"}
    config = config_of("deepseek_v3") | {"max_position_embeddings": 64}
    assert declare(config | {"rope_parameters": said}) == declare(config)
