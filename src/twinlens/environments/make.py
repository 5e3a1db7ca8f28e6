"""An environment is made once: venv and pip, torch first, exact pins where we have them.

`ready.json` is written last. Without it the folder is unfinished, and the next call goes on there.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from twinlens.environments.lock import locked
from twinlens.environments.plan import Plan, plan
from twinlens.errors import EnvironmentFailed

Progress = Callable[[str], None]


def make(requirements: tuple[str, ...], progress: Progress) -> Path:
    """The Python of an environment that holds these requirements, torch and safetensors.

    Args:
        requirements: as pip takes them, such as `transformers==4.43.2`; `python==3.12` picks the
            interpreter.
        progress: told one short line for each thing that pip does; not called where the
            environment is ready.

    Raises:
        EnvironmentFailed: no such interpreter, or pip failed; its last error line and the log's
            path are in the message. The next call goes on where this one stopped.
    """
    wanted = plan(requirements)
    if _is_ready(wanted):
        return python_of(wanted.folder)
    lock = wanted.folder.with_name(wanted.folder.name + ".lock")
    try:
        with locked(lock, lambda: progress(f"{wanted.name}: another process is installing it")):
            if not _is_ready(wanted):  # that other process may have finished it
                _install(wanted, progress)
    except OSError as error:
        raise EnvironmentFailed(
            f"Environment {wanted.name} cannot be written: {error}; set TWINLENS_CACHE to a "
            "folder with some 2 GB of room."
        ) from error
    return python_of(wanted.folder)


def python_of(folder: Path) -> Path:
    """The interpreter inside an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_ready(wanted: Plan) -> bool:
    return (wanted.folder / "ready.json").is_file() and python_of(wanted.folder).exists()


def _install(wanted: Plan, progress: Progress) -> None:
    started = time.monotonic()
    progress(f"{wanted.name}: making an environment, once (some minutes, up to 2 GB)")
    wanted.folder.mkdir(parents=True, exist_ok=True)
    if not _works(wanted.folder):
        _run(wanted, [wanted.python, "-m", "venv", "--clear", wanted.folder], progress)
    _remove_half_installed(wanted.folder)
    pins = ["-c", wanted.pins] if wanted.pins else []
    # torch first and alone: the build that is chosen here (CPU is enough) is what the rest finds.
    _pip(wanted, [f"torch=={wanted.torch}", *pins], progress)
    if wanted.pins:
        # The file holds everything, so nothing is left to resolve.
        _pip(wanted, ["--no-deps", "-r", wanted.pins], progress)
    else:
        _pip(wanted, [f"torch=={wanted.torch}", "safetensors", *wanted.requirements], progress)
    _write_stamp(wanted, time.monotonic() - started)
    progress(f"{wanted.name}: ready after {time.monotonic() - started:.0f} s")


def _pip(wanted: Plan, arguments: Sequence[str | Path], progress: Progress) -> None:
    pip = [python_of(wanted.folder), "-m", "pip", "install", "--no-input"]
    flags = shlex.split(os.environ.get("PIP_FLAGS", ""))  # as in the Makefile: an index, say
    _run(wanted, [*pip, "--disable-pip-version-check", *flags, *arguments], progress)


def _run(wanted: Plan, command: Sequence[str | Path], progress: Progress) -> None:
    """Run a command, its output in the log, its milestones to `progress`."""
    log = wanted.folder.with_name(wanted.folder.name + ".log")
    lines: list[str] = []
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(map(str, command))}\n")
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=clean_environ(),
        ) as process:
            assert process.stdout is not None  # a pipe was asked for
            try:
                for line in process.stdout:
                    file.write(line)
                    lines.append(line.strip())
                    if milestone := _milestone(line):
                        progress(f"{wanted.name}: {milestone}")
            except BaseException:
                process.kill()  # an interruption must not leave pip writing behind our back
                raise
    if process.returncode:
        raise EnvironmentFailed(
            f"Environment {wanted.name} did not install: {_last_error(lines)}. The whole log is "
            f"{log}; mend the requirements or the network and run the same command again."
        )


def clean_environ() -> dict[str, str]:
    """The environment variables without those that lead a Python to another one's packages."""
    leading = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {k: v for k, v in os.environ.items() if k not in leading} | {"PYTHONNOUSERSITE": "1"}


def _milestone(line: str) -> str | None:
    """What of pip's output is worth a line: what it collects, large files, that it installs."""
    if found := re.match(r"\s*Collecting ([\w.-]+)", line):
        return f"collecting {found[1]}"
    if found := re.match(r"\s*Downloading (?:\S*/)?([^\s/]+?)-[^\s/]* \((\S+ [MG]B)\)", line):
        return f"downloading {found[1]} ({found[2]})"
    if line.startswith("Installing collected packages"):
        return f"installing {line.count(',') + 1} packages"
    return None


def _last_error(lines: list[str]) -> str:
    told = [line for line in lines if line]
    errors = [line for line in told if re.match(r"(?i)error\b", line)]
    last = (errors or told or ["it ended without a word"])[-1]
    return re.sub(r"^(?i:error):\s*", "", last).rstrip(".")


def _works(folder: Path) -> bool:
    """Whether the venv was made to its end, or only begun."""
    try:
        asked = subprocess.run([python_of(folder), "-m", "pip", "--version"], capture_output=True, check=False)
    except OSError:
        return False
    return asked.returncode == 0


def _remove_half_installed(folder: Path) -> None:
    """Make pip see what it did not finish: it writes INSTALLER after a package's last file.

    A package whose metadata is there counts as installed, even if pip was killed halfway through.
    """
    for information in folder.glob("[Ll]ib/**/site-packages/*.dist-info"):
        if not (information / "INSTALLER").is_file():
            shutil.rmtree(information)


def _write_stamp(wanted: Plan, seconds: float) -> None:
    command = [python_of(wanted.folder), "-m", "pip", "freeze", "--disable-pip-version-check"]
    freeze = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environ())
    stamp = {
        "requirements": wanted.requirements,
        "seconds": round(seconds, 1),
        "freeze": freeze.stdout.splitlines(),
    }
    new = wanted.folder / "ready.json.new"
    new.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    new.replace(wanted.folder / "ready.json")
