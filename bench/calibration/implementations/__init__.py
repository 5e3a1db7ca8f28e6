"""Implementations that we did not write, each with the models that it knows, under the weights of our tiny ones.

What they are is installed by `make calibrate` from requirements/foreign.txt into build/foreign, which stands last on
the path: whatever .venv has comes from there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from bench.calibration.implementations import lens, litgpt, llama_cpp, mlx, onnx, scratch, translate, tune
from bench.calibration.implementations.row import Row

INSTALLED = Path("build/foreign")
IMPLEMENTATIONS: Mapping[str, Mapping[str, Row]] = {
    "litgpt": litgpt.ROWS,
    "llms-from-scratch": scratch.ROWS,
    "transformer-lens": lens.ROWS,
    "torchtune": tune.ROWS,
    "CTranslate2": translate.ROWS,
    "MLX": mlx.ROWS,
    "ONNX Runtime": onnx.ROWS,
    "llama.cpp": llama_cpp.ROWS,
}


def reachable() -> None:
    """Lets Python find what is installed for this, after everything else."""
    if (folder := str(INSTALLED.resolve())) not in sys.path:
        sys.path.append(folder)
