"""From requirements to what must be installed where: the interpreter, the pins, the folder."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from twinlens.errors import EnvironmentFailed

PINS = Path(__file__).parent / "pins"
"""One file for each environment that was resolved once: exact versions of everything in it.

The first line says on which Pythons they install, the preferred one first: `# python: 3.11 3.12`.
"""


@dataclass(frozen=True)
class Plan:
    """What one environment is.

    Attributes:
        requirements: as given, sorted, without the pseudo requirement `python==X.Y`.
        python: the interpreter that makes it.
        torch: the version of torch, installed before all else.
        pins: the file of exact versions, or `None` where pip decides.
        folder: where it stands or will stand.
    """

    requirements: tuple[str, ...]
    python: Path
    torch: str
    pins: Path | None
    folder: Path

    @property
    def name(self) -> str:
        """The requirements, for messages."""
        return ",".join(self.requirements) or "torch"


def plan(requirements: tuple[str, ...]) -> Plan:
    """Decide all of an environment; nothing is installed.

    Raises:
        EnvironmentFailed: no interpreter of the wanted version is on PATH.
    """
    wanted, rest = _python_of(requirements)
    pins = _pins_for(rest)
    text = pins.read_text(encoding="utf-8") if pins else ""
    header = re.match(r"# python: (.*)", text)
    python, version = interpreter(wanted or (tuple(header[1].split()) if header else ()), rest)
    pinned_torch = re.search(r"^torch==(\S+)", text, re.MULTILINE)
    torch = pinned_torch[1] if pinned_torch else metadata.version("torch").partition("+")[0]
    # Where a file pins everything, all ways to ask for it share one folder.
    content = [version, torch, *([text] if pins else rest)]
    digest = hashlib.sha256("\n".join(content).encode()).hexdigest()[:8]
    name = pins.stem if pins else slug(rest) or "torch"
    return Plan(rest, python, torch, pins, cache_root() / f"{name}-{digest}")


def cache_root() -> Path:
    """`$TWINLENS_CACHE/environments`, or below `~/.cache/twinlens`."""
    cache = os.environ.get("TWINLENS_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "twinlens") / "environments"


def slug(requirements: tuple[str, ...]) -> str:
    """`transformer-lens-2.3.0+transformers-4.43.2`: a file name for a list of requirements."""
    return "+".join(re.sub(r"[^a-z0-9.]+", "-", r.lower()).strip("-") for r in requirements)[:120]


def interpreter(versions: tuple[str, ...], needed_for: tuple[str, ...] = ()) -> tuple[Path, str]:
    """An interpreter of one of these versions and its version: this one, else the first on PATH.

    Raises:
        EnvironmentFailed: none is there.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not versions or here in versions:
        return Path(sys.executable), here
    for version in versions:
        for folder in os.get_exec_path():
            # A shim of a version manager may stand there and refuse; a Python may lack pip.
            if _is_python(candidate := Path(folder) / f"python{version}", version):
                return candidate, version
    which = f" for {','.join(needed_for)}" if needed_for else ""
    raise EnvironmentFailed(
        f"No working python{' or python'.join(versions)} with venv is on PATH{which}; install "
        "one, or name another with @python==X.Y."
    )


def _python_of(requirements: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    wanted = tuple(r.partition("==")[2] for r in requirements if r.startswith("python=="))
    odd = [r for r in requirements if re.match(r"python\b(?!==\d+\.\d+$)(?!-)", r)]
    if odd or len(wanted) > 1:
        raise EnvironmentFailed(
            f"{','.join(odd) or 'python==' + ' and python=='.join(wanted)} is no single "
            "interpreter; write python==3.12, say."
        )
    rest = (r for r in requirements if not r.startswith("python=="))
    return wanted, tuple(sorted(r.replace("_", "-") if "/" not in r else r for r in rest))


def _pins_for(requirements: tuple[str, ...]) -> Path | None:
    """The file of exactly these requirements, else the only one that holds them all."""
    exact = PINS / f"{slug(requirements)}.txt"
    if exact.is_file():
        return exact
    if not requirements:
        return None
    holding = [
        file
        for file in sorted(PINS.glob("*.txt"))
        if set(requirements) <= set(file.read_text(encoding="utf-8").splitlines())
    ]
    return holding[0] if len(holding) == 1 else None


def _is_python(candidate: Path, version: str) -> bool:
    if not os.access(candidate, os.X_OK):
        return False
    asked = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        told = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.stdout.strip() == version
