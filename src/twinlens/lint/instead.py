"""Another config.json in the place of a checkpoint's, for whoever opens it in this process.

The checkpoint itself is not written to, and its weights stay where they are. This file also runs where another
implementation lives.
"""

from __future__ import annotations

import builtins
import io
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass
class Opened:
    """How often the config was opened."""

    times: int = 0


@contextmanager
def instead(place: Path, text: str) -> Generator[Opened]:
    """Within it, whoever opens the file `place` to read it finds `text`."""
    opened, original, target = Opened(), builtins.open, os.path.realpath(place)
    with tempfile.TemporaryDirectory(prefix="twinlens-lint-") as folder:
        other = Path(folder) / place.name
        other.write_text(text, encoding="utf-8")

        def opener(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if isinstance(file, str | bytes | os.PathLike) and not set(mode) & set("wax+"):
                if os.fsdecode(os.path.realpath(file)) == target:
                    opened.times += 1
                    file = other
            return original(file, mode, *rest, **named)

        # pathlib asks io for it, everybody else the builtins.
        with mock.patch.object(builtins, "open", opener), mock.patch.object(io, "open", opener):
            yield opened
