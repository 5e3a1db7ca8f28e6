"""Each door shut to what cannot be compared: status 2, one line, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import twinlens
from tests.cli.conftest import changed
from twinlens.checkpoint import open_checkpoint
from twinlens.cli import main
from twinlens.museum.tiny import save, tiny_llama
from twinlens.recording import Recording

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command in this process; that it failed as it should, and its one line."""

    def run(*arguments: object) -> str:
        assert main([str(a) for a in arguments]) == 2
        out, line = capsys.readouterr()
        assert out == ""
        assert line.startswith("twinlens: ")
        assert line.count("\n") == 1
        assert len(line) > 30
        return line

    return run


@pytest.fixture(scope="session")
def recorded(models: Path) -> Path:
    """A recording of four tokens, which says nothing of where it came from."""
    Recording.from_tensors(
        {"logits": torch.zeros(1, 4, 107), "strange.name": torch.zeros(1)}, tokens=[[1, 2, 3, 4]]
    ).save(models / "recorded")
    return models / "recorded"


TOKENS = {
    "[]": "empty",
    "[[]]": "empty",
    "[[-1, 2]]": "tokens[0, 0] is -1",
    "[[1, 5000]]": "tokens[0, 1] is 5000",
    "[[99999999999999999999]]": "no token id",
    "[[1, 2], [3]]": "different lengths (2, 1)",
    "[[1.5]]": "list of lists",
    "[[true]]": "list of lists",
    '{"tokens": 1}': "list of lists",
    "[[1": "not JSON",
    "null": "list of lists",
    "[null]": "list of lists",
    "[[null]]": "list of lists",
    '[["1"]]': "list of lists",
    "[[[1]]]": "list of lists",
    "[" * 100_000: "not JSON",
    "[" * 100_000 + "]" * 100_000: "not JSON",
    "9" * 5000: "not JSON",
}


@pytest.mark.parametrize(("text", "says"), TOKENS.items(), ids=[text[:30] for text in TOKENS])
def test_tokens_as_json(text: str, says: str, models: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "ids.json").write_text(text)
    same = models / "gemma2"
    assert says in refused("compare", same, same, "--tokens", tmp_path / "ids.json")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"ids": torch.ones(1, 4)}, "holds ids"),
        ({"tokens": torch.ones(1, 4)}, "float32"),
        ({"tokens": torch.ones(1, 4).long(), "mask": torch.ones(1, 3).long()}, "[1, 3]"),
    ],
)
def test_tokens_as_safetensors(
    tensors: dict[str, torch.Tensor], says: str, models: Path, tmp_path: Path, refused: Refused
) -> None:
    save_file(tensors, path := tmp_path / "ids.safetensors")
    assert says in refused("compare", models / "gemma2", models / "gemma2", "--tokens", path)


def test_tokens_that_are_no_file(models: Path, tmp_path: Path, refused: Refused) -> None:
    same, junk = models / "gemma2", tmp_path / "junk.safetensors"
    junk.write_text("junk")
    assert "no safetensors file" in refused("compare", same, same, "--tokens", junk)
    assert "Is a directory" in refused("compare", same, same, "--tokens", tmp_path)
    for name in ("absent.json", "absent.safetensors"):
        assert "No such file" in refused("compare", same, same, "--tokens", tmp_path / name)


def test_a_text_without_a_tokenizer(models: Path, recorded: Path, refused: Refused) -> None:
    same = models / "gemma2"
    assert "has no tokenizer" in refused("compare", same, same, "--text", "hello")
    assert "leave one out" in refused("compare", same, same, "--text", "a", "--tokens", "b")
    assert "give --tokens" in refused("compare", recorded, same, "--text", "hello")


def test_what_comes_later_is_said(models: Path, refused: Refused) -> None:
    same = models / "gemma2"
    assert "give auto" in refused("compare", same, same, "--probe", "long")
    assert "leave one out" in refused("compare", same, same, "--probe", "auto", "--text", "a")
    assert "give --markdown" in refused("compare", same, same, "--html", "x.html")


