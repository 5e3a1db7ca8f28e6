"""Whether a value of a config is of its kind: any other is refused before something is computed with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from twinlens.errors import ConfigError

_FROM_ZERO = {"first_k_dense_replace", "max_window_layers", "num_nextn_predict_layers", "num_mtp_layers"}
"""Whole numbers that count from the first layer, or of what there may be none; all others are sizes."""
_MAY_VANISH = ("eps", "mscale")
"""In the names of real numbers that may be zero; one that multiplies or divides everything may not."""
_LAYERS = ("num_hidden_layers", "n_layer", "sliding_window_pattern", "_sliding_window_pattern")
_MOST_LAYERS, _LARGEST = 10_000, 1 << 40
"""Far beyond any model: the rows of more layers would not be finished today."""


def checked(key: str, value: Any, like: Any) -> Any:
    """The value of a key, where it is of the kind of `like`; None is like anything.

    Like 1 are whole numbers that can be a size, like 1.0 real numbers, like [1.0] lists of them.
    Raises ConfigError for another kind, and for numbers that nothing can have.
    """
    expected = None if like is None else _expected(key, value, like)
    if expected is not None:
        raise ConfigError(f"the config says {key}={short(value)} where {expected} was expected; correct it there")
    return bool(value) if isinstance(like, bool) else value


def _expected(key: str, value: Any, like: Any) -> str | None:
    """What was expected of the value, in words; None where it is that."""
    match like:
        case bool():  # which some configs write as 0 or 1
            return None if isinstance(value, int) and value in (0, 1) else "true or false"
        case str():
            return None if isinstance(value, str) else "a name"
        case Mapping():
            return None if isinstance(value, Mapping) else "an object with keys of its own"
        case int():
            least, most = int(key not in _FROM_ZERO), _MOST_LAYERS if key in _LAYERS else _LARGEST
            fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            return None if fits else f"a whole number from {least} to {most}"
        case float():
            return _number(key, value)
        case _:
            return _elements(value, cast("Sequence[Any]", like))


def _number(key: str, value: Any) -> str | None:
    zero = any(part in key for part in _MAY_VANISH)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 < value <= _LARGEST or (zero and value == 0):  # which no NaN and no infinity is
            return None
    return "a number of at least 0" if zero else "a number above 0"


def _elements(value: Any, like: Sequence[Any]) -> str | None:
    """A list whose entries are like the first one of `like`; where that is empty, they are numbers of layers."""
    if not isinstance(value, list | tuple):
        return "a list"
    of, entries = like[0] if like else 0, cast("Sequence[Any]", value)
    if isinstance(of, str):
        return None if all(isinstance(entry, str) for entry in entries) else "a list of names"
    if isinstance(of, float):
        return None if all(_number("", entry) is None for entry in entries) else "a list of numbers above 0"
    whole = all(isinstance(entry, int) and entry >= 0 for entry in entries)
    return None if whole else "a list of whole numbers"


def short(value: Any) -> str:
    """A value in one short line, however large it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}…"
