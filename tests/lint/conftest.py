"""Checkpoints whose configs say things in other places, under other names, and ports that read them or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinlens.lint.check import lint
from twinlens.lint.result import Lint, Row
from twinlens.museum.tiny import save, tiny

Edit = Callable[[dict[str, Any]], None]
Checkpoint = Callable[..., Path]

PORT = '''
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING
from safetensors.torch import load_file


def make(folder, **dropped):
    """A port that forgets to pass on some keys, or has values of its own: `?rms_norm_eps=0.01`, `?rope_theta=null`."""
    said = json.loads((Path(folder) / "config.json").read_text())
    rotary = said.get("rope_parameters") or {}
    for key, value in dropped.items():
        part = rotary if key in ("rope_theta", "attention_factor", "factor") else said
        part.pop(key, None)
        if value != "null":
            part[key] = json.loads(value)
    config = CONFIG_MAPPING[said["model_type"]](**said)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
    model.tie_weights()
    return model, lambda tokens, mask: model(tokens, attention_mask=mask).logits
'''


@pytest.fixture(scope="session")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose `make(folder=…, key=…)` forgets keys of the config."""
    file = tmp_path_factory.mktemp("port") / "port.py"
    file.write_text(PORT)
    return file


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models by name, each saved once."""
    folder, made = tmp_path_factory.mktemp("lint"), dict[str, Path]()

    def of(name: str) -> Path:
        if name not in made:
            small = {} if name in ("gpt2", "gpt_bigcode") else {"num_hidden_layers": 2}
            made[name] = save(tiny(name, **small), folder / name.replace(", ", "-"))
        return made[name]

    return of


@pytest.fixture
def checkpoint(saved: Callable[[str], Path], tmp_path: Path) -> Checkpoint:
    """A copy of a tiny model whose config was edited."""

    def made(name: str, edit: Edit | None = None, **keys: Any) -> Path:
        to = shutil.copytree(saved(name), tmp_path / name)
        config: dict[str, Any] = json.loads((to / "config.json").read_text()) | keys
        if edit is not None:
            edit(config)
        (to / "config.json").write_text(json.dumps(config))
        return to

    return made


def linted(path: Path, source: str | None = None) -> Lint:
    """A lint that tells nobody how far it is."""
    return lint(path, source, lambda words: None, lambda what, done, of: None)


def row(found: Lint, key: str) -> Row:
    """The row of a key."""
    [one] = [r for r in found.rows if r.key == key]
    return one


def keys(rows: list[Row]) -> list[str]:
    """Their names."""
    return [r.key for r in rows]
