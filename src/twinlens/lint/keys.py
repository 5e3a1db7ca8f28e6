"""The keys of a config, nested ones as a.b; one of them changed, dropped or moved."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from twinlens.families.rows import ACTIVATION_NAMES

Key = tuple[str, ...]
"""Where a value stands: ("rope_parameters", "rope_theta")."""

KINDS = ("rope_type", "type")
"""The names under which a rotary part says of what kind it is; the numbers beside it belong to that kind."""
LAYERS = (("num_hidden_layers",), ("n_layer",))
"""What says how many layers there are; lists of as many entries say something of each."""
_OF_ANY_KIND = ("rope_theta", "partial_rotary_factor")
_SMALL = 1e-3
"""Below it is an epsilon, and twice as much is hardly seen."""
_INSTEAD_OF_NOTHING = (8, 2.0, True, {"rope_type": "linear", "factor": 2.0})
"""What may stand where a config says null: a width or a count, a number, yes, a rotary scaling."""


@dataclass(frozen=True)
class Change:
    """A whole config in which one key has another value."""

    key: Key
    value: Any
    config: dict[str, Any]


def dotted(key: Key) -> str:
    """`rope_parameters.rope_theta`."""
    return ".".join(key)


def leaves(config: Mapping[str, Any], whole: Collection[str] = ()) -> Iterator[tuple[Key, Any]]:
    """Every key with its value, those of nested objects one by one; the keys of `whole` are not entered.

    >>> list(leaves({"a": 1, "b": {"c": 2}}))
    [(('a',), 1), (('b', 'c'), 2)]
    """
    for name, value in config.items():
        if isinstance(value, Mapping) and value and name not in whole:
            inside = cast("Mapping[str, Any]", value)
            yield from (((name, *rest), leaf) for rest, leaf in leaves(inside))
        else:
            yield (name,), value


def value_at(config: Mapping[str, Any], key: Key) -> Any:
    """The value of a key. Raises KeyError where it is not there."""
    found: Any = config
    for name in key:
        if not isinstance(found, Mapping):
            raise KeyError(dotted(key))
        found = cast("Mapping[str, Any]", found)[name]
    return found


def has(config: Mapping[str, Any], key: Key) -> bool:
    """Whether a key is there."""
    try:
        value_at(config, key)
    except KeyError:
        return False
    return True


def put(config: Mapping[str, Any], key: Key, value: Any) -> dict[str, Any]:
    """A copy in which a key has this value; objects on the way are made."""
    made = copy.deepcopy(dict(config))
    inside: Any = made
    for name in key[:-1]:
        if not isinstance(inside.get(name), dict):
            inside[name] = {}
        inside = inside[name]
    inside[key[-1]] = copy.deepcopy(value)
    return made


def drop(config: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """A copy without a key; an object that it leaves empty goes too."""
    made = copy.deepcopy(dict(config))
    inside: Any = made if len(key) == 1 else value_at(made, key[:-1])
    del inside[key[-1]]
    return drop(made, key[:-1]) if len(key) > 1 and not inside else made


def changes(config: Mapping[str, Any], key: Key) -> Iterator[Change]:
    """The config with other values of a key, the plainest first; none where no other value is known."""
    value = value_at(config, key)
    if key[-1] in KINDS and len(key) > 1:
        yield from _other_kinds(config, key, value)
        return
    for other in _others(value):
        yield Change(
            key, other, _fewer(put(config, key, other), value, other) if key in LAYERS else put(config, key, other)
        )


def _fewer(config: dict[str, Any], count: int, other: int) -> dict[str, Any]:
    """With what a config lists layer by layer cut to as many."""
    return {
        k: v[:other] if isinstance(v, list) and len(cast("list[Any]", v)) == count else v for k, v in config.items()
    }


def _other_kinds(config: Mapping[str, Any], key: Key, value: Any) -> Iterator[Change]:
    """Of a rotary part: with the numbers that the other kind needs, and without those of this one."""
    part: Mapping[str, Any] = value_at(config, key[:-1])
    if all(kind in part for kind in KINDS):
        return  # two spellings of one thing: one of them alone contradicts the other
    kept = {name: said for name, said in part.items() if name in _OF_ANY_KIND}
    other = {"factor": 2.0, key[-1]: "linear"} if value == "default" else {key[-1]: "default"}
    yield Change(key, other[key[-1]], put(config, key[:-1], kept | other))


def _others(value: Any) -> Iterator[Any]:
    match value:
        case None:
            yield from _INSTEAD_OF_NOTHING
        case bool():
            yield not value
        case int():
            yield from (v for v in dict.fromkeys((2 * value, value // 2, value - 1, value + 1, 8, 4)) if 0 < v != value)
        case float():
            yield from (
                (1.0, 0.01)
                if not value
                else (100 * value,)
                if abs(value) < _SMALL
                else (2 * value, value / 2, 10 * value)
            )
        case str():
            meant = ACTIVATION_NAMES.get(value)
            if meant is not None:
                yield from (name for name in ("gelu", "relu", "silu") if ACTIVATION_NAMES[name] != meant)
        case list():
            yield from _other_lists(cast("list[Any]", value))
        case _:
            pass


_SLIDES, _SEES_ALL = "sliding_attention", "full_attention"


def _other_lists(value: list[Any]) -> Iterator[list[Any]]:
    if not value:
        yield [0]
    elif all(isinstance(entry, str) for entry in value):
        swapped = {_SLIDES: _SEES_ALL, _SEES_ALL: _SLIDES}
        yield from (v for v in ([swapped.get(entry, entry) for entry in value], value[::-1]) if v != value)
    elif all(isinstance(entry, int) for entry in value):
        others = [[entry + 1 for entry in value], [max(entry - 1, 0) for entry in value], list[Any]()]
        yield from (v for v in others if v != value)
    elif all(isinstance(entry, int | float) for entry in value):
        yield [2.0 * entry for entry in value]
