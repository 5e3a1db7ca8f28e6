"""A shard is a safetensors file like any other, and appears only when it is whole."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twinlens.errors import RecordingError
from twinlens.recording import Recording, hashes, shards
from twinlens.recording.hashes import HASHES, fastest
from twinlens.recording.shards import write_shard

MIXED = {
    "bytes": torch.arange(3, dtype=torch.uint8),
    "doubles": torch.randn(2, 2, dtype=torch.float64),
    "halves": torch.randn(3).half(),
    "none": torch.ones(0, 3),
    "one": torch.tensor(2.5),
}


def test_any_reader_gets_the_tensors(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", MIXED)
    read = load_file(tmp_path / "s")
    assert read.keys() == MIXED.keys()
    assert all(read[name].equal(tensor) for name, tensor in MIXED.items())


def test_each_tensor_starts_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", MIXED)
    data = (tmp_path / "s").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    for name, said in json.loads(data[8 : 8 + size]).items():
        assert said["data_offsets"][0] % MIXED[name].element_size() == 0


def test_the_seal_is_that_of_the_file(tmp_path: Path) -> None:
    seal = write_shard(tmp_path / "s", {"x": torch.randn(700_000)})
    data = (tmp_path / "s").read_bytes()
    assert (seal.bytes, seal.digest) == (len(data), hashlib.new(fastest(), data).hexdigest())
    assert seal.said() == {fastest(): seal.digest, "bytes": len(data)}


def test_it_appears_only_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(descriptor: int) -> None:
        assert not (tmp_path / "s").exists()
        assert os.fstat(descriptor).st_size > 0

    monkeypatch.setattr(shards.os, "fsync", not_there)
    write_shard(tmp_path / "s", MIXED)
    assert [f.name for f in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", HASHES)
def test_either_hash_is_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(shards, "fastest", lambda: name)
    path = tmp_path / "r"
    Recording.from_tensors({"hook_embed": torch.randn(1, 3, 4)}, torch.tensor([[1, 2, 3]])).save(path)
    said = json.loads((path / "manifest.json").read_text())["shards"]
    assert all(entry.keys() == {name, "bytes"} for entry in said.values())
    assert Recording.load(path).calls[0].sites["hook_embed"].shape == (1, 3, 4)
    [last] = sorted(path.glob("shard-*"))[-1:]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    with pytest.raises(RecordingError, match="has the hash"):
        _ = Recording.load(path).calls[0].sites["hook_embed"]


def test_a_seal_names_the_hash_that_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "fastest", itertools.cycle(HASHES).__next__)
    seal = write_shard(tmp_path / "s", {"a": torch.ones(3)})
    assert seal.digest == hashlib.new(seal.hash, (tmp_path / "s").read_bytes()).hexdigest()


def test_hands_that_ask_at_once_are_told_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes._seen.cache_clear()
    # Each that saw for itself would see another one fastest.
    later = itertools.cycle(HASHES)
    monkeypatch.setattr(hashes, "min", lambda *_, **__: (time.sleep(0.01), next(later))[1], raising=False)
    with ThreadPoolExecutor(4) as hands:
        assert len(set(hands.map(lambda _: hashes.fastest(), range(4)))) == 1
    hashes._seen.cache_clear()


def test_what_lies_in_one_memory_is_written_once(tmp_path: Path) -> None:
    x = torch.randn(1, 300, 400)
    sites = {"blocks.0.hook_resid_post": x, "blocks.1.hook_resid_pre": x, "hook_embed": x.clone()}
    Recording.from_tensors(sites, torch.arange(300)[None]).save(tmp_path / "r")
    size = sum(file.stat().st_size for file in (tmp_path / "r").iterdir())
    assert 2 * x.nbytes < size < 2.2 * x.nbytes
    read = Recording.load(tmp_path / "r").calls[0].sites
    assert list(read) == list(sites)
    assert all(torch.equal(read[name], x) for name in sites)
