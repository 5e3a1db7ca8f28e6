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
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from twinlens import errors
from twinlens.environments.make import clean_environ
from twinlens.errors import EnvironmentFailed, TwinlensError

PACKAGE = Path(__file__).parents[1]
"""The folder of twinlens itself, lent to the other environment."""

KEPT_LINES = 200  # of the recorder's standard error: a traceback, not hours of warnings


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
        try:
            process = subprocess.Popen(
                [python, "-m", module, job_file],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=_environ(border),
            )
        except OSError as error:
            raise EnvironmentFailed(
                f"{python} does not start ({error}); remove its environment's folder, and it is "
                "made anew."
            ) from error
        with process:
            try:
                _listen(process, progress)
            except BaseException:
                process.kill()  # interrupted, or an error told: nothing may go on writing
                raise


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


def _listen(process: "subprocess.Popen[str]", progress: Callable[[str], None]) -> None:
    assert process.stdout is not None  # pipes were asked for
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=KEPT_LINES)
    reader = threading.Thread(target=_keep, args=(process.stderr, last), daemon=True)
    reader.start()  # beside the other pipe: a full one would stop the recorder
    done = False
    for line in process.stdout:
        told = _message(line)
        if "error" in told:
            raise _error(told)
        if "progress" in told:
            progress(str(told["progress"]))
        done = done or "done" in told
    status = process.wait()
    reader.join(timeout=5)
    if status or not done:
        raise EnvironmentFailed(_obituary(process.args, status, last))


def _keep(pipe: IO[str], last: "deque[str]") -> None:
    for line in pipe:
        last.append(line.rstrip())


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


def _obituary(command: Any, status: int, last: "deque[str]") -> str:
    if status < 0:
        how = f"was killed by signal {-status}"
        if status == -9:
            how += " (out of memory?)"
    elif status:
        how = f"ended with status {status}"
    else:
        how = "ended without a recording"
    words = [line.strip() for line in last if line.strip()][-3:]
    told = f"; its last words: {' | '.join(words)[-500:]}" if words else " and said nothing"
    return f"The recorder in {Path(command[0]).parents[1].name} {how}{told}."
