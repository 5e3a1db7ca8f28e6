"""Writing a report: the whole of it, or nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path


def check(path: Path) -> None:
    """Whether a file can be written there, before anything long begins. Raises OSError if not."""
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "is a folder where a file was to be written", str(path))
    if not path.exists() or path.is_file():  # else a device or a pipe
        with _named(path), _beside(path) as beside:
            beside.touch()


def write(path: Path, text: str) -> None:
    """Write a text; an earlier file is replaced once the new one is whole. Raises OSError."""
    with _named(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a device or a pipe: nothing to replace
            return
        with _beside(path) as beside:
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A name in the same folder; nothing of it is left."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Generator[None]:
    """The user's own name for the file in an error."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
