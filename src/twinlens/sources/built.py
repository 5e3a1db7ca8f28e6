"""What every builder gives: a module, how to call it, and what it is."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.errors import SourceError

Call = Callable[[Tensor, "Tensor | None"], Tensor]
"""`(tokens, mask or None) -> logits`; the mask has 1 at real tokens."""


@dataclass(frozen=True)
class Built:
    """A module that is ready to be called.

    Attributes:
        module: in eval mode, without gradients.
        call: how to call it; `None`: `module(tokens)`, with `attention_mask=` where it takes one.
        about: `implementation`, its versions and settings, for the manifest of a recording.
        config: the checkpoint's own config as it stands on disk, or as its header says it.
        checkpoint: the folder or file of the weights.
    """

    module: nn.Module
    call: Call | None
    about: dict[str, str]
    config: dict[str, Any] | None = None
    checkpoint: Path | None = None


def dtype_of(name: str) -> torch.dtype:
    """`torch.float32` for `"float32"`.

    Raises:
        SourceError: torch has no such dtype.
    """
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype):
        raise SourceError(f"dtype={name} is not a dtype of torch; write dtype=float32, say.")
    return dtype


def version_of(distribution: str, needed_for: str) -> str:
    """The installed version of a distribution.

    Raises:
        SourceError: it is not installed in this environment.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise SourceError(
            f"{needed_for} needs {distribution}, which this environment lacks; install it, or name "
            f"an environment that has it: ...@{distribution}==VERSION."
        ) from None


def numbers(version: str) -> tuple[int, ...]:
    """`(4, 43, 2)` for `"4.43.2"`, so that versions compare."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])


def first_sentence(error: BaseException) -> str:
    """The start of somebody else's message, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z)\]'\"`])\. ", text)[0].rstrip(".")[:300]
