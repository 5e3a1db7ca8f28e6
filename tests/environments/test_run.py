"""A recorder's words arrive as what they are: progress, an error of its class, or an obituary."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from twinlens.environments.run import run_recorder
from twinlens.errors import CheckpointError, EnvironmentFailed, TwinlensError

PYTHON = Path(sys.executable)

RECORDER = """
import json, os, signal, sys
job = json.load(open(sys.argv[1]))
def tell(**what): print(json.dumps(what))
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run lines of Python as the recorder; twinlens is found where the tests' own one stands."""
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr("twinlens.environments.run.PACKAGE", package)

    def run(lines: str, job: dict[str, Any] | None = None) -> list[str]:
        (package / "recorder.py").write_text(RECORDER + lines)
        said: list[str] = []
        run_recorder(PYTHON, job or {}, said.append)
        return said

    return run


def test_it_gets_its_job_and_reports(record: Any, tmp_path: Path):
    out = tmp_path / "out"
    lines = "tell(progress='one'); print('a library speaks'); tell(progress=2); print('[1]')\n"
    lines += "open(job['out'], 'w').write('x'); tell(done=job['out'])"
    assert record(lines, {"out": str(out)}) == ["one", "2"]
    assert out.read_text() == "x"


def test_it_sees_twinlens_and_nothing_else_of_ours(record: Any, tmp_path: Path):
    lines = (
        "import twinlens\n"
        "tell(progress=json.dumps([sys.path, twinlens.__path__, os.environ['HF_HUB_OFFLINE']]))\n"
        "tell(done='')"
    )
    [said] = record(lines)
    path, package, offline = json.loads(said)
    assert package == [str(tmp_path / "package")]
    assert offline == "1"
    assert os.getcwd() not in path
    assert "" not in path
    # Only standard places and the border: the folder that holds our own package is not lent.
    assert str(tmp_path) not in path


@pytest.mark.parametrize(
    ("kind", "is_a"),
    [("CheckpointError", CheckpointError), ("ValueError", EnvironmentFailed), ("x", TwinlensError)],
)
def test_its_error_keeps_its_class_and_its_sentence(record: Any, kind: str, is_a: type):
    with pytest.raises(is_a, match=r"^W_Q has a NaN\.$") as caught:
        record(f"tell(error='W_Q has a NaN.', kind={kind!r})")
    assert type(caught.value) is not ValueError


def test_after_its_error_it_may_tidy_up_but_not_for_ever(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tidy = tmp_path / "tidy"
    with pytest.raises(CheckpointError):
        record(f"tell(error='e', kind='CheckpointError'); open({str(tidy)!r}, 'w').close()")
    assert tidy.exists()
    monkeypatch.setattr("twinlens.environments.run.GRACE_SECONDS", 0.1)
    with pytest.raises(CheckpointError):
        record("tell(error='e', kind='CheckpointError'); import time; time.sleep(600)")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"killed by signal 9 \(out of memory\?\)"),
        ("raise RuntimeError('boom')", "status 1; its last words: .*RuntimeError: boom"),
        ("pass", "ended without a recording and said nothing"),
        ("sys.stderr.write('x' * 300000); tell(progress='alive'); sys.exit(3)", "status 3"),
    ],
)
def test_a_recorder_that_dies_has_an_obituary(record: Any, lines: str, says: str):
    with pytest.raises(EnvironmentFailed, match=says) as caught:
        record(lines)
    assert str(caught.value).count("\n") == 0


def test_an_interpreter_that_is_gone_is_named(tmp_path: Path):
    with pytest.raises(EnvironmentFailed, match="does not start"):
        run_recorder(tmp_path / "bin" / "python", {}, lambda _: None)


def test_an_interruption_ends_the_recorder(record: Any, tmp_path: Path):
    alive = tmp_path / "pid"
    lines = f"open({str(alive)!r}, 'w').write(str(os.getpid())); tell(progress='here')\n"
    lines += "import time; time.sleep(600)"

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    (tmp_path / "package" / "recorder.py").write_text(RECORDER + lines)
    with pytest.raises(KeyboardInterrupt):
        run_recorder(PYTHON, {}, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)
