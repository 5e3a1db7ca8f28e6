"""Writing a report: the whole of it, or nothing."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def check(path: Path) -> None:
    """Whether a file can be written there, before anything long begins. Raises OSError if not."""
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder where a file was to be written", str(path))
        return  # a device or a pipe
    beside = _beside(path)
    try:
        beside.touch()
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text; an earlier file is replaced once the new one is whole. Raises OSError."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a device or a pipe: nothing to replace
        return
    beside = _beside(path)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
