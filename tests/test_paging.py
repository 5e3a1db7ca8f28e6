"""Weights that stay on disk, and tensors that are put there."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import twinlens
from twinlens.errors import SourceError
from twinlens.museum.tiny import left_padded, save, tiny_llama
from twinlens.paging import Pager, held, paged


def file_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssFile:"))


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Tensor]:
    """64 MB that lie on disk."""
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.arange(16 << 20, dtype=torch.float32)}, file)
    with safe_open(str(file), framework="pt") as opened:
        yield opened.get_tensor("w")


def until(limit: int) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if file_bytes() < limit:
            return True
        time.sleep(0.02)
    return False


def test_pages_are_dropped_and_no_number_changes(mapped: Tensor) -> None:
    before, total = file_bytes(), mapped.double().sum()
    assert file_bytes() > before + mapped.nbytes // 2
    mapped[5] = -1.0  # in memory only: the mapping is private
    full = file_bytes()
    with Pager(mapped=0):
        assert until(full - mapped.nbytes // 2)
        assert mapped[5] == -1.0
        assert mapped.double().sum() == total - 6.0
    again = mapped.double().sum()
    assert file_bytes() > full - mapped.nbytes // 2  # nobody drops anything any more
    assert again == total - 6.0


@settings(max_examples=20, deadline=None, database=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
def test_what_is_held_is_the_same_tensor(shape: list[int], order: object, dtype: torch.dtype) -> None:
    axes = list(range(len(shape)))
    order.shuffle(axes)  # type: ignore[attr-defined]
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype).permute(axes)
    assert held(tensor) is tensor
    with paged(True):
        there = held(tensor)
        assert there is tensor or there.data_ptr() != tensor.data_ptr()
        assert there.dtype == dtype
        assert there.stride() == tensor.stride() or tensor.numel() <= 1 or 1 in tensor.shape
    assert torch.equal(there, tensor)  # after the file is gone, too


def test_a_comparison_on_disk_says_what_one_in_memory_says(tmp_path: Path) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    folder = save(model, tmp_path / "model")
    tokens, mask = left_padded(model)
    sources = f"hf:{folder}", f"native:{folder}?attn=sdpa"
    plain = twinlens.compare(
        *(f"{s}{'&' if '?' in s else '?'}dtype=bfloat16" for s in sources), tokens=tokens, mask=mask
    )
    there = twinlens.compare(*sources, tokens=tokens, mask=mask, layers_at_a_time=True)
    assert Pager.open is None
    assert there.verdict == plain.verdict == "rounding"
    assert str(there).splitlines()[3:] == str(plain).splitlines()[3:]


def test_a_fault_is_named_and_mended_on_disk(tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    faulty = twinlens.subjects.subject(f"hf:{folder}", mapped=True).module  # type: ignore[union-attr]
    faulty.model.layers[1].self_attn.scaling *= 1.1
    report = twinlens.compare(f"hf:{folder}", faulty, layers_at_a_time=True)
    assert [(c.parameter, c.layers) for c in report.causes] == [("attn.scale", [1])]
    assert report.fix().verdict == "identical"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "hf:{}?dtype=float64",
            "a copy in float64 of weights that are stored in float32; leave dtype=float64 out",
        ),
        ("native:{}?dtype=bfloat16", "would be a copy in bfloat16"),
        ("hf:model.gguf", "cannot keep its weights on disk"),
        ("hf:{}@transformers==4.43.2", "cannot keep its weights on disk"),
        ("tl:{}", "cannot keep its weights on disk"),
    ],
)
def test_what_cannot_stay_on_disk_is_refused(source: str, words: str, tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    with pytest.raises(SourceError, match=words):
        twinlens.compare(f"hf:{folder}", source.format(folder), layers_at_a_time=True)
    assert Pager.open is None


def test_a_pager_within_another_gives_back_the_outer_one() -> None:
    with Pager() as outer:
        with Pager():
            pass
        assert Pager.open is outer
    assert Pager.open is None


def test_a_disk_that_is_full_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*of: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with paged(True), pytest.raises(OSError, match="No space left"):
        held(torch.ones(3))
