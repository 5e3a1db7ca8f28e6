"""`load(save(x)) == x`, whatever the dtypes, shapes, calls and layouts in memory."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from twinlens.recording import Call, Recording, Writer
from twinlens.recording.shards import CODES

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SITES = {  # shapes for batch b, positions p, and any width w
    "hook_embed": lambda b, p, w: (b, p, w),
    "blocks.0.hook_resid_pre": lambda b, p, w: (b, p, w),
    "blocks.11.attn.hook_q": lambda b, p, w: (b, p, w, 2),
    "blocks.11.attn.hook_pattern": lambda b, p, w: (b, w, p, p),
    "logits": lambda b, p, w: (b, p, w),
}


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN and -0 included."""
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and bits(a).equal(bits(b))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same_tensors(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(same_tensor(a[name], b[name]) for name in a)


def same(a: Recording, b: Recording) -> bool:
    plain = ("about", "config", "checkpoint", "weights_equal", "partial", "unknown")
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and same_tensors(a.weights, b.weights)
        and len(a.calls) == len(b.calls)
        and all(same_call(x, y) for x, y in zip(a.calls, b.calls, strict=True))
    )


def same_call(a: Call, b: Call) -> bool:
    inputs = ("tokens", "positions", "mask")
    return (
        all(same_tensor(getattr(a, name), getattr(b, name)) for name in inputs)
        and same_tensors(a.sites, b.sites)
        and a.placed == b.placed
    )


def noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Any bits at all, so NaN and infinities of floats are among them."""
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))
    raw = (raw % 2 if dtype == torch.bool else raw).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


# Strategies draw arguments, and the tests build from them: annotations are checked with `random`,
# which hypothesis forbids while it draws.


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    b, p, w = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    chosen = draw(st.lists(st.sampled_from(sorted(SITES)), min_size=1, unique=True))
    dtypes = st.sampled_from([*FLOATS, torch.int64, torch.int8, torch.bool])
    row = st.lists(st.integers(0, 2**40), min_size=p, max_size=p)
    return {
        "sites": {s: noise(draw(st.integers(0, 99)), SITES[s](b, p, w), draw(dtypes)) for s in chosen},
        "tokens": draw(st.lists(row, min_size=b, max_size=b)),
        "mask": padded(draw, b, p),
        "placed": {chosen[0]: draw(st.sampled_from(["weight", "replay", "provisional"]))},
    }


def padded(draw: st.DrawFn, b: int, p: int) -> list[list[int]]:
    lefts = [draw(st.integers(0, p - 1)) for _ in range(b)]
    return [[0] * left + [1] * (p - left) for left in lefts]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=3), x, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.text(max_size=5), PLAIN, max_size=2)
FIELDS = st.fixed_dictionaries(
    {
        "about": OBJECTS,
        "config": st.none() | OBJECTS,
        "checkpoint": st.none() | st.just({"path": "x", "sha256": "00"}),
        "weights": st.sampled_from(FLOATS).map(lambda d: {"model.norm.weight": noise(1, (3,), d)}),
        "weights_equal": st.frozensets(st.text(max_size=4), max_size=2),
        "partial": st.booleans(),
        "unknown": st.lists(st.text(max_size=4), max_size=2, unique=True),
    }
)
SEVERAL = st.lists(calls(), min_size=1, max_size=3)


def built(several: list[dict[str, Any]], fields: dict[str, Any]) -> Recording:
    return Recording([Call.of(**call, later=n > 0) for n, call in enumerate(several)], **fields)


@settings(max_examples=40, deadline=None)
@given(SEVERAL, FIELDS)
def test_what_is_saved_is_what_is_loaded(several: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    recording = built(several, fields)
    with tempfile.TemporaryDirectory() as folder:
        recording.save(Path(folder) / "r")
        assert same(Recording.load(Path(folder) / "r"), recording)


@settings(max_examples=20, deadline=None)
@given(SEVERAL, st.integers(1, 200))
def test_shards_of_any_size_hold_the_same(several: list[dict[str, Any]], size: int) -> None:
    recording = built(several, {})
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder) / "r", shard_bytes=size) as writer:
            for call in recording.calls:
                writer.call(call.tokens, call.positions, call.mask)
                for site, tensor in call.sites.items():
                    writer.add(site, tensor, call.placed[site])
        assert same(Recording.load(Path(folder) / "r"), recording)


@pytest.mark.parametrize("name", CODES)
def test_every_dtype_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    dtype: torch.dtype = getattr(torch, name)
    tensors = {"hook_embed": noise(0, (1, 3, 5), dtype), "logits": noise(1, (1, 3, 0), dtype)}
    Recording.from_tensors(tensors, [1, 2, 3]).save(tmp_path / "r")
    assert same_tensors(Recording.load(tmp_path / "r").sites, tensors)


def test_views_and_shared_storage_are_stored_as_what_they_show(tmp_path: Path) -> None:
    base = torch.randn(2, 6, 4, 3)
    tensors = {
        "blocks.0.attn.hook_q": base.transpose(1, 2),
        "blocks.0.attn.hook_k": base[:, :4, :2, :],
        "blocks.0.hook_resid_pre": base[:, 1:5, 0],
        "blocks.0.hook_resid_mid": base[:, 1:5, 0],
        "blocks.0.hook_resid_post": torch.tensor(1.5).expand(2, 4, 7),
        "hook_embed": torch.randn(2, 4, 3, requires_grad=True) * 2,
    }
    tensors["blocks.0.attn.hook_q"] = tensors["blocks.0.attn.hook_q"][:, :4]
    recording = Recording.from_tensors(tensors, torch.ones(2, 4, dtype=torch.int32))
    recording.save(tmp_path / "r")
    assert same(Recording.load(tmp_path / "r"), recording)


def test_a_tensor_that_is_written_to_after_it_was_added_keeps_what_it_was(tmp_path: Path) -> None:
    buffer = torch.ones(1, 2, 3)
    with Writer(tmp_path / "r") as writer:
        writer.call([[1, 2]])
        for layer in range(3):
            writer.add(f"blocks.{layer}.hook_resid_pre", buffer.fill_(layer))
    values = [t.unique().item() for t in Recording.load(tmp_path / "r").sites.values()]
    assert values == [0, 1, 2]


def test_other_programs_can_read_the_shards(tmp_path: Path) -> None:
    logits = torch.randn(1, 2, 3)
    Recording.from_tensors({"logits": logits}, [1, 2]).save(tmp_path / "r")
    entry = json.loads((tmp_path / "r/manifest.json").read_text())["calls"][0]["sites"]["logits"]
    with safe_open(tmp_path / "r" / entry["shard"], framework="pt") as shard:
        assert shard.get_tensor(entry["key"]).equal(logits)


def test_a_recording_can_be_saved_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "r"
    Recording.from_tensors({"logits": torch.randn(1, 2, 3)}, [1, 2]).save(path)
    loaded = Recording.load(path)
    before = loaded.sites["logits"].clone()
    loaded.save(path, overwrite=True)
    assert Recording.load(path).sites["logits"].equal(before)
    assert [f.name for f in tmp_path.iterdir()] == ["r"]


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    Recording.from_tensors({"logits": torch.randn(1, 2, 3)}, [1, 2]).save(tmp_path / "r")
    loaded = Recording.load(tmp_path / "r")
    entry = json.loads((tmp_path / "r/manifest.json").read_text())["calls"][0]["sites"]["logits"]
    (tmp_path / "r" / entry["shard"]).unlink()
    assert list(loaded.sites) == ["logits"]
    with pytest.raises(Exception, match="is missing"):
        loaded.sites["logits"]
