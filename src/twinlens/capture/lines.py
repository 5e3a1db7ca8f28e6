"""Which line of somebody's code makes a tensor."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent / "capture"))
"""torch's own modules call functions for who uses them; the tracer stands between."""


@dataclass(frozen=True, order=True)
class Line:
    """A line of a file; `within` is the function."""

    path: str
    number: int
    within: str

    @property
    def name(self) -> str:
        """The file as it is imported, below the folder that is searched for it."""
        folders = [f for f in sys.path if f and self.path.startswith(f.rstrip("/") + "/")]
        return self.path[len(max(folders, key=len).rstrip("/")) + 1 :] if folders else self.path.lstrip("/")


def line_at_work() -> Line | None:
    """The innermost line that runs now and is neither torch's nor the tracer's; None where there is none."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]  # what tracebacks are made of
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
        frame = frame.f_back
    return None if frame is None else Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