def test_a_command_line_that_does_not_parse(models: Path, refused: Refused) -> None:
    assert "--frobnicate" in refused("compare", "a", "b", "--frobnicate")
    assert "candidate" in refused("compare", "a")
    assert "sublayers" in refused("compare", "a", "b", "--sites", "most")
    assert "frobnicate" in refused("frobnicate")
    assert "--out" in refused("record", models / "gemma2")


def test_sources(models: Path, tmp_path: Path, refused: Refused) -> None:
    same = f"hf:{models / 'gemma2'}"
    assert "does not exist" in refused("compare", tmp_path / "absent", same)
    assert "does not exist" in refused("compare", same, f"hf:{tmp_path / 'absent'}")
    assert "not a kind of source" in refused("compare", "vllm:model", same)
    assert "eager or sdpa" in refused("compare", f"{same}?attn=flash", same)
    assert "one family" in refused("compare", same, f"hf:{models / 'llama'}")
    odd = changed(models / "gemma2", tmp_path / "odd", frobnicate=3)
    assert "frobnicate=3" in refused("compare", same, f"hf:{odd}")
    other = changed(models / "gemma2", tmp_path / "other", model_type="bloom")
    assert "model_type='bloom'; known are" in refused("compare", same, f"hf:{other}")
    assert "mlp width 80 and the candidate 96" in refused("compare", same, f"hf:{models / 'wide'}")
    (tmp_path / "broken.py").write_text("def make():\n    raise ValueError('too bad')\n")
    assert "too bad" in refused("compare", same, f"torch:{tmp_path / 'broken.py'}:make")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0 where a whole number from 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1 where"),
        ({"hidden_size": "48"}, "hidden_size='48' where"),
        ({"rope_parameters": [1]}, "rope_parameters=[1] where an object"),
        ({"hidden_activation": ["silu"]}, "hidden_activation=['silu'] where a name"),
    ],
)
@pytest.mark.parametrize("kind", ["hf", "native"])
def test_a_config_that_cannot_be(
    kind: str, change: dict[str, object], says: str, models: Path, tmp_path: Path, refused: Refused
) -> None:
    wrong = changed(models / "gemma2", tmp_path / "wrong", **change)
    assert says in refused("compare", f"{kind}:{wrong}", models / "gemma2")


def test_a_config_that_is_no_object(models: Path, tmp_path: Path, refused: Refused) -> None:
    wrong = changed(models / "gemma2", tmp_path / "wrong")
    for text in ("[]", "null", "3", "[" * 100_000, "{", ""):
        (wrong / "config.json").write_text(text)
        assert "config.json" in refused("compare", wrong, models / "gemma2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys\nsys.exit(0)\ndef make(): pass\n", "line 2 failed with SystemExit: 0"),
        ("def make():\n    raise SystemExit\n", "line 2 failed with SystemExit"),
        ("class Odd(BaseException): ...\nraise Odd('away')\n", "line 2 failed with Odd: away"),
        ("def make() return 1\n", "failed with SyntaxError"),
        ("import absent_module\n", "line 1 failed with ModuleNotFoundError"),
        ("def make():\n    return 5\n", "returned int"),
        ("import torch\ndef make():\n    return torch.nn.Linear\n", "returned type"),
        (
            "import sys, torch\nclass Ends(torch.nn.Module):\n    def forward(self, tokens): sys.exit(0)\n"
            "make = Ends\n",
            "with SystemExit: 0",
        ),
    ],
)
def test_a_file_that_gives_no_module(text: str, says: str, models: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "port.py").write_text(text)
    assert says in refused("compare", models / "gemma2", f"torch:{tmp_path / 'port.py'}:make")


