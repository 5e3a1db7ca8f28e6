"""Token ids, positions and padding, as anybody may give them: tensors, or lists of rows.

Runs inside the environments of other implementations too: nothing but torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twinlens.errors import InputError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Ids = Tensor | Sequence[Any]
"""Ids as a tensor, a list of rows, or one row."""


def tensor_of(what: str, given: Ids) -> Tensor:
    """What is given, as a tensor with numbers in it. Raises InputError where it is none."""
    try:
        tensor = torch.as_tensor(given)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{what} cannot be read as one tensor of ids ({error}); pass rows of integers, padded "
            "to one length, with mask= to say which are real."
        ) from error
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        raise InputError(
            f"{what} are a {kind} tensor where a dense one that holds numbers was expected; convert it first."
        )
    return tensor


def whole(what: str, given: Ids) -> Tensor:
    """As int64. Raises InputError for other numbers than integers."""
    tensor = tensor_of(what, given)
    if tensor.numel() and tensor.dtype not in INTEGERS:
        raise InputError(
            f"{what} are {str(tensor.dtype).removeprefix('torch.')} where integers were expected; "
            "pass the ids themselves, as int64."
        )
    return tensor.detach().to(torch.int64)


def like(tokens: Tensor, what: str, given: Tensor) -> Tensor:
    """In the shape of the tokens; one row [p] is a batch of one. Raises InputError for any other."""
    if given.shape != tokens.shape and (1, *given.shape) != tuple(tokens.shape):
        raise InputError(
            f"{what} has shape {list(given.shape)} where tokens have {list(tokens.shape)}; "
            f"pass {what} for the same batch and positions."
        )
    return given.reshape(tokens.shape)


def padding(given: Ids, tokens: Tensor, what: str = "mask") -> Tensor:
    """A padding mask as int64, 1 = a real token, in the shape of the tokens.

    Raises InputError for another shape, for values besides 0 and 1, for no real token at all.
    """
    mask = like(tokens, what, tensor_of(what, given).detach())
    odd = mask[(mask != 0) & (mask != 1)]
    if odd.numel():
        raise InputError(
            f"{what} holds {odd[0].item():g} where 1 (a real token) or 0 (padding) was expected; "
            "pass the padding mask [batch, position], not an additive one."
        )
    if not bool(mask.any()):
        raise InputError(
            f"{what} is 0 everywhere, so no token is real; 1 marks a real token, in an additive mask it is 0."
        )
    return mask.to(torch.int64)
