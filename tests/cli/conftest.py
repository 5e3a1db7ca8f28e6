"""Models on disk, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinlens.museum.tiny import save, tiny_gemma2, tiny_llama

TWINLENS = Path(sys.executable).with_name("twinlens")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `gemma2`, `wide` with a wider MLP, `llama`, and `scaled`: gemma2 with another divisor of scores."""
    folder = tmp_path_factory.mktemp("models")
    save(tiny_gemma2(num_hidden_layers=2), folder / "gemma2")
    save(tiny_gemma2(num_hidden_layers=2, intermediate_size=96), folder / "wide")
    save(tiny_llama(), folder / "llama")
    changed(folder / "gemma2", folder / "scaled", query_pre_attn_scalar=32)
    return folder


def changed(model: Path, to: Path, **config: Any) -> Path:
    """A copy of a model with another config."""
    shutil.copytree(model, to)
    said = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(said | config))
    return to


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`twinlens …` as a user's shell starts it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "HF_", "TQDM"))}
    return subprocess.run(
        [TWINLENS, *(str(a) for a in arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        text=True,
        encoding="utf-8",
        env=environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
