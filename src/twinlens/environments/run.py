"""Run a recorder in another environment, and hear what it has to say.

The recorder is `python -m twinlens.recorder JOB.json`. It writes JSON lines on its standard output:

    {"progress": "layer 3 of 26"}
    {"error": "One sentence.", "kind": "CheckpointError"}
    {"done": "path/of/the/recording"}
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from twinlens import errors
from twinlens.environments.make import clean_environ
from twinlens.errors import EnvironmentFailed, TwinlensError

PACKAGE = Path(__file__).parents[1]
"""The folder of twinlens itself, lent to the other environment."""

GRACE_SECONDS = 10.0


def run_recorder(
    python: Path,
    job: dict[str, Any],
    progress: Callable[[str], None],
    *,
    module: str = "twinlens.recorder",
) -> None:
    """Run a recorder to its end.

    Args:
        python: the interpreter of the environment.
        job: what to do, JSON; written to a file that the recorder gets as its only argument. The
            recorder starts in the current folder, so that relative paths hold.
        progress: told each progress line.
        module: what is run; another one in tests.

    Raises:
        TwinlensError: the recorder's own error, of the class that it names.
        EnvironmentFailed: it did not start, was killed, or ended without `done`.
    """
    with tempfile.TemporaryDirectory(prefix="twinlens-job-") as folder:
        border = Path(folder)
        job_file = border / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        _lend_package(border)
        # A file and not a pipe: a recorder that warns a lot must not wait for us to read it.
        with (border / "stderr").open("w+", encoding="utf-8", errors="replace") as words:
            try:
                process = subprocess.Popen(
                    [python, "-m", module, job_file],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    env=_environ(border),
                )
            except OSError as error:
                raise EnvironmentFailed(
                    f"{python} does not start ({error}); remove its environment's folder, and it is made anew."
                ) from error
            with process:
                try:
                    done = _listen(process, progress)
                except TwinlensError:
                    _let_end(process)
                    raise
                except BaseException:
                    process.kill()  # interrupted: nothing may go on writing
                    raise
            if process.returncode or not done:
                raise EnvironmentFailed(_obituary(python, process.returncode, border / "stderr"))


def _let_end(process: "subprocess.Popen[str]") -> None:
    """After its error a recorder may tidy up, but not for ever."""
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _lend_package(border: Path) -> None:
    """Make twinlens importable there, and nothing else of this environment.

    Its real parent folder may be a site-packages, whose transformers would then be found first.
    And its `__init__` names the whole library, which needs more than a recorder has: a package
    that is only a path leads to the same modules.
    """
    (border / "twinlens").mkdir()
    text = f'"""The recorder\'s view of twinlens."""\n\n__path__ = [{str(PACKAGE)!r}]\n'
    (border / "twinlens" / "__init__.py").write_text(text, encoding="utf-8")


def _environ(border: Path) -> dict[str, str]:
    return clean_environ() | {
        "PYTHONPATH": str(border),
        "PYTHONSAFEPATH": "1",  # a transformers.py in the current folder is none of its business
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the package may be read-only, or of another Python
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",  # TransformerLens imports it
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
    }


def _listen(process: "subprocess.Popen[str]", progress: Callable[[str], None]) -> bool:
    """Hear the recorder to its end; whether it said that it is done."""
    assert process.stdout is not None  # a pipe was asked for
    done = False
    for line in process.stdout:
        told = _message(line)
        if "error" in told:
            raise _error(told)
        if "progress" in told:
            progress(str(told["progress"]))
        done = done or "done" in told
    return done


def _message(line: str) -> dict[str, Any]:
    """A line of the recorder; empty where a library printed something in between."""
    try:
        told: object = json.loads(line)
    except ValueError:
        return {}
    return cast(dict[str, Any], told) if isinstance(told, dict) else {}


def _error(told: dict[str, Any]) -> TwinlensError:
    kind = vars(errors).get(str(told.get("kind")))
    if isinstance(kind, type) and issubclass(kind, TwinlensError):
        return kind(str(told["error"]))
    return EnvironmentFailed(str(told["error"]))


def _obituary(python: Path, status: int, stderr: Path) -> str:
    if status < 0:
        how = f"was killed by signal {-status}"
        if status == -9:
            how += " (out of memory?)"
    elif status:
        how = f"ended with status {status}"
    else:
        how = "ended without a recording"
    lines = stderr.read_text(encoding="utf-8", errors="replace").splitlines()
    words = " | ".join([line.strip() for line in lines if line.strip()][-3:])
    told = f"; its last words: {words[-500:]}" if words else " and said nothing"
    return f"The recorder in {python.parents[1].name} {how}{told}."
