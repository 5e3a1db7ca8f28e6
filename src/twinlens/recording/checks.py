"""What a recording refuses, each in one sentence: thing, value, expectation, next step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from twinlens import sites
from twinlens.errors import InputError
from twinlens.ids import Ids, like, padding, whole
from twinlens.recording.shards import CODES, dtype_name
from twinlens.shapes import Int

_STORABLE = frozenset(getattr(torch, name, None) for name in CODES) - {None}

TABLES = ("rotary.", "hook_pos_embed")
"""Sites whose rows implementations compute once for the whole batch, so that b = 1 is honest."""


def tokens_of(given: Ids) -> Int[Tensor, "b p"]:
    """Token ids as int64 [b p]; one row [p] is a batch of one.

    Raises InputError for none at all, other dtypes, negative ids, rows of unequal length.
    """
    tokens = whole("tokens", given)
    if not tokens.numel():
        raise InputError(
            f"tokens are empty (shape {list(tokens.shape)}) and a run needs at least one; "
            "pass the ids that the model was given."
        )
    if tokens.ndim == 1:
        tokens = tokens[None]
    if tokens.ndim != 2:
        raise InputError(
            f"tokens have shape {list(tokens.shape)} where [batch, position] was expected; "
            "pass one row of ids for each text."
        )
    if int(tokens.min()) < 0:
        raise InputError(
            f"tokens hold {int(tokens.min())}, and an id is never negative; "
            "pass any valid id at padded places, and mask= to say which those are."
        )
    return tokens


def mask_of(given: Ids | None, tokens: Int[Tensor, "b p"]) -> Int[Tensor, "b p"]:
    """The padding mask as int64, 1 = a real token; all ones where none is given.

    Raises InputError for another shape, for values besides 0 and 1, for no real token at all.
    """
    if given is None:
        return torch.ones_like(tokens)
    return padding(given, tokens)


def positions_of(given: Ids | None, tokens: Int[Tensor, "b p"]) -> Int[Tensor, "b p"]:
    """Position ids as int64; 0, 1, 2 … where none are given; one row [p] serves every text.

    Raises InputError for another shape or dtype.
    """
    if given is None:
        given = torch.arange(tokens.shape[1], device=tokens.device)
    positions = whole("positions", given)
    rows = positions[None] if positions.ndim == 1 else positions
    if rows.ndim == 2 and rows.shape[0] == 1:
        rows = rows.expand(tokens.shape[0], -1)
    return like(tokens, "positions", rows).contiguous()


def fitted(site: str, tensor: Tensor, tokens: Int[Tensor, "b p"], *, later: bool) -> Tensor:
    """A known site's tensor with all its axes, or InputError where it cannot be this run's.

    A batch axis that is missing is put back where that can be meant in one way only: one text or one
    table for all of them, more than one position, and then every axis fits.
    """
    _check_storable(site, tensor)
    tensor = tensor.detach()
    axes, shape = _axes(site), tuple(tokens.shape)
    table = site.startswith(TABLES)
    if tensor.ndim == len(axes) - 1 and axes[0] == "b" and (shape[0] == 1 or table) and shape[1] > 1:
        tensor = tensor[None]
    if table and tensor.ndim == len(axes) and tensor.shape[0] == 1:
        tensor = tensor.expand(shape[0], *tensor.shape[1:])
    check_shape(site, tensor.shape, tokens, later=later)
    return tensor


def check_named(what: str, given: object) -> None:
    """Raises InputError for what is no mapping from names to tensors."""
    if not isinstance(given, Mapping):
        raise InputError(f"{what} are a {type(given).__name__} where a dict from names to tensors was expected.")
    for name in cast("Mapping[object, Any]", given):
        if not isinstance(name, str):
            raise InputError(
                f"{what} have the name {name!r} where a string was expected; name each as twinlens.sites does."
            )


def _axes(site: str) -> tuple[str, ...]:
    """As `sites.axes`; of a token that follows the last one there is no log-probability."""
    return ("b", "q") if site == "logprobs.chosen" else sites.axes(site)


def check_shape(site: str, shape: Sequence[int], tokens: Tensor, *, later: bool) -> None:
    """Raises InputError where a site's shape does not agree with the tokens' batch and positions.

    `later`: the call follows others, so that its keys may reach back further than its own tokens.
    """
    axes, (batch, length) = _axes(site), tokens.shape
    if not _fits(axes, tuple(shape), batch, length, later):
        known = _known(batch, length, later)
        expected = ", ".join(f"{axis}={known[axis]}" if axis in known else axis for axis in axes)
        raise InputError(
            f"{site} has shape {list(shape)} where [{expected}] was expected for tokens of shape "
            f"{[batch, length]}; pass the tensor and the tokens of one and the same run."
        )


@lru_cache(maxsize=1 << 10)
def _fits(axes: tuple[str, ...], shape: tuple[int, ...], batch: int, length: int, later: bool) -> bool:
    known = _known(batch, length, later)
    return len(shape) == len(axes) and all(
        size == known.get(axis, size) and not (axis == "s" and size < length)
        for axis, size in zip(axes, shape, strict=True)
    )


def _known(batch: int, length: int, later: bool) -> dict[str, int]:
    return {"b": batch, "p": length, "q": length - 1} | ({} if later else {"s": length})


def _check_storable(name: str, tensor: Tensor) -> None:
    # A border: callers in other people's programs are not type-checked.
    if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"{name} is a {type(tensor).__name__} where a torch.Tensor was expected; convert it with torch.as_tensor."
        )
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _STORABLE:
        kind = "meta" if tensor.is_meta else f"{tensor.layout} {dtype_name(tensor)}"
        raise InputError(
            f"{name} is a {kind} tensor where a dense one of {', '.join(CODES)} was expected; convert it first."
        )


def checked_weight(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, or InputError where a recording cannot hold it."""
    _check_storable(name, tensor)
    return tensor


def check_some_known(known: Iterable[str], unknown: Sequence[str]) -> None:
    """Raises InputError where not a single tensor has the name of a site."""
    if any(True for _ in known):
        return
    given = ", ".join(unknown[:4]) + (", …" if len(unknown) > 4 else "")
    raise InputError(
        f"no tensor has the name of a known site (given: {given or 'nothing'}) where names such as "
        "hook_embed, blocks.0.hook_resid_pre, blocks.0.attn.hook_z or logits were expected; "
        "rename them as twinlens.sites lists them."
    )


def plain(what: str, value: dict[str, Any] | None) -> dict[str, Any] | None:
    """The value as JSON gives it back (tuples as lists), or InputError where JSON cannot say it."""
    if not isinstance(value, dict | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"{what} is a {type(value).__name__} where a dict was expected; give names to what it says.")
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{what} cannot be written as JSON ({error}); use text, numbers, true, false, null, lists and dicts only."
        ) from error
