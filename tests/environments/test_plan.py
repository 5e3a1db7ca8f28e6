"""Requirements decide interpreter, pins and folder; equal wishes share one folder."""

import re
import sys
from pathlib import Path

import pytest

from twinlens.environments.plan import PINS, interpreter, plan, slug
from twinlens.errors import EnvironmentFailed

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("pins", sorted(PINS.glob("*.txt")), ids=lambda p: p.stem)
def test_a_file_of_pins_is_exact_and_named_by_what_it_pins(pins: Path):
    header, *lines = pins.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# python:( 3\.\d+)+", header)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = {re.sub("==.*", "", line) for line in lines}
    assert {"torch", "safetensors", "transformers"} <= names
    held = {slug((line,)) for line in lines}
    assert set(pins.stem.split("+")) <= held


def test_order_and_omission_share_one_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("twinlens.environments.plan.interpreter", lambda *_: (Path("p"), "3.11"))
    one = plan(("transformers==4.43.2", "transformer-lens==2.3.0"))
    two = plan(("transformer_lens==2.3.0",))
    assert one.folder == two.folder
    assert one.pins == PINS / "transformer-lens-2.3.0+transformers-4.43.2.txt"
    assert plan(("transformers==4.43.2",)).pins == PINS / "transformers-4.43.2.txt"
    assert plan(("transformers==4.43.2",)).folder != one.folder


def test_what_is_not_pinned_gets_the_torch_of_this_environment(cache: Path):
    unpinned = plan(("some-port>=1",))
    assert unpinned.pins is None
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", unpinned.torch)
    assert unpinned.folder.parent == cache / "environments"


def test_a_python_can_be_named():
    named = plan((f"python=={HERE}", "some-port"))
    assert named.requirements == ("some-port",)
    assert named.python == Path(sys.executable)


@pytest.mark.parametrize("requirements", [("python==3.3",), ("python>=3.11",), ("python==3.11", "python==3.12")])
def test_a_python_that_is_not_there_is_named(requirements: tuple[str, ...]):
    with pytest.raises(EnvironmentFailed, match=r"python==(3\.12|X\.Y)"):
        plan(requirements)


def test_a_python_that_only_stands_there_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, answer in enumerate(["exit 127", "echo 3.99"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "python3.99").write_text(f"#!/bin/sh\n{answer}\n")
        (folder / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/0:{tmp_path}/1")
    assert interpreter(("3.98", "3.99")) == (tmp_path / "1" / "python3.99", "3.99")
