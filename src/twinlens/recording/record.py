"""A recording: the tensors of one run under site names, call by call, in memory or on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from twinlens import sites as names
from twinlens.errors import InputError, RecordingError
from twinlens.ids import Ids
from twinlens.recording import checks
from twinlens.recording.manifest import INPUTS, Manifest, StoredCall
from twinlens.recording.shards import Shards, Stored, Tensors
from twinlens.recording.writer import Writer
from twinlens.shapes import Int
from twinlens.tensors import path_of


@dataclass(eq=False)
class Call:
    """One forward pass: a prefill, a step of decoding, a chunk.

    Attributes:
        tokens: Ids, int64 [b p].
        positions: Position ids, int64 [b p].
        mask: int64 [b p], 1 = a real token.
        sites: Tensors by site name; from disk each is mapped when it is asked for.
        placed: By what evidence each site was placed: weight, replay, provisional, given …
        before: What the calls before left, by `attn.hook_k_past` and the like, and `key_mask` [b s], the mask of all
            slots; in memory only, since it follows from those calls (`twinlens.cached.befores`).
    """

    tokens: Int[Tensor, "b p"]
    positions: Int[Tensor, "b p"]
    mask: Int[Tensor, "b p"]
    sites: Tensors
    placed: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @classmethod
    def of(
        cls,
        sites: Mapping[str, Tensor],
        tokens: Ids,
        *,
        mask: Ids | None = None,
        positions: Ids | None = None,
        placed: Mapping[str, str] | None = None,
        later: bool = False,
    ) -> Call:
        """A call whose inputs and known sites have been checked; `later`: others came before it.

        Positions are 0, 1, 2 … and all tokens are real unless something else is given; a site
        that `placed` does not mention was "given". Raises InputError as `Recording.from_tensors`.
        """
        ids = checks.tokens_of(tokens)
        fitted = {s: checks.fitted(s, tensor, ids, later=later) for s, tensor in sites.items()}
        evidence = dict.fromkeys(fitted, "given") | dict(placed or {})
        return cls(ids, checks.positions_of(positions, ids), checks.mask_of(mask, ids), fitted, evidence)

    def __repr__(self) -> str:
        return f"<Call of tokens {list(self.tokens.shape)}, {len(self.sites)} sites>"


@dataclass(eq=False)
class Recording:
    """The tensors of one run of one implementation.

    Attributes:
        calls: In the order in which they were made.
        about: Implementation, versions, whatever tells where this came from.
        config: The checkpoint's config, where it is known.
        checkpoint: {"path": ..., "sha256": ...}, where it is known.
        weights: Constants of this implementation under the checkpoint's own tensor names: those
            that are known to differ from it, or that were given.
        weights_equal: Names that were verified to be equal to the checkpoint's.
        partial: The run was interrupted; what is here is whole, but more was to come.
        unknown: Names that were given and are no site; their tensors were left out.
    """

    calls: list[Call]
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    weights: Tensors = field(default_factory=dict[str, Tensor])
    weights_equal: frozenset[str] = frozenset()
    partial: bool = False
    unknown: list[str] = field(default_factory=list[str])

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        tokens: Ids,
        *,
        mask: Ids | None = None,
        positions: Ids | None = None,
        about: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Recording:
        """A recording of one call, from whatever any program wrote under site names.

        Args:
            tensors: By site name, shapes as `sites.axes` says. For a single text the batch axis
                may be missing. `positions` and `mask` may be among them.
            tokens: The ids that were run, [b p]; one row [p] is a batch of one.
            mask: [b p], 1 = a real token; all are real by default.
            positions: [b p] or [p]; 0, 1, 2 … by default.
            about: Implementation, versions …, as plain JSON.
            config: The checkpoint's config, as plain JSON.
            weights: Weights by the checkpoint's own tensor names.

        Names that are no site go to `unknown`. Values are not judged: a NaN is a finding.

        Raises:
            InputError: No known site at all; a site, mask or positions whose shape the tokens
                forbid; tokens that are empty or no integers; a dtype that cannot be stored.

        >>> import torch
        >>> recording = Recording.from_tensors({"logits": torch.zeros(1, 3, 7)}, tokens=[1, 5, 2])
        >>> recording.tokens.shape, list(recording.sites)
        (torch.Size([1, 3]), ['logits'])
        """
        for what, named in (("tensors", tensors), ("weights", weights or {})):
            checks.check_named(what, named)
        known = {n: t for n, t in tensors.items() if n not in INPUTS and names.is_known(n)}
        unknown = [name for name in tensors if not names.is_known(name)]
        ids = checks.tokens_of(tokens)
        checks.check_some_known(known, unknown)
        _check_same_tokens(ids, tensors)
        call = Call.of(
            known,
            ids,
            mask=_one_of("mask", mask, tensors),
            positions=_one_of("positions", positions, tensors),
        )
        return cls(
            calls=[call],
            about=checks.plain("about", about) or {},
            config=checks.plain("config", config),
            weights={n: checks.checked_weight(n, t) for n, t in (weights or {}).items()},
            unknown=unknown,
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the recording as a folder: safetensors shards and `manifest.json`.

        Raises RecordingError where `path` is not free (an earlier recording is replaced with
        `overwrite=True`, and only once the new one is whole) or the disk is full, and InputError
        where a tensor does not fit; in either case nothing is left behind.
        """
        writer = Writer(
            path,
            overwrite=overwrite,
            about=self.about,
            config=self.config,
            checkpoint=self.checkpoint,
        )
        try:
            self._write(writer)
            writer.finish(partial=self.partial)
        except BaseException:
            writer.discard()
            raise

    def _write(self, writer: Writer) -> None:
        writer.unknown(self.unknown)
        writer.weights_equal(self.weights_equal)
        for call in self.calls:
            writer.call(call.tokens, call.positions, call.mask)
            for site, tensor in call.sites.items():
                writer.lend(site, tensor, call.placed.get(site, "given"))
        for name, tensor in self.weights.items():
            writer.weight(name, tensor)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Recording:
        """Opens a recording; tensors stay on disk until they are asked for.

        With `verify`, the first tensor that is asked of a shard has the whole shard's hash checked.
        Raises RecordingError where the folder, the manifest or a shard is missing, damaged or of
        another format, here or when the tensor is read.
        """
        folder = path_of(path)
        manifest = Manifest.read(folder)
        shards = Shards(folder, manifest.shards, verify=verify)
        strange = {s for call in manifest.calls for s in call.sites if not names.is_known(s)}
        return cls(
            calls=[_opened(call, shards, folder, later=number > 0) for number, call in enumerate(manifest.calls)],
            about=manifest.about,
            config=manifest.config,
            checkpoint=manifest.checkpoint,
            weights=Stored(shards, manifest.weights),
            weights_equal=frozenset(manifest.weights_equal),
            partial=manifest.partial,
            unknown=list(dict.fromkeys([*manifest.unknown, *sorted(strange)])),
        )

    @property
    def tokens(self) -> Int[Tensor, "b p"]:
        """Tokens of the first call."""
        return self.first.tokens

    @property
    def positions(self) -> Int[Tensor, "b p"]:
        """Positions of the first call."""
        return self.first.positions

    @property
    def mask(self) -> Int[Tensor, "b p"]:
        """Padding mask of the first call, 1 = a real token."""
        return self.first.mask

    @property
    def sites(self) -> Tensors:
        """Sites of the first call."""
        return self.first.sites

    @property
    def first(self) -> Call:
        """The first call. Raises RecordingError where there is none."""
        if not self.calls:
            raise RecordingError(
                f"{self!r} has no call: it was interrupted before the first was written; record once more."
            )
        return self.calls[0]

    def __repr__(self) -> str:
        what, calls = self.about.get("implementation", "an implementation"), len(self.calls)
        count = sum(len(call.sites) for call in self.calls)
        partial = ", partial" if self.partial else ""
        return f"<Recording of {what}: {calls} call{'s' * (calls != 1)}, {count} sites{partial}>"


def _one_of(name: str, given: Ids | None, tensors: Mapping[str, Tensor]) -> Ids | None:
    if given is not None and name in tensors:
        raise InputError(f"{name} is given twice, as {name}= and among the tensors; pass it once.")
    return tensors.get(name) if given is None else given


def _check_same_tokens(tokens: Tensor, tensors: Mapping[str, Tensor]) -> None:
    among = tensors.get("tokens")
    if among is not None and not checks.tokens_of(among).equal(tokens):
        raise InputError("the tensors hold other tokens than tokens=; pass those that were run, once.")


def _opened(call: StoredCall, shards: Shards, folder: Path, *, later: bool) -> Call:
    inputs = {name: shards.tensor(call.inputs[name]) for name in INPUTS}
    sites = {site: entry for site, entry in call.sites.items() if names.is_known(site)}
    try:
        for site, entry in sites.items():
            checks.check_shape(site, entry.shape, inputs["tokens"], later=later)
    except InputError as error:
        raise RecordingError(f"the recording {folder} contradicts itself: {error}") from error
    placed = {site: entry.placed for site, entry in sites.items()}
    return Call(inputs["tokens"], inputs["positions"], inputs["mask"], Stored(shards, sites), placed)