def test_an_exit_from_anywhere_is_no_success(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def end(folder: Path, site: str | None) -> int:
        raise SystemExit(0)

    monkeypatch.setattr("twinlens.cli.showing.show", end)
    assert "ended the process (SystemExit: 0)" in refused("show", "x")


def test_a_checkpoint_that_is_cut_short(models: Path, tmp_path: Path, refused: Refused) -> None:
    cut = changed(models / "gemma2", tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cut" in refused("compare", f"hf:{cut}", f"hf:{models / 'gemma2'}")
    weights.unlink()
    assert "no .safetensors" in refused("compare", f"hf:{cut}", f"hf:{models / 'gemma2'}")


def test_reports_that_cannot_be_written(models: Path, tmp_path: Path, refused: Refused) -> None:
    same = models / "gemma2"
    for option in ("--json", "--markdown"):
        absent = tmp_path / "absent" / "report"
        assert f"{absent}: No such" in refused("compare", same, same, option, absent)
        assert "is a folder" in refused("compare", same, same, option, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_later(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = str(models / "gemma2")
    assert main(["compare", same, same, "--json", "/dev/full"]) == 2
    assert capsys.readouterr().err == "twinlens: /dev/full: No space left on device.\n"


def test_recordings(models: Path, recorded: Path, tmp_path: Path, refused: Refused) -> None:
    same = models / "gemma2"
    assert "does not exist" in refused("show", tmp_path / "absent")
    assert "is no recording" in refused("show", same)
    assert "the nearest is logits" in refused("show", recorded, "logit")
    assert "give --model" in refused("explain", recorded, recorded)
    assert "does not exist" in refused("explain", recorded, recorded, "--model", tmp_path / "no")
    assert "leave --fix out" in refused("compare", same, recorded, "--fix")
    assert "own model" in refused("compare", same, f"native:{same}", "--order")
    other = tmp_path / "other"
    Recording.from_tensors({"logits": torch.zeros(1, 3, 107)}, tokens=[[1, 2, 3]]).save(other)
    assert "different tokens" in refused("explain", recorded, other, "--model", same)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"calls": [], "partial": True}))
    assert "interrupted before the first" in refused("explain", other, recorded, "--model", same)


def test_a_checkpoint_that_has_become_another(
    models: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    model = changed(models / "llama", tmp_path / "model")
    made = twinlens.Recording.from_tensors({"logits": torch.zeros(1, 3, 103)}, tokens=[[1, 2, 3]])
    made.checkpoint = {"path": str(model), "sha256": open_checkpoint(model).fingerprint()}
    made.save(tmp_path / "made")
    save(tiny_llama(seed=1), model)
    capsys.readouterr()  # of transformers' own bar
    assert "its hash has changed" in refused("explain", tmp_path / "made", tmp_path / "made")


def test_a_partial_recording_says_so(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = twinlens.Recording.from_tensors({"logits": torch.randn(1, 3, 103)}, tokens=[[1, 2, 3]])
    made.save(tmp_path / "whole")
    made.partial = True
    made.save(tmp_path / "cut")
    main(["explain", str(tmp_path / "whole"), str(tmp_path / "cut"), "--model", str(models / "llama")])
    assert "the candidate's recording is partial" in " ".join(capsys.readouterr().out.split())


def test_where_nothing_is_recorded(models: Path, recorded: Path, tmp_path: Path, refused: Refused) -> None:
    same, before = models / "gemma2", sorted(p.name for p in (models / "gemma2").iterdir())
    assert "recording already" in refused("record", recorded, "-o", tmp_path / "new")
    assert "not empty" in refused("record", same, "-o", same)
    assert "removes only what it wrote" in refused("record", same, "-o", same, "--overwrite")
    assert "is a file" in refused("record", same, "-o", same / "config.json")
    assert "are 0 to 106" in refused("record", same, "-o", tmp_path / "new", "--tokens", _written(tmp_path, [[200]]))
    assert sorted(p.name for p in same.iterdir()) == before
    assert not (tmp_path / "new").exists()


def _written(folder: Path, ids: list[list[int]]) -> Path:
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder / "ids.json"


def test_a_fault_of_ours_keeps_its_traceback_and_is_no_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path, site: str | None) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("twinlens.cli.showing.show", fail)
    assert main(["show", "x"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_out_of_memory_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def fail(folder: Path, site: str | None) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.")

    monkeypatch.setattr("twinlens.cli.showing.show", fail)
    assert "out of memory" in refused("show", "x")
