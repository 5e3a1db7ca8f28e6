"""What matters is said, with the value in effect and the reason; what does not matter is no matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lint.conftest import Checkpoint, keys, linted, row
from twinlens.errors import CheckpointError, InputError, SourceError, TwinlensError
from twinlens.museum.tiny import ROPE


def _port(file: Path, folder: Path, given: dict[str, str]) -> str:
    """Its source string; what is given empty, or null, is forgotten."""
    options = "&".join(f"{key}={value or 'null'}" for key, value in ({"folder": str(folder)} | given).items())
    return f"torch:{file}:make?{options}"


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "granite", pytest.param("gemma2", marks=pytest.mark.sliced), "mistral"]
)
def test_transformers_reads_what_it_wrote_itself(name: str, checkpoint: Checkpoint) -> None:
    path = checkpoint(name)
    before = {file: file.read_bytes() for file in path.iterdir()}
    found = linted(path)
    assert found.mattering == []
    assert found.besides == []
    assert found.verdict == "clean"
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    read = {r.key for r in found.rows if r.read == "yes"}
    governing = {r.key for r in found.rows if r.parameters and r.says is not None}
    assert {"vocab_size"} <= read
    assert governing <= read | {"tie_word_embeddings"}


def test_every_key_has_one_row_and_the_irrelevant_have_a_reason(checkpoint: Checkpoint) -> None:
    found = linted(checkpoint("llama"))
    assert len(set(keys(found.rows))) == len(found.rows)
    assert row(found, "attention_dropout").why == "dropout is off in evaluation"
    assert row(found, "rope_parameters.rope_theta").parameters == ("rotary.base",)
    assert row(found, "hidden_size").why == "a size of the weights"


@pytest.mark.parametrize(("given", "effective", "why"), [
    ({"rope_theta": ""}, "10000", "default taken"),
    ({"rope_theta": "5000.0"}, "5000", "a value of its own"),
])  # fmt: skip
def test_a_base_that_a_port_does_not_pass_on(
    given: dict[str, str], effective: str, why: str, checkpoint: Checkpoint, port: Path
) -> None:
    path = checkpoint("llama")
    found = linted(path, _port(port, path, given))
    assert keys(found.mattering) == ["rope_parameters.rope_theta"]
    [bad] = found.mattering
    assert bad.read != "yes"
    assert bad.effective == effective
    assert bad.why.startswith(why)


def test_an_epsilon_that_a_port_has_of_its_own(checkpoint: Checkpoint, port: Path) -> None:
    path = checkpoint("llama", rms_norm_eps=1e-3)
    found = linted(path, _port(port, path, {"rms_norm_eps": "0.01"}))
    assert keys(found.mattering) == ["rms_norm_eps"]
    assert float(found.mattering[0].effective or 0) == pytest.approx(0.01, rel=1e-2)


def test_what_is_not_read_and_happens_to_fit_is_said_and_no_matter(checkpoint: Checkpoint, port: Path) -> None:
    path = checkpoint("llama", rms_norm_eps=1e-6)
    found = linted(path, _port(port, path, {"rms_norm_eps": ""}))
    assert found.verdict == "clean"
    assert row(found, "rms_norm_eps").read != "yes"
    assert "the default happens to fit" in row(found, "rms_norm_eps").why


def test_scores_by_layer_that_a_port_forgets(checkpoint: Checkpoint, port: Path) -> None:
    path = checkpoint("gpt2", scale_attn_by_inverse_layer_idx=True)
    found = linted(path, _port(port, path, {"scale_attn_by_inverse_layer_idx": ""}))
    assert keys(found.mattering) == ["scale_attn_by_inverse_layer_idx"]
    assert found.mattering[0].effective == "False"


@pytest.mark.parametrize(
    "key", ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"]
)
def test_each_factor_of_granite_in_the_words_of_its_config(key: str, checkpoint: Checkpoint, port: Path) -> None:
    path = checkpoint("granite")
    found = linted(path, _port(port, path, {key: ""}))
    assert keys(found.mattering) == [key]
    assert float(found.mattering[0].effective or 0) == pytest.approx(1.0, rel=1e-3)


def test_old_spellings_are_read(checkpoint: Checkpoint) -> None:
    def old(config: dict[str, Any]) -> None:
        config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"]}
        config["rope_scaling"] = {"type": "linear", "factor": 4.0}

    found = linted(checkpoint("llama", old))
    assert found.verdict == "clean"
    assert row(found, "rope_theta").read == "yes"
    assert row(found, "rope_scaling.factor").read == "yes"


def test_a_value_that_another_place_outvotes(checkpoint: Checkpoint) -> None:
    found = linted(checkpoint("llama", rope_theta=500000.0))
    assert keys(found.mattering) == ["rope_theta"]
    assert found.mattering[0].effective == "7000.0"
    assert "rope_parameters.rope_theta says otherwise" in found.mattering[0].why


def test_a_misspelt_key(checkpoint: Checkpoint) -> None:
    def misspelt(config: dict[str, Any]) -> None:
        config["rms_norm_epsilon"] = config.pop("rms_norm_eps")

    found = linted(checkpoint("llama", misspelt))
    assert keys(found.mattering) == ["rms_norm_epsilon"]
    [bad] = found.mattering
    assert bad.why == "misspelt: this implementation reads rms_norm_eps"
    assert bad.effective == "1e-06"


def test_a_misspelt_key_of_a_rotary_part(checkpoint: Checkpoint) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 7000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    found = linted(checkpoint("llama", rope_parameters=yarn | {"attn_factor": 1.5}))
    assert keys(found.mattering) == ["rope_parameters.attn_factor"]
    [bad] = found.mattering
    assert "reads rope_parameters.attention_factor" in bad.why
    assert float(bad.effective or 0) == pytest.approx(1.1386, rel=1e-3)


@pytest.mark.parametrize("value", [3, "words", {"inside": [1]}])
def test_a_key_that_nobody_knows(value: Any, checkpoint: Checkpoint) -> None:
    found = linted(checkpoint("llama", frobnication=value))
    assert keys(found.mattering) == ["frobnication.inside" if isinstance(value, dict) else "frobnication"]
    assert "neither this implementation nor the family knows it" in found.mattering[0].why


def test_a_port_of_constants_never_opens_the_config(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = checkpoint("llama")
    elsewhere = tmp_path / "constants.json"
    elsewhere.write_text((path / "config.json").read_text())
    file = tmp_path / "constants.py"
    file.write_text(
        "import json\nfrom pathlib import Path\n"
        "from transformers import AutoModelForCausalLM, LlamaConfig\n"
        "from safetensors.torch import load_file\n"
        f"SAID = json.loads(Path({str(elsewhere)!r}).read_text())\n"
        "def make():\n"
        "    model = AutoModelForCausalLM.from_config(LlamaConfig(**SAID), attn_implementation='eager')\n"
        f"    model.load_state_dict(load_file({str(path / 'model.safetensors')!r}))\n"
        "    return model\n"
    )
    found = linted(path, f"torch:{file}:make")
    assert found.verdict == "clean"
    said = row(found, "rope_parameters.rope_theta")
    assert said.read == "no"
    assert said.why == "a constant of the code happens to fit; it never opens config.json"


def test_what_a_neighbour_reads_while_it_is_imported_is_read(
    checkpoint: Checkpoint, port: Path, tmp_path: Path
) -> None:
    path = checkpoint("llama")
    (tmp_path / "neighbour_of_a_port.py").write_text(
        "import json\nfrom pathlib import Path\n"
        f"THETA = json.loads(Path({str(path / 'config.json')!r}).read_text())['rope_parameters']['rope_theta']\n"
    )
    (tmp_path / "outer.py").write_text(
        port.read_text() + "\n\ninner = make\ndef outer(folder):\n"
        "    import neighbour_of_a_port\n"
        "    return inner(folder, rope_theta=str(neighbour_of_a_port.THETA))\n"
    )
    found = linted(path, f"torch:{tmp_path / 'outer.py'}:outer?folder={path}")
    assert row(found, "rope_parameters.rope_theta").read == "yes"
    assert found.verdict == "clean"


def test_a_fault_that_is_no_key_s_doing_is_told_apart(checkpoint: Checkpoint, port: Path, tmp_path: Path) -> None:
    path = checkpoint("llama")
    (tmp_path / "faulty.py").write_text(
        port.read_text() + "\n\ninner = make\ndef faulty(folder):\n"
        "    model, call = inner(folder)\n"
        "    with torch.no_grad():\n"
        "        model.model.layers[1].mlp.down_proj.weight[7] *= 0.5\n"
        "    return model, call\n"
    )
    found = linted(path, f"torch:{tmp_path / 'faulty.py'}:faulty?folder={path}")
    assert found.mattering == []
    assert found.verdict == "matters"
    assert "weight" in found.besides[0]


def test_a_key_that_is_read_and_something_else_computed(checkpoint: Checkpoint, port: Path, tmp_path: Path) -> None:
    path = checkpoint("llama")
    (tmp_path / "twice.py").write_text(
        port.read_text() + "\n\ninner = make\ndef twice(folder):\n"
        "    said = json.loads((Path(folder) / 'config.json').read_text())\n"
        "    return inner(folder, rope_theta=str(2 * said['rope_parameters']['rope_theta']))\n"
    )
    found = linted(path, f"torch:{tmp_path / 'twice.py'}:twice?folder={path}")
    assert keys(found.mattering) == ["rope_parameters.rope_theta"]
    assert (found.mattering[0].read, found.mattering[0].effective) == ("yes", "14000")


def test_a_rotary_part_that_hides_another(checkpoint: Checkpoint) -> None:
    found = linted(checkpoint("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}))
    [theta, kind] = found.mattering
    assert (theta.key, theta.effective) == ("rope_parameters.rope_theta", "10000")
    assert theta.why == "default taken: rope_scaling stands beside it, and counts"
    assert (kind.key, kind.says) == ("rope_parameters.rope_type", "default")
    assert "linear" in (kind.effective or "")


def test_a_port_that_looks_in_one_place_only(checkpoint: Checkpoint, port: Path, tmp_path: Path) -> None:
    def old(config: dict[str, Any]) -> None:
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]

    path = checkpoint("llama", old)
    (tmp_path / "newest.py").write_text(
        port.read_text() + "\n\ninner = make\ndef newest(folder):\n"
        "    said = json.loads((Path(folder) / 'config.json').read_text())\n"
        "    rotary = said.get('rope_parameters') or {'rope_theta': 10000.0}\n"
        "    model, call = inner(folder)\n"
        "    config = model.config\n"
        "    config.rope_parameters = {'rope_type': 'default', **rotary}\n"
        "    model.model.rotary_emb = type(model.model.rotary_emb)(config)\n"
        "    return model, call\n"
    )
    found = linted(path, f"torch:{tmp_path / 'newest.py'}:newest?folder={path}")
    assert keys(found.mattering) == ["rope_theta"]
    [bad] = found.mattering
    assert bad.effective == "10000"
    assert bad.why == (
        "default taken: the key stands at the top; this implementation reads rope_theta in rope_parameters"
    )


def test_windows_that_a_port_forgets(checkpoint: Checkpoint, port: Path) -> None:
    path = checkpoint("mistral")
    found = linted(path, _port(port, path, {"sliding_window": "null"}))
    assert keys(found.mattering) == ["sliding_window"]
    found = linted(path, _port(port, path, {"sliding_window": "9"}))
    assert (found.mattering[0].key, found.mattering[0].effective) == ("sliding_window", "9")


def test_an_activation_of_a_port_s_own(checkpoint: Checkpoint, port: Path) -> None:
    path = checkpoint("llama")
    found = linted(path, _port(port, path, {"hidden_act": '"gelu_pytorch_tanh"'}))
    assert keys(found.mattering) == ["hidden_act"]
    assert "gelu_tanh" in (found.mattering[0].effective or "")


def test_twinlens_itself_reads_every_key(checkpoint: Checkpoint) -> None:
    path = checkpoint("gemma2")
    assert linted(path, f"native:{path}").verdict == "clean"


@pytest.mark.environment
def test_an_older_release_does_not_read_what_a_newer_one_wrote(checkpoint: Checkpoint) -> None:
    path = checkpoint("llama", rope_parameters={**ROPE["llama3"], "rope_theta": 500000.0})
    found = linted(path, f"hf:{path}@transformers==4.43.2")
    assert set(keys(found.mattering)) == {f"rope_parameters.{name}" for name in ROPE["llama3"]}
    theta = row(found, "rope_parameters.rope_theta")
    assert (theta.read, theta.effective) == ("no", "10000")
    assert theta.why == (
        "default taken: the key stands under rope_parameters; this implementation reads rope_theta at the top"
    )
    assert row(found, "rope_parameters.rope_type").effective == "default"
    assert row(found, "rope_parameters.factor").why.endswith("this implementation reads factor in rope_scaling")


@pytest.mark.environment
def test_a_misspelt_key_in_another_environment(checkpoint: Checkpoint) -> None:
    def misspelt(config: dict[str, Any]) -> None:
        config["rms_norm_epsilon"] = config.pop("rms_norm_eps")
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]

    path = checkpoint("llama", misspelt)
    found = linted(path, f"hf:{path}@transformers==4.43.2")
    assert keys(found.mattering) == ["rms_norm_epsilon"]


@pytest.mark.environment
def test_a_table_of_its_own_is_what_an_implementation_reads_instead(checkpoint: Checkpoint) -> None:
    path = checkpoint("gemma2")
    found = linted(path, f"tl:{path}@transformer-lens==2.3.0,transformers==4.43.2")
    told = {r.key: r.effective for r in found.mattering}
    assert told["query_pre_attn_scalar"] == "224"
    assert told["attn_logit_softcapping"] == "50"
    assert told["final_logit_softcapping"] == "30"
    assert "layer_types" in told
    assert row(found, "sliding_window").read == "yes"


def test_what_cannot_be_linted_is_said(checkpoint: Checkpoint, tmp_path: Path, port: Path) -> None:
    path = checkpoint("llama")
    other = checkpoint("mistral")
    with pytest.raises(CheckpointError, match="does not exist"):
        linted(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        linted(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="another checkpoint"):
        linted(path, f"hf:{other}")
    with pytest.raises(SourceError, match="does not exist"):
        linted(path, "torch:nowhere.py:make")
    (path / "config.json").write_text("{")
    with pytest.raises(TwinlensError, match="not readable JSON"):
        linted(path)


def test_logits_that_are_other_ones_each_time_tell_nothing(checkpoint: Checkpoint, port: Path, tmp_path: Path) -> None:
    path = checkpoint("llama")
    (tmp_path / "random_port.py").write_text(
        port.read_text() + "\n\ninner = make\ndef noisy(folder):\n"
        "    model, call = inner(folder)\n"
        "    return model, lambda tokens, mask: call(tokens, mask) + torch.rand(1)\n"
    )
    with pytest.raises(SourceError, match="other logits each time"):
        linted(path, f"torch:{tmp_path / 'random_port.py'}:noisy?folder={path}")
