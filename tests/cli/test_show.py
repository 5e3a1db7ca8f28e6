from pathlib import Path

import pytest
import torch

from twinlens.cli import main
from twinlens.recording import Recording
from twinlens.recording.writer import Writer


@pytest.fixture
def scores() -> torch.Tensor:
    scores = torch.arange(9.0).reshape(1, 1, 3, 3)
    return scores.masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))


def test_masked_scores_are_counted_and_not_averaged(
    scores: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Recording.from_tensors(
        {"blocks.0.attn.hook_attn_scores": scores, "other.name": torch.zeros(1)},
        tokens=[[1, 2, 3]],
        about={"implementation": "mine 1.2"},
    ).save(tmp_path / "r")
    assert main(["show", str(tmp_path / "r"), "blocks.0.attn.hook_attn_scores"]) == 0
    said = capsys.readouterr().out
    assert "mine 1.2" in said
    assert "other.name" in said
    assert "3 of 9" in said
    assert "0 to 8" in said
    assert "given" in said


def test_a_partial_recording_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer(tmp_path / "r", about={"implementation": "mine"}, config=None, checkpoint=None)
    one = torch.ones(1, 3, dtype=torch.int64)
    writer.call(one, one, one)
    writer.lend("hook_embed", torch.zeros(1, 3, 4), "given")
    writer.finish(partial=True)
    assert main(["show", str(tmp_path / "r")]) == 0
    assert "PARTIAL" in capsys.readouterr().out
