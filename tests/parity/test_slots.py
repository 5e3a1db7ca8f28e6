"""What is kept in a cache, and what is read of it."""

from __future__ import annotations

import pytest

from twinlens.museum import named
from twinlens.museum.visit import compared, misses

NAMES = ("chunked-prefill-loses-prefix", "cached-key-rotated-twice", "kv-fp8-default", "decoding-against-itself")
IN_A_WHILE = ("kv-cache-half-precision", "cache-evicts-too-early", "scale-wrong-in-decoding-only")


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_is_told(name: str) -> None:
    exhibit = named(name)
    assert misses(exhibit, compared(exhibit)[1]) == []


@pytest.mark.sliced
@pytest.mark.parametrize("name", IN_A_WHILE)
def test_a_cache_is_told_in_other_ways(name: str) -> None:
    test_a_cache_is_told(name)
