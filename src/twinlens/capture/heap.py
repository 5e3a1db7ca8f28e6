"""Memory that a recording gives back stays with the process, so that the next one need not ask for it again.

glibc returns large blocks to the system at once, and every page that is asked for anew is zeroed and faulted in: for
the sites of one call that is a third of a forward (`make bench`).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
KEPT = 1 << 30
"""Bytes of free memory at the end of the heap that are kept; beyond it, it is given back as ever."""

_LARGEST = 1 << 25
"""From here on blocks are mapped on their own: the most that glibc lets one ask for."""


@cache
def keep_freed() -> None:
    """Once in a process, where its C library is glibc and nobody has set it otherwise."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_TRIM_THRESHOLD, KEPT)
    mallopt(_MMAP_THRESHOLD, _LARGEST)
