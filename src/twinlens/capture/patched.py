"""Functions of torch that somebody has replaced by another one of the same name.

A function of torch that is written in Python hands a mode whatever stands under its name now. Where that is somebody
else's, which calls the original, the mode would run it a second time, inside itself.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

from torch.overrides import handle_torch_function

from twinlens.capture.functions import TORCH

_NEAR = 8
"""Calls between the mode and who asked it, at most."""


def asked(func: Any) -> Any:
    """The function that asked the mode what to do: torch's own, where another one stands under its name.

    The function itself calls `handle_torch_function`, which calls the mode, which calls this.
    """
    code = getattr(func, "__code__", None)
    module = str(getattr(type(func), "__module__", ""))
    if (code is not None and code.co_filename.startswith(TORCH)) or (code is None and module.startswith("torch")):
        return func
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # nothing else knows who has asked
    for _ in range(_NEAR):
        before = frame.f_back
        if before is None:
            return func
        if frame.f_code is handle_torch_function.__code__:
            return FunctionType(before.f_code, before.f_globals, before.f_code.co_name)
        frame = before
    return func
