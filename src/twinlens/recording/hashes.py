"""Hashes of what lies on disk, by the function that is fastest on the machine that writes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from functools import cache

HASHES = ("sha256", "blake2b")
"""Both are beyond anybody's forging; a manifest says which was taken. Where the processor has instructions for SHA-256
it is twice as fast as BLAKE2b, elsewhere half as fast (docs/bench.md: a third of the time that saving takes).
"""
_TRIED = 1 << 19
_TIMES = 3
_ASKING = threading.Lock()


def fastest() -> str:
    """Which of the `HASHES` takes the least time here, as seen once in a process, in some milliseconds."""
    with _ASKING:  # a cache alone would let hands that ask at once each see for themselves, and differ
        return _seen()


@cache
def _seen() -> str:
    data = bytes(_TRIED)

    def seconds(name: str) -> float:
        start = time.perf_counter()
        hashlib.new(name, data)
        return time.perf_counter() - start

    return min(HASHES, key=lambda name: min(seconds(name) for _ in range(_TIMES)))


def digest(name: str, chunks: Iterable[bytes | memoryview]) -> str:
    """In hexadecimal."""
    hashed = hashlib.new(name)
    for chunk in chunks:
        hashed.update(chunk)
    return hashed.hexdigest()
