"""An environment is made once, goes on after an interruption, and says in a sentence why not.

torch is a stand-in of one line here, found by pip in a folder: what is tested is the making.
"""

import json
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from twinlens.environments import make as making
from twinlens.environments.lock import locked
from twinlens.environments.make import make, python_of
from twinlens.environments.plan import plan
from twinlens.errors import EnvironmentFailed

Said = list[str]


def wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel: one module that holds its version."""
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        file.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{information}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{information}/RECORD", "")


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels as the only index, and a cache of its own."""
    folder = tmp_path / "index"
    folder.mkdir()
    torch = plan(("tiny-port",)).torch
    for name, version in [("torch", torch), ("safetensors", "1.0"), ("tiny_port", "2.0")]:
        wheel(folder, name, version)
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FLAGS", f"--no-index --find-links {folder}")
    return folder


def imported(python: Path, module: str) -> str:
    command = [python, "-c", f"import {module}; print({module}.VERSION)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_it_is_made_once():
    said: Said = []
    python = make(("tiny-port==2.0",), said.append)
    assert imported(python, "tiny_port") == "2.0"
    assert any("installing" in line for line in said)
    stamp = json.loads((python.parents[1] / "ready.json").read_text())
    assert "tiny_port==2.0" in stamp["freeze"]
    said.clear()
    assert make(("tiny-port==2.0",), said.append) == python
    assert said == []


def test_a_requirement_may_be_a_folder(tmp_path: Path, index: Path):
    wheel(tmp_path, "local_port", "3.0")
    python = make((str(tmp_path / "local_port-3.0-py3-none-any.whl"),), lambda _: None)
    assert imported(python, "local_port") == "3.0"


def test_what_does_not_install_is_told_and_can_be_tried_again(index: Path):
    with pytest.raises(EnvironmentFailed, match="No matching distribution found for late-port"):
        make(("late-port",), lambda _: None)
    folder = plan(("late-port",)).folder
    assert not (folder / "ready.json").exists()
    assert "late-port" in folder.with_name(folder.name + ".log").read_text()
    wheel(index, "late_port", "1.0")
    assert imported(make(("late-port",), lambda _: None), "late_port") == "1.0"


def test_it_goes_on_after_an_interruption():
    def interrupt(line: str) -> None:
        if "installing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(("tiny-port",), interrupt)
    said: Said = []
    python = make(("tiny-port",), said.append)
    assert imported(python, "tiny_port") == "2.0"


def test_a_package_that_pip_did_not_finish_is_installed_again():
    python = make(("tiny-port",), lambda _: None)
    [module] = python.parents[1].glob("lib/*/site-packages/tiny_port.py")
    [information] = module.parent.glob("tiny_port-*.dist-info")
    module.unlink()
    (information / "INSTALLER").unlink()  # pip writes it last
    (python.parents[1] / "ready.json").unlink()
    assert imported(make(("tiny-port",), lambda _: None), "tiny_port") == "2.0"


def test_a_venv_that_was_only_begun_is_made_again():
    folder = plan(("tiny-port",)).folder
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).write_text("")
    assert imported(make(("tiny-port",), lambda _: None), "tiny_port") == "2.0"


def test_two_do_not_build_at_once(monkeypatch: pytest.MonkeyPatch):
    folder = plan(("tiny-port",)).folder
    held, waited = threading.Event(), threading.Event()
    builds: list[str] = []

    def other_process() -> None:
        with locked(folder.with_name(folder.name + ".lock"), lambda: None):
            held.set()
            waited.wait(10)
            python_of(folder).parent.mkdir(parents=True)
            python_of(folder).write_text("")
            (folder / "ready.json").write_text("{}")

    monkeypatch.setattr(making, "_install", lambda *_: builds.append("again"))
    other = threading.Thread(target=other_process)
    other.start()
    held.wait(10)
    make(("tiny-port",), lambda line: waited.set() if "another process" in line else None)
    other.join()
    assert builds == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailed, match="TWINLENS_CACHE"):
        make(("tiny-port",), lambda _: None)
