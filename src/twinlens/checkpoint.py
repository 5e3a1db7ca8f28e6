"""A checkpoint: its config, and its tensors by their own names.

Weights on disk stay mapped until a step reads them; those of a live module are taken by reference.
This file also runs where another implementation lives: it needs torch and safetensors only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.errors import CheckpointError
from twinlens.sites import INPUTS, axes, split
from twinlens.spec import Shape, Spec, Step, stored_name
from twinlens.stacked import Stacked
from twinlens.tensors import Folder, Live, Tensors, check_real, path_of, read_json

_PREFIX = re.compile(r"^(?:(?:model|transformer|gpt_neox|decoder)\.)+")
_NUMBER = re.compile(r"\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_ALSO = {"lm_head.weight": "embed_out.weight"}
"""What older checkpoints call a tensor (GPT-NeoX)."""
_FREE = ("m", "g", "a", "l", "n", "c", "y", "o", "i")
"""Axes that weights alone fix, layer by layer."""
_SAMPLE = 4096  # entries at either end of a tensor that enter its fingerprint


@dataclass(frozen=True)
class Checkpoint:
    """The config of a model and its tensors.

    Names are given as a family's spec has them; a checkpoint may have the leading `model.` or
    `transformer.` or not, and may leave out an unembedding that is tied to the embedding.

    Attributes:
        config: as config.json or the live module has it.
        tensors: where the tensors come from.
        path: the folder; None for a live module.
    """

    config: Mapping[str, Any]
    tensors: Tensors = field(repr=False)
    path: Path | None = None

    def weight(self, name: str) -> Tensor:
        """The tensor of this name, in the dtype in which it is stored.

        Raises:
            CheckpointError: there is none, or its bytes cannot be read.
        """
        return self.tensors.tensor(self.resolve(name))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it. Raises CheckpointError as `weight`."""
        return self.tensors.shape(self.resolve(name))

    def resolve(self, name: str) -> str:
        """The name that this checkpoint itself gives to the tensor."""
        name = stored_name(name)
        if name in self._own:
            return name
        plain = _plain(name)
        found = self._plain.get(plain) or self._plain.get(_ALSO.get(plain, plain)) or self._tied(name)
        if found is None:
            raise CheckpointError(
                f"{self._where} has no tensor {name!r} among its {len(self._own)}; the config asks "
                "for it: use the config of this checkpoint, or download its weights again."
            )
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the token embedding, in which the model computes."""
        name = next((self._plain[e] for e in _EMBEDDINGS if e in self._plain), None)
        return self.tensors.tensor(name or next(iter(self._own))).dtype

    def fingerprint(self) -> str:
        """SHA-256 over each tensor's name, dtype, shape and the first and last 4096 entries.

        It is the same for a live module, for a folder and for other shards of the same weights, and
        costs a few milliseconds. It tells checkpoints apart; it does not prove that all entries are
        equal.
        """
        digest = hashlib.sha256()
        for plain, name in sorted(self._plain.items()):
            if plain == "lm_head.weight" and self._is_tied(name):
                continue
            tensor = self.tensors.tensor(name).detach()
            digest.update(f"{plain} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.reshape(-1)
            for end in (flat[:_SAMPLE], flat[-_SAMPLE:]):
                digest.update(end.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check(self, spec: Spec) -> None:
        """Whether these are the weights of `spec`: there, of its geometry, finite.

        Reads all weights once.

        Raises:
            CheckpointError: the first tensor that is not as it should be, by name.
        """
        sizes = _sizes(spec.shape)
        for step in spec.steps:
            for argument, weight in step.weights:
                self._check_shape(step, argument, weight.name, weight.transposed, sizes)
        self._check_depth(spec)
        for name in dict.fromkeys(map(stored_name, spec.weight_names)):
            self._check_finite(name)

    def unused(self, spec: Spec) -> tuple[str, ...]:
        """Tensors that no step of `spec` uses, by the checkpoint's own names."""
        used = {self.resolve(name) for name in spec.weight_names}
        return tuple(name for name in self.tensors.names() if name not in used)

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(self.tensors.names())

    @cached_property
    def _plain(self) -> dict[str, str]:
        return {_plain(name): name for name in self.tensors.names()}

    @property
    def _where(self) -> str:
        return "the module" if self.path is None else str(self.path)

    def _tied(self, name: str) -> str | None:
        """The embedding, for an unembedding that is left out and not said to be untied."""
        if _plain(name) != "lm_head.weight" or self.config.get("tie_word_embeddings") is False:
            return None
        return next((self._plain[e] for e in _EMBEDDINGS if e in self._plain), None)

    def _is_tied(self, name: str) -> bool:
        embeddings = (self._plain[e] for e in _EMBEDDINGS if e in self._plain)
        head = self.tensors.tensor(name)
        return any(head.data_ptr() == self.tensors.tensor(e).data_ptr() for e in embeddings)

    def _check_shape(self, step: Step, argument: str, name: str, transposed: bool, sizes: dict[str, int]) -> None:
        found = self.shape_of(name)
        seen = _turned(found) if transposed else found
        expected = _expected(step, argument, len(found), sizes, seen)
        if expected is not None and seen != expected:
            stored = _turned(expected) if transposed else expected
            raise CheckpointError(
                f"{self.resolve(name)} in {self._where} has the shape {list(found)}; the config "
                f"asks for {list(stored)} ({argument} of {step.writes}): the config does not "
                "belong to these weights."
            )

    def _check_depth(self, spec: Spec) -> None:
        for name in self.unused(spec):
            number = _NUMBER.search(name)
            if number and int(number[1]) >= spec.shape.layers + spec.shape.spare_layers:
                raise CheckpointError(
                    f"{self._where} has {name}, but the config says {spec.shape.layers} layers: "
                    "this config is not the one of these weights."
                )

    def _check_finite(self, name: str) -> None:
        tensor = self.weight(name).detach()
        if tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else None).isfinite():
            return
        bad = ~tensor.isfinite()
        if not bad.any():
            return  # the sum alone overflowed
        at = bad.nonzero()[0].tolist()
        kind = "a NaN" if tensor[tuple(at)].isnan() else "an infinite entry"
        raise CheckpointError(
            f"{self.resolve(name)} in {self._where} has {kind} at row {at[0]}; twinlens cannot "
            "compare a model that is not finite: reload the checkpoint."
        )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder: config.json and safetensors, in one file or in shards.

    Raises:
        CheckpointError: a file is missing, cut short or not what its name says.
    """
    folder = path_of(path)
    config = read_json(folder / "config.json", "give a folder with config.json and safetensors")
    return Checkpoint(config, Stacked(Folder(folder)), folder)


def from_module(module: nn.Module) -> Checkpoint:
    """The checkpoint that a live transformers model holds: its parameters themselves, no copies.

    Raises:
        CheckpointError: the module has no transformers config, or its tensors no numbers.
    """
    config = getattr(module, "config", None)  # the border: any module may come in
    if config is None or not hasattr(config, "to_dict"):
        raise CheckpointError(
            f"{type(module).__name__} has no transformers config; give a transformers model, or a "
            "path to its checkpoint."
        )
    check_real(module)
    experts = getattr(config, "_experts_implementation", None)  # how they are run now, which no file says
    said = config.to_dict() | ({} if experts is None else {"_experts_implementation": experts})
    return Checkpoint(said, Stacked(Live(module)))


def _plain(name: str) -> str:
    return _PREFIX.sub("", name)


def _sizes(shape: Shape) -> dict[str, int]:
    """The length of each axis that the config fixes."""
    sizes = shape.axes | {"f": (shape.heads + 2 * shape.kv_heads) * shape.head_width}
    return sizes if shape.positions is None else sizes | {"positions": shape.positions}


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a transposed matrix, or of a row of them."""
    return (*shape[:-2], shape[-1], shape[-2])


