"""The command line in a process of its own: what is printed where, and the exit status."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import TWINLENS, command


def test_the_same_model_is_0_and_says_nothing_else(models: Path) -> None:
    done = command("compare", models / "gemma2", f"native:{models / 'gemma2'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("IDENTICAL  The same model")


def test_another_model_is_1_named_and_written_down(models: Path, tmp_path: Path) -> None:
    json_file, markdown_file = tmp_path / "r.json", tmp_path / "r.md"
    sources = (f"hf:{models / 'gemma2'}", f"hf:{models / 'scaled'}")
    done = command("compare", *sources, "--json", json_file, "--markdown", markdown_file)
    assert (done.returncode, done.stderr) == (1, "")
    assert "DIFFERENT" in done.stdout
    assert "sqrt(24)" not in done.stdout  # the reference's own value has no estimate to name
    assert "4.89898 → 5.65685 = sqrt(32)" in done.stdout
    assert "all layers" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    [cause] = json.loads(json_file.read_text())["causes"]
    assert cause["parameter"] == "attn.scale"
    assert cause["layers"] == [0, 1]
    assert cause["interval"][0] <= 32**0.5 <= cause["interval"][1]
    assert "| attn.scale |" in markdown_file.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "r.md"]


def test_after_the_fix_the_status_is_that_of_the_fixed(models: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in (models / "scaled").iterdir()}
    sources = (f"hf:{models / 'gemma2'}", f"hf:{models / 'scaled'}")
    done = command("compare", *sources, "--fix", "--json", tmp_path / "r.json")
    assert (done.returncode, done.stderr) == (0, "")
    first, after = done.stdout.split("After the fix")
    assert "DIFFERENT" in first
    assert "IDENTICAL" in after
    assert "Mended" in after
    said = json.loads((tmp_path / "r.json").read_text())
    assert (said["verdict"], said["after_fix"]["verdict"]) == ("different", "identical")
    assert before == {p: p.read_bytes() for p in (models / "scaled").iterdir()}


def test_recorded_shown_and_explained(models: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "ids.json"
    tokens.write_text(json.dumps([list(range(3, 33))]))
    for kind, name in (("hf", "gemma2"), ("native", "scaled")):
        done = command("record", f"{kind}:{models / name}", "-o", tmp_path / name, "--tokens", tokens)
        assert (done.returncode, done.stderr) == (0, "")
    shown = command("show", tmp_path / "gemma2")
    assert shown.returncode == 0
    assert "call 0: 1 × 30 tokens" in shown.stdout
    assert "blocks.1.attn.hook_attn_scores" in shown.stdout
    done = command("explain", tmp_path / "gemma2", tmp_path / "scaled")
    assert (done.returncode, done.stderr) == (1, "")
    assert "attn.scale" in done.stdout


def test_help_is_quick_and_has_examples() -> None:
    started = os.times()
    assert "compare" in command("--help").stdout
    ended = os.times()
    spent = ended.children_user + ended.children_system - started.children_user - started.children_system
    assert spent < 2  # seconds of the processor: 0.1 on a machine that does nothing else
    for name in ("compare", "record", "show", "explain", "demo"):
        said = command(name, "--help")
        assert said.returncode == 0
        assert f"  twinlens {name}" in said.stdout.partition("Example")[2]


def test_a_full_disk_below_standard_output_is_2_in_one_line(models: Path) -> None:
    native = f"native:{models / 'gemma2'}"
    with Path("/dev/full").open("w") as full:
        done = command("compare", native, native, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "twinlens: No space left on device.\n"


@pytest.mark.parametrize(
    ("sent", "status", "said"), [(signal.SIGINT, 130, "twinlens: interrupted.\n"), (signal.SIGTERM, 143, "")]
)
def test_who_is_stopped_clears_away_what_was_begun(
    sent: signal.Signals, status: int, said: str, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import tempfile, time\n"
        "def make():\n"
        f"    with tempfile.TemporaryDirectory(prefix='begun', dir={str(tmp_path)!r}):\n"
        "        time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [TWINLENS, "compare", f"torch:{tmp_path / 'slow.py'}:make", f"native:{models / 'gemma2'}"],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who tests in the background ignores it
    )  # fmt: skip
    for _ in range(3000):
        if list(tmp_path.glob("begun*")):
            break
        time.sleep(0.1)
    process.send_signal(sent)
    assert (process.communicate(timeout=300)[1], process.returncode) == (said, status)
    assert list(tmp_path.glob("begun*")) == []


def test_a_pipe_that_nobody_reads_is_no_difference(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`twinlens … | head` must not end with the status of a comparison."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # else so short a report is written when the process ends
    arguments = ("compare", f"native:{models / 'gemma2'}", f"native:{models / 'gemma2'}")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        assert command(*arguments, stdout=nobody).returncode == 141


def test_what_one_run_does_not_tell_apart_is_asked(models: Path, tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text(
        "from transformers import AutoModelForCausalLM\n"
        "def make():\n"
        f"    model = AutoModelForCausalLM.from_pretrained({str(models / 'gemma2')!r}, attn_implementation='eager')\n"
        "    for layer in model.model.layers:\n"
        "        layer.self_attn.scaling = 0.17\n"  # of which nothing is the root, so that bits do not tell either
        "    return model\n"
    )
    sources = (f"hf:{models / 'gemma2'}", f"torch:{tmp_path / 'port.py'}:make")
    done = command("compare", *sources, "--sites", "sublayers", "--ask", "--json", tmp_path / "r.json")
    assert (done.returncode, done.stderr) == (1, "")
    first, after = done.stdout.split("Asked again")
    assert "not told apart" in first
    assert "--sites all would tell" in first
    assert "not told apart" not in after
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["asked"] == ["--sites all: attn.scale at blocks.0.attn.hook_attn_scores in layers 0, 1"]
    done = command("compare", *sources, "--ask")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "There is nothing to ask.")
