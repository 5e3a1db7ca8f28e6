"""Weights that are larger than memory: what is mapped from disk is there only while it is read.

Checkpoints are mapped, so the system reads a page of a weight when a step first touches it. Without more, it drops
pages only once memory is short; here those of files are dropped as soon as they are more than a share of it, by
`madvise(MADV_PAGEOUT)` (Linux 5.4): a page that nobody has written is read again where it is asked for again, and one
that somebody has written is kept. So no number changes, whatever is dropped and whenever. On other systems nothing is
dropped early, and the system does it when it must.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

MAPPED = 3 << 29
"""Bytes of mapped files that may be in memory, the libraries among them: a layer of a large model, or two."""
_PAGEOUT = 21  # MADV_PAGEOUT of madvise(2)
_EVERY = 0.02  # seconds; a disk reads some tens of megabytes within them
_FILES = (".safetensors", ".sites")


class Pager:
    """Drops pages of mapped files while it is entered, and holds tensors in a file that is not kept."""

    open: ClassVar[Pager | None] = None
    """The one that is entered now."""

    def __init__(self, mapped: int = MAPPED) -> None:
        self.mapped = mapped
        self._stop = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="twinlens-")
        self._files = 0

    def __enter__(self) -> Pager:
        self._outer, Pager.open = Pager.open, self
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        Pager.open = self._outer
        self._stop.set()
        self._thread.join()
        self._folder.cleanup()  # what is still mapped stays readable until it is freed

    def hold(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in a mapped file, of the same strides where it has no gaps. Raises OSError: disk full."""
        order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
        dense = tensor.permute(order)
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.sites"
        if hasattr(os, "posix_fallocate"):  # where a mapped file has no room, the process is killed
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, dense.nbytes)
        there = torch.from_file(str(path), shared=True, size=dense.numel(), dtype=dense.dtype).view(dense.shape)
        there.copy_(dense)
        return there.permute([order.index(axis) for axis in range(tensor.ndim)])

    def _watch(self) -> None:
        advise = _madvise()
        while advise is not None and not self._stop.wait(_EVERY):
            if _mapped_bytes() > self.mapped:
                for start, size in _ranges():
                    advise(start, size, _PAGEOUT)


def held(tensor: Tensor) -> Tensor:
    """A tensor as long as memory is no matter; within a `Pager`, a copy that is on disk."""
    if Pager.open is None or tensor.device.type != "cpu" or not tensor.numel():
        return tensor
    return Pager.open.hold(tensor)


@contextmanager
def paged(wanted: bool) -> Generator[None]:
    """A pager, if one is wanted."""
    if not wanted:
        yield
        return
    with Pager():
        yield


def _mapped_bytes() -> int:
    """Bytes of files that are in the memory of this process; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssFile:"):
                return int(line.split()[1]) << 10
    return 0


def _ranges() -> Iterator[tuple[int, int]]:
    """Where checkpoints and sites are mapped."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.removesuffix(" (deleted)").endswith(_FILES):
                start, _, end = line.partition(" ")[0].partition("-")
                yield int(start, 16), int(end, 16) - int(start, 16)


def _madvise() -> Callable[[int, int, int], int] | None:
    """The C library's, where there is one to be asked."""
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