def _expected(
    step: Step, argument: str, rank: int, sizes: dict[str, int], seen: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shape of a weight, [out, in] or [out], from the axes of what its step writes and reads, or its own.

    None where an axis has no length yet; those which weights alone fix get it from the first one.
    """
    try:
        out, read = axes(step.writes)[2:], axes(step.reads[0])[2:]
    except KeyError:
        return None  # a site of the user's own
    layer, _ = split(step.writes)
    own = tuple(step.op.weight_axes.get(argument, "").split())
    named = {a: f"{layer}.{a}" if a in _FREE and a not in sizes else a for a in (*out, *read, *own)}
    if own:
        if len(own) == rank:
            sizes.update({named[a]: size for a, size in zip(own, seen, strict=True) if a in _FREE})
        return tuple(sizes[named[a]] for a in own)
    if rank == 1:
        along = step.op.along(out)
        return (prod(sizes[named[a]] for a in along),) if all(named[a] in sizes for a in along) else None
    if step.reads[0] in INPUTS:  # a lookup: rows are ids or positions
        count = sizes.get({"tokens": "v"}.get(step.reads[0], step.reads[0]))
        return (seen[0] if count is None else step.op.table_rows(count), prod(sizes[named[a]] for a in out))
    for group, size in ((out, seen[0]), (read, seen[1])):
        unknown = [named[a] for a in group if a in _FREE and named[a] not in sizes]
        if len(unknown) == 1:
            sizes[unknown[0]] = size // prod(sizes.get(named[a], 1) for a in group)
    return prod(sizes[named[a]] for a in out), prod(sizes[named[a]] for a in read)
