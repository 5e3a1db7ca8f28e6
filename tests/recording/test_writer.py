"""A recording is whole, or says that it is partial, or is not there; and it never harms another."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from twinlens.errors import InputError, RecordingError
from twinlens.recording import Call, Recording, Writer, shards
from twinlens.recording.manifest import Manifest, StoredCall

TOKENS = [[1, 2]]


def small() -> Recording:
    return Recording.from_tensors({"logits": torch.randn(1, 2, 3)}, TOKENS)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


KILLED = """
import sys, time, torch
from twinlens.recording import Writer
writer = Writer(sys.argv[1], overwrite="over" in sys.argv, shard_bytes=1000)
writer.call([[1, 2]])
for layer in range(10**6):
    writer.add(f"blocks.{layer}.hook_resid_pre", torch.full((1, 2, 64), float(layer)))
    if layer == 50: print("now", flush=True)
"""


@pytest.mark.parametrize("wait", [0.0, 0.01, 0.05, 0.2])
def test_a_killed_recording_opens_and_says_partial(tmp_path: Path, wait: float) -> None:
    kill(wait, str(tmp_path / "r"))
    partial = Recording.load(tmp_path / "r")
    assert partial.partial
    assert len(partial.sites) > 30
    for layer, tensor in enumerate(partial.sites.values()):
        assert (tensor == layer).all()
    small().save(tmp_path / "r", overwrite=True)
    assert not Recording.load(tmp_path / "r").partial


def test_a_killed_replacement_leaves_the_old_one(tmp_path: Path) -> None:
    small().save(tmp_path / "r")
    before = everything(tmp_path / "r")
    kill(0, str(tmp_path / "r"), "over")
    assert everything(tmp_path / "r") == before
    (beside,) = set(tmp_path.iterdir()) - {tmp_path / "r"}
    assert Recording.load(beside).partial


def kill(wait: float, *arguments: str) -> None:
    command = [sys.executable, "-c", KILLED, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)


def test_an_exception_leaves_what_was_recorded_as_partial(tmp_path: Path) -> None:
    def record() -> None:
        with Writer(tmp_path / "r") as writer:
            writer.call(TOKENS)
            writer.add("logits", torch.ones(1, 2, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record()
    partial = Recording.load(tmp_path / "r")
    assert partial.partial
    assert list(partial.sites) == ["logits"]


def test_an_exception_before_anything_was_recorded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError), Writer(tmp_path / "r") as writer:
        writer.call([])
    assert not list(tmp_path.iterdir())


def test_an_exception_while_replacing_leaves_the_old_one_alone(tmp_path: Path) -> None:
    small().save(tmp_path / "r")
    before = everything(tmp_path)

    def replace() -> None:
        with Writer(tmp_path / "r", overwrite=True) as writer:
            writer.call(TOKENS)
            writer.add("logits", torch.zeros(1, 2, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replace()
    assert everything(tmp_path) == before


def test_the_old_one_is_readable_until_the_new_one_is_whole(tmp_path: Path) -> None:
    small().save(tmp_path / "r")
    with Writer(tmp_path / "r", overwrite=True) as writer:
        writer.call([[7, 8]])
        writer.add("logits", torch.zeros(1, 2, 3))
        assert Recording.load(tmp_path / "r").tokens.tolist() == TOKENS
    assert Recording.load(tmp_path / "r").tokens.tolist() == [[7, 8]]
    assert [f.name for f in tmp_path.iterdir()] == ["r"]


def test_never_over_a_recording(tmp_path: Path) -> None:
    small().save(tmp_path / "r")
    before = everything(tmp_path)
    with pytest.raises(RecordingError, match=r"holds a recording already.*overwrite=True"):
        small().save(tmp_path / "r")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_never_over_anything_else(tmp_path: Path, overwrite: bool) -> None:
    small().save(tmp_path / "r")
    (tmp_path / "r/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(RecordingError, match=r"holds notes\.txt, which belongs to no recording"):
        small().save(tmp_path / "r", overwrite=overwrite)
    with pytest.raises(RecordingError, match="is a file where a folder was expected"):
        small().save(tmp_path / "file", overwrite=overwrite)
    assert everything(tmp_path) == before


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    small().save(tmp_path)
    assert Recording.load(tmp_path).tokens.tolist() == TOKENS


@pytest.mark.parametrize("empty_folder", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, empty_folder: bool
) -> None:
    path = tmp_path / "r"
    if overwrite:
        small().save(path)
    elif empty_folder:
        path.mkdir()
    before = everything(tmp_path)
    real, calls = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(shards.os, "fsync", full)
    big = {f"blocks.{n}.hook_resid_pre": torch.randn(1, 2, 3) for n in range(9)}

    def record() -> None:
        with Writer(path, overwrite=overwrite, shard_bytes=10) as writer:
            writer.call(TOKENS)
            for site, tensor in big.items():
                writer.add(site, tensor)

    with pytest.raises(RecordingError, match=r"the disk is full.*free some space") as caught:
        record()
    assert isinstance(caught.value.__cause__, OSError)
    assert everything(tmp_path) == before
    assert path.exists() == (overwrite or empty_folder)
    with pytest.raises(RecordingError, match="the disk is full"):
        Recording.from_tensors(big, TOKENS).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="could not be written"):
        small().save(tmp_path / "file" / "r")


def test_a_finished_writer_takes_no_more(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    writer.call(TOKENS)
    writer.add("logits", torch.ones(1, 2, 3))
    writer.finish()
    writer.finish()
    writer.discard()
    with pytest.raises(RecordingError, match="has ended"):
        writer.add("hook_embed", torch.ones(1, 2, 3))
    assert not Recording.load(tmp_path / "r").partial


def test_each_thing_once_and_in_its_call(tmp_path: Path) -> None:
    logits = torch.ones(1, 2, 3)
    writer = Writer(tmp_path / "r")
    with pytest.raises(InputError, match="begin with call"):
        writer.add("logits", logits)
    writer.call(TOKENS)
    writer.add("logits", logits)
    writer.weight("w", logits)
    with pytest.raises(InputError, match="logits is recorded already in call 0"):
        writer.add("logits", logits)
    with pytest.raises(InputError, match="weight w is recorded already"):
        writer.weight("w", logits)
    writer.call(TOKENS)
    writer.add("logits", logits)
    writer.finish()
    assert len(Recording.load(tmp_path / "r").calls) == 2


def test_nothing_recorded_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    writer.call(TOKENS)
    writer.add("layers.0.out", torch.ones(1, 2, 3))
    with pytest.raises(InputError, match=r"known site \(given: layers\.0\.out\)"):
        writer.finish()
    assert not list(tmp_path.iterdir())


def test_keys_of_a_later_call_reach_back(tmp_path: Path) -> None:
    with Writer(tmp_path / "r") as writer:
        for past in range(2):
            writer.call([[5]], positions=[[past]])
            writer.add("blocks.0.attn.hook_pattern", torch.ones(1, 2, 1, past + 1))
    assert [c.positions.item() for c in Recording.load(tmp_path / "r").calls] == [0, 1]


def test_keys_of_a_later_call_are_no_fewer_than_its_tokens(tmp_path: Path) -> None:
    with Writer(tmp_path / "r") as writer:
        for _ in range(2):
            writer.call(TOKENS)
            writer.add("logits", torch.ones(1, 2, 3))
        with pytest.raises(InputError, match="attn_scores has shape"):
            writer.add("blocks.0.attn.hook_attn_scores", torch.ones(1, 2, 2, 1))


def test_a_recording_that_does_not_fit_is_not_saved_in_part(tmp_path: Path) -> None:
    recording = small()
    recording.calls.append(Call.of({"hook_embed": torch.ones(1, 2, 3)}, TOKENS))
    recording.calls[1].sites = {"hook_embed": torch.ones(1, 9, 3)}
    with pytest.raises(InputError, match="hook_embed has shape"):
        recording.save(tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_a_call_whose_tokens_are_not_yet_on_disk_is_not_listed(tmp_path: Path) -> None:
    Manifest({}, None, None, calls=[StoredCall()]).write(tmp_path)
    assert Manifest.read(tmp_path).calls == []
