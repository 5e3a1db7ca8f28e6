"""The museum from the command line."""

from __future__ import annotations

from tests.cli.conftest import command
from twinlens.museum import exhibits


def test_all_exhibits_are_listed() -> None:
    done = command("museum", "list")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split(" ")[0] for line in done.stdout.splitlines()}
    assert listed >= {exhibit.name for exhibit in exhibits()}  # whole, to be copied
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_one_wing_is_listed() -> None:
    done = command("museum", "list", "--wing", "rotary")
    assert "llama3-rope-scaling-lost" in done.stdout
    assert "gemma2-scale-14-97-vs-16" not in done.stdout


def test_one_is_told() -> None:
    done = command("museum", "show", "gemma2-scale-14-97-vs-16")
    assert done.returncode == 0
    assert "attn.scale 4.89898 → 4.58258" in done.stdout
    assert "TransformerLens" in done.stdout


def test_one_is_run_from_afar() -> None:
    done = command("museum", "run", "gemma2-final-softcap-dropped", "--sites", "logprobs")
    assert (done.returncode, done.stderr) == (0, "")
    assert "unembed.softcap" in done.stdout
    assert done.stdout.rstrip().endswith("As it should be.")


def test_bad_names_are_one_sentence() -> None:
    for words, said in (
        (("museum", "run", "no-such-thing"), "the museum has no exhibit 'no-such-thing'"),
        (("museum", "show", "softcap"), "like it: "),
        (("museum", "list", "--wing", "cellar"), "the museum has no wing 'cellar'"),
        (("museum", "run", "rope-angles-bf16", "--dtype", "bfloat16"), "exists in float32 only"),
    ):
        done = command(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
