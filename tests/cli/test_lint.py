"""`twinlens lint` in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import changed, command


def test_a_config_that_is_read_is_0(models: Path, tmp_path: Path) -> None:
    done = command("lint", models / "llama", "--json", tmp_path / "keys.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("CLEAN  ")
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    said = json.loads((tmp_path / "keys.json").read_text())
    assert said["verdict"] == "clean"
    [theta] = [row for row in said["keys"] if row["key"] == "rope_parameters.rope_theta"]
    assert (theta["says"], theta["read"], theta["matters"], theta["parameters"]) == (
        7000.0,
        "yes",
        False,
        ["rotary.base"],
    )


def test_a_key_that_is_not_in_effect_is_1_and_named(models: Path, tmp_path: Path) -> None:
    path = changed(models / "llama", tmp_path / "llama", rope_theta=500000.0)
    done = command("lint", path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("MATTERS  1 of ")
    matters, rest = done.stdout.split("What does not")
    assert "rope_parameters.rope_theta says otherwise" in " ".join(matters.split()).replace("│", "")
    assert "rms_norm_eps" in rest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "does not exist"),
        (["LLAMA/model.safetensors"], "config.json"),
        (["LLAMA", "--for", "hf:GEMMA"], "another checkpoint"),
        (["LLAMA", "--for", "onnx:x"], "kind of source"),
        (["LLAMA", "--for", "torch:x.py:make"], "does not exist"),
        (["LLAMA", "--json", "/"], "folder"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_linted_is_2_in_one_line(arguments: list[str], says: str, models: Path) -> None:
    named = [a.replace("LLAMA", str(models / "llama")).replace("GEMMA", str(models / "gemma2")) for a in arguments]
    done = command("lint", *named)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_its_help_has_examples() -> None:
    said = command("lint", "--help").stdout
    assert "  twinlens lint" in said.partition("Example")[2]
