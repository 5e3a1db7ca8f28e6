"""The recorder starts where nothing but torch and safetensors is installed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["twinlens.recorder", "twinlens.first_case.stages"])
def test_it_needs_torch_and_safetensors_only(module: str):
    lines = (
        "import sys\n"
        "for name in ('jaxtyping', 'numpy', 'rich', 'transformers', 'typer'): sys.modules[name] = None\n"
        f"import {module}, twinlens.repair.mend, twinlens.text"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
