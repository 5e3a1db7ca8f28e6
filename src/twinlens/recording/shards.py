"""Shards: safetensors files that are hashed while they are written, and read lazily.

The format is https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header,
the tensors' bytes. It is written here rather than by the library because the library wants every
tensor as a copy in `bytes`, and a hash would then read the whole file a second time.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinlens.errors import RecordingError
from twinlens.recording.hashes import digest, fastest

if TYPE_CHECKING:
    Tensors = Mapping[str, Tensor]
else:
    Tensors = Mapping  # whoever checks the type of an item would read it from disk

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""safetensors' word for each dtype that a recording holds."""

CHUNK = 1 << 20
"""Bytes hashed, and beside it written, at a time: neither keeps the other, or the interpreter, waiting for long."""


@dataclass(frozen=True)
class Seal:
    """What a shard must be when it is read again."""

    hash: str
    """One of `HASHES`."""
    digest: str
    bytes: int

    def said(self) -> dict[str, str | int]:
        """As a manifest says it: the digest under the name of its function."""
        return {self.hash: self.digest, "bytes": self.bytes}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies on disk, and how its site was placed ("" for what is no site)."""

    shard: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    placed: str = ""


def dtype_name(tensor: Tensor) -> str:
    """`torch.bfloat16` as "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> Seal:
    """Writes contiguous CPU tensors to `path`, which appears only when it is whole and on disk.

    Raises OSError where the disk does; then nothing is left behind.
    """
    unfinished = path.with_name(path.name + ".tmp")
    chunks = list(_file_bytes(tensors))
    name = fastest()
    try:
        with ThreadPoolExecutor(1) as beside, unfinished.open("wb") as file:
            hashed = beside.submit(digest, name, chunks)
            size = sum(file.write(chunk) for chunk in chunks)
            file.flush()
            os.fsync(file.fileno())
            seal = Seal(name, hashed.result(), size)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return seal


def _file_bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    # Wide dtypes first, as safetensors does: a reader maps each tensor at a multiple of its width.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header = json.dumps(dict(_header(ordered)), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for _, tensor in ordered:
        data = _memory(tensor)
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def _header(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Any]]:
    start = 0
    for key, tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        yield (
            key,
            {
                "dtype": CODES[dtype_name(tensor)],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            },
        )
        start = end


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied; the tensor must outlive them.

    Through ctypes, since numpy knows no bfloat16 and may not be installed.
    """
    if sys.byteorder != "little":
        raise RecordingError("this machine is big-endian and safetensors are little-endian; record on another.")
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


class Shards:
    """The shards of one recording, opened and verified when a tensor in them is first wanted."""

    def __init__(self, folder: Path, seals: Mapping[str, Seal], *, verify: bool) -> None:
        self._folder, self._seals, self._verify = folder, seals, verify
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()
        for name in seals:
            self._check_size(name)

    def tensor(self, entry: Entry) -> Tensor:
        """One tensor, mapped from disk.

        Raises RecordingError where its shard is missing, cut short or altered.
        """
        with self._lock:
            if entry.shard not in self._open:
                self._open[entry.shard] = self._opened(entry.shard)
            shard = self._open[entry.shard]
        try:
            tensor: Tensor = shard.get_tensor(entry.key)
        except SafetensorError as error:
            raise self._damaged(entry.shard, f"holds no readable tensor {entry.key}") from error
        if (tuple(tensor.shape), dtype_name(tensor)) != (entry.shape, entry.dtype):
            raise self._damaged(
                entry.shard,
                f"holds {entry.key} as {dtype_name(tensor)} {list(tensor.shape)} where the "
                f"manifest says {entry.dtype} {list(entry.shape)}",
            )
        return tensor

    def _opened(self, name: str) -> Any:
        self._check_size(name)
        if self._verify:
            self._check_hash(name)
        try:
            return safe_open(self._folder / name, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise self._damaged(name, f"is no safetensors file ({error})") from error

    def _check_size(self, name: str) -> None:
        path, expected = self._folder / name, self._seals[name].bytes
        if not path.is_file():
            raise self._damaged(name, "is missing")
        if path.stat().st_size != expected:
            raise self._damaged(name, f"has {path.stat().st_size} bytes where the manifest says {expected}")

    def _check_hash(self, name: str) -> None:
        expected = self._seals[name].digest
        with (self._folder / name).open("rb") as file:
            found = digest(self._seals[name].hash, iter(lambda: file.read(CHUNK), b""))
        if found != expected:
            raise self._damaged(name, f"has the hash {found[:12]}… where the manifest says {expected[:12]}…")

    def _damaged(self, name: str, what: str) -> RecordingError:
        return RecordingError(
            f"shard {name} of the recording {self._folder} {what}; copy the recording again from "
            "where it was made, or record once more."
        )


class Stored(Mapping[str, Tensor]):
    """Tensors by name that stay on disk until they are asked for. Order is the order of writing."""

    def __init__(self, shards: Shards, entries: Mapping[str, Entry]) -> None:
        self._shards, self._entries = shards, entries

    def __getitem__(self, name: str) -> Tensor:
        return self._shards.tensor(self._entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"<{len(self)} tensors on disk>"
