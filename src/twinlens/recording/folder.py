"""A recording's folder while it grows: shards by a few hands, and a manifest that names the whole.

Nothing here knows what a site is; `writer` does.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from twinlens.errors import RecordingError
from twinlens.recording.manifest import OURS, Manifest
from twinlens.recording.shards import Entry, Seal, dtype_name, write_shard

HANDS = 3
"""Shards written at once. Measured with 600 MB on two processors: 0.92 s with one hand, 0.60 s with
two, 0.45 s with three (while one waits for the disk, two hash), no less with four."""


@dataclass(frozen=True)
class Waiting:
    """A contiguous CPU tensor that waits for a shard; `where[name]` will say where it went."""

    key: str
    tensor: Tensor
    where: dict[str, Entry]
    name: str
    placed: str = ""

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.tensor.numel() * self.tensor.element_size()


@dataclass
class _Writing:
    shard: str
    waiting: list[Waiting]
    job: Future[Seal]


@dataclass
class GrowingFolder:
    """The folder at `path`, or one beside it that takes its place when it is whole.

    Raises RecordingError where the path is not free, and wherever the disk fails; then all that
    was written is removed.
    """

    path: Path
    manifest: Manifest
    overwrite: bool
    shard_bytes: int
    _inputs: list[Waiting] = field(default_factory=list[Waiting])
    _rest: list[Waiting] = field(default_factory=list[Waiting])
    _rest_bytes: int = 0
    _writing: deque[_Writing] = field(default_factory=deque[_Writing])
    _started: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        replaces = _check_free(self.path, self.overwrite)
        beside = self.path.with_name(f"{self.path.name}.new-{secrets.token_hex(4)}")
        self._folder = beside if replaces else self.path
        self._was_there = self._folder.exists()
        self._hands = ThreadPoolExecutor(HANDS, thread_name_prefix="twinlens-writer")
        with self._disk():
            self._folder.mkdir(parents=True, exist_ok=True)
            self.manifest.write(self._folder)

    def take_input(self, waiting: Waiting) -> None:
        """Tokens and the like lie apart, so that opening a recording verifies a few kilobytes."""
        self._inputs.append(waiting)

    def take(self, waiting: Waiting) -> None:
        """Queues a tensor, and writes a shard when enough of them wait."""
        self._rest.append(waiting)
        self._rest_bytes += waiting.bytes
        if self._rest_bytes >= self.shard_bytes:
            with self._disk():
                self._flush()
                # No more than the hands hold: beyond that the memory in use would grow.
                self._settle(HANDS)

    def finish(self, *, partial: bool) -> None:
        """Writes what waits, says whether it is the whole, and takes the place of an old one."""
        with self._disk():
            self._complete(partial=partial)
            if self._folder != self.path:
                self._swap()
        self.ended = True

    def interrupt(self) -> None:
        """Keeps what there is as partial; what was to replace an earlier recording is removed."""
        if self._folder != self.path:
            self.discard()
            return
        with self._disk():
            self._complete(partial=True)
        self.ended = True

    def discard(self) -> None:
        """Removes all that was written; once ended, does nothing."""
        if self.ended:
            return
        self.ended = True
        self._hands.shutdown(wait=True, cancel_futures=True)
        if not self._was_there:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for name in _ours(self._folder):
            (self._folder / name).unlink(missing_ok=True)

    def _complete(self, *, partial: bool) -> None:
        self._flush()
        self._settle(0)
        self.manifest.partial = partial
        self.manifest.write(self._folder)
        self._hands.shutdown()

    def _flush(self) -> None:
        for waiting in filter(None, (self._inputs, self._rest)):
            name = f"shard-{self._started:05d}.safetensors"
            once = _once(waiting)
            tensors = {item.key: item.tensor for item in once}
            job = self._hands.submit(write_shard, self._folder / name, tensors)
            self._writing.append(_Writing(name, once, job))
            self._started += 1
        self._inputs, self._rest, self._rest_bytes = [], [], 0

    def _settle(self, leave: int) -> None:
        """Names finished shards in the manifest, in order, until at most `leave` are unfinished."""
        settled = False
        while self._writing and (len(self._writing) > leave or self._writing[0].job.done()):
            done = self._writing.popleft()
            self.manifest.shards[done.shard] = done.job.result()
            for item in done.waiting:
                item.where[item.name] = _entry(done.shard, item)
            settled = True
        if settled and leave:
            self.manifest.write(self._folder)

    @contextmanager
    def _disk(self) -> Generator[None]:
        """Turns an error of the disk into one sentence, after all that was written is removed.

        Removed and not kept as partial: a full disk is of no use to whoever has to free it.
        """
        try:
            yield
        except OSError as error:
            self.discard()
            why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise RecordingError(
                f"the recording {self.path} could not be written ({why}), and what had been "
                "written of it was removed; free some space or choose another path."
            ) from error

    def _swap(self) -> None:
        old = self.path.with_name(f"{self.path.name}.old-{secrets.token_hex(4)}")
        self.path.rename(old)
        try:
            self._folder.rename(self.path)
        except OSError:
            old.rename(self.path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _once(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Tensors of one memory under one key: what leaves a layer is what enters the next."""
    keys = dict[object, str]()
    return [replace(item, key=keys.setdefault(_memory(item.tensor), item.key)) for item in waiting]


def _memory(t: Tensor) -> object:
    return t.data_ptr() or id(t), t.dtype, t.shape  # contiguous; a tensor of no entries has no memory


def _entry(shard: str, item: Waiting) -> Entry:
    return Entry(shard, item.key, tuple(item.tensor.shape), dtype_name(item.tensor), item.placed)


def _ours(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if OURS.fullmatch(name)]


def _check_free(path: Path, overwrite: bool) -> bool:
    """Whether an earlier recording is to be replaced; RecordingError where the path is not free."""
    if not path.exists() or (path.is_dir() and not os.listdir(path)):
        return False
    if not path.is_dir():
        raise RecordingError(f"{path} is a file where a folder was expected; choose another path.")
    if foreign := sorted(set(os.listdir(path)) - set(_ours(path))):
        raise RecordingError(
            f"{path} holds {foreign[0]}, which belongs to no recording, where an empty or new "
            "folder was expected; twinlens removes only what it wrote: choose another path."
        )
    if not overwrite:
        raise RecordingError(
            f"{path} holds a recording already where an empty or new folder was expected; "
            "choose another path, or say overwrite=True (--overwrite)."
        )
    return True
