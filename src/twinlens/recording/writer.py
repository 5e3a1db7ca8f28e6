"""Writes a recording while it is produced."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from twinlens import sites
from twinlens.errors import InputError, RecordingError
from twinlens.ids import Ids
from twinlens.recording import checks
from twinlens.recording.folder import GrowingFolder, Waiting
from twinlens.recording.manifest import INPUTS, Manifest, StoredCall
from twinlens.shapes import Int
from twinlens.tensors import path_of

SHARD_BYTES = 64 << 20
"""Small enough for three to be written side by side; a run of 100 GB is then 1,600 files."""


class Writer:
    """A recording that grows on disk, one call after the other.

        with Writer(path, about={"implementation": "mine 1.2"}) as writer:
            writer.call(tokens)
            writer.add("logits", logits, placed="weight")

    Until it ends, and if it is interrupted, the folder opens as a recording that says `partial`.
    With `overwrite=True` an earlier recording stays as it is until this one is whole; meanwhile
    this one grows beside it under `PATH.new-…`. Tensors are copied when they are added.

    Args:
        path: The folder; it must not exist, or be empty, or hold a recording and overwrite=True.
        overwrite: Take the place of an earlier recording. Nothing else is ever removed.
        about: Implementation, versions, whatever tells where this came from. Plain JSON.
        config: The checkpoint's config. Plain JSON.
        checkpoint: {"path": ..., "sha256": ...}.
        shard_bytes: A shard is closed when it has so many bytes of tensors.

    Raises:
        RecordingError: The folder is not free, or the disk is full; nothing is left behind.
        InputError: See `call`, `add`, `weight`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        about: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        checkpoint: dict[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._manifest = Manifest(
            checks.plain("about", about) or {},
            checks.plain("config", config),
            checks.plain("checkpoint", checkpoint),
        )
        self._folder = GrowingFolder(path_of(path).resolve(), self._manifest, overwrite, shard_bytes)
        self._tokens: Tensor | None = None
        self._seen: set[str] = set()
        self._weights: set[str] = set()
        self._any = False

    def call(self, tokens: Ids, positions: Ids | None = None, mask: Ids | None = None) -> Int[Tensor, "b p"]:
        """Begins a call; what is added from now on belongs to it. Returns its tokens as int64.

        Raises InputError for tokens, positions or a mask that cannot be.
        """
        self._check_open()
        ids = checks.tokens_of(tokens)
        inputs = (ids, checks.positions_of(positions, ids), checks.mask_of(mask, ids))
        number, call = len(self._manifest.calls), StoredCall()
        self._manifest.calls.append(call)
        for name, tensor in zip(INPUTS, inputs, strict=True):
            self._folder.take_input(Waiting(f"{number}/{name}", _own(tensor), call.inputs, name))
        self._tokens, self._seen = ids, set()
        return ids

    def add(self, site: str, tensor: Tensor, placed: str = "given") -> None:
        """Files a tensor under a site of the current call; `placed` says by what evidence.

        A name that is no known site is listed under `unknown`, and its tensor is left out.
        Raises InputError for a shape that the call's tokens forbid, a dtype that cannot be stored,
        a site that this call has already, or when no call was begun.
        """
        self._add(site, tensor, placed, copy=True)

    def lend(self, site: str, tensor: Tensor, placed: str = "given") -> None:
        """Like `add`, for a tensor that nobody writes to before `finish`: it is not copied."""
        self._add(site, tensor, placed, copy=False)

    def weight(self, name: str, tensor: Tensor) -> None:
        """Files a constant of this implementation under the checkpoint's own tensor name."""
        self._check_open()
        if name in self._weights:
            raise InputError(f"weight {name} is recorded already; give each weight once.")
        own = _own(checks.checked_weight(name, tensor))
        self._weights.add(name)
        self._folder.take(Waiting(f"weights/{name}", own, self._manifest.weights, name))

    def weights_equal(self, names: Iterable[str]) -> None:
        """Notes weights that were verified to be the checkpoint's, so that none need be stored."""
        self._manifest.weights_equal = sorted({*self._manifest.weights_equal, *names})

    def unknown(self, names: Iterable[str]) -> None:
        """Notes names of tensors that are no known sites; their tensors are not stored."""
        self._manifest.unknown = list(dict.fromkeys([*self._manifest.unknown, *names]))

    def finish(self, *, partial: bool = False) -> None:
        """Writes what is left and marks the recording as whole; once it has ended, does nothing.

        `partial` is for a copy of what was itself interrupted.
        Raises InputError where nothing was recorded; then no folder is left.
        """
        if self._folder.ended:
            return
        if not self._any:
            self.discard()
            checks.check_some_known((), self._manifest.unknown)
        self._folder.finish(partial=partial)

    def interrupt(self) -> None:
        """Ends early: what there is stays, as partial, unless it was to replace another."""
        if not self._any:
            self.discard()
        if not self._folder.ended:
            self._folder.interrupt()

    def discard(self) -> None:
        """Ends with nothing: all that was written is removed, an earlier recording stays."""
        self._folder.discard()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.interrupt()

    def _add(self, site: str, tensor: Tensor, placed: str, *, copy: bool) -> None:
        self._check_open()
        if self._tokens is None or site in INPUTS:
            raise InputError(f"{site} came where no call takes it; begin with call(tokens, …).")
        if not sites.is_known(site):
            self.unknown([site])
            return
        number, call = len(self._manifest.calls) - 1, self._manifest.calls[-1]
        if site in self._seen:
            raise InputError(f"{site} is recorded already in call {number}; add each site once.")
        fitted = checks.fitted(site, tensor, self._tokens, later=number > 0)
        kept = _own(fitted) if copy else fitted.detach().cpu().contiguous()
        self._seen.add(site)
        self._any = True
        self._folder.take(Waiting(f"{number}/{site}", kept, call.sites, site, placed))

    def _check_open(self) -> None:
        if self._folder.ended:
            raise RecordingError(f"the recording {self._folder.path} has ended; open another Writer to record more.")


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy in this machine's memory, which no later write can reach."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
