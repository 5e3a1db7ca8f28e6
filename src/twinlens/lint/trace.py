"""Which keys of a config an implementation looks at, while it is built and called.

A look is no proof that a key counts, and code that takes a config apart all at once is not seen: changing the key
decides. This file also runs where another implementation lives, and imports nothing of it.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast
from unittest import mock

_MACHINERY = ("configuration_utils.py", "configuration_auto.py", "dataclasses.py", "copy.py")
"""Files that handle every key alike, whatever it means."""
_ROOMS = (os.sep + "generation" + os.sep, os.sep + "huggingface_hub" + os.sep, str(Path(__file__).parents[1]) + os.sep)


_BASES = ("PreTrainedConfig", "PretrainedConfig")
"""What configs of transformers derive from, since 5.0 and before."""


class Watched(dict[Any, Any]):
    """A dict that notes which keys are asked for, and so do those in it."""

    def __init__(self, of: dict[Any, Any], under: str, names: set[str]) -> None:
        super().__init__((key, watched(value, f"{under}{key}.", names)) for key, value in of.items())
        self._under, self._names = under, names

    def __getitem__(self, key: Any) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict's."""
        self._note(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        """As a dict's."""
        self._note(key)
        return super().pop(key, *default)

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        return Watched(copy.deepcopy(dict(self), memo), self._under, self._names)

    def _note(self, key: object) -> None:
        if not _is_machinery():
            self._names.add(f"{self._under}{key}")


def watched(value: Any, under: str, names: set[str]) -> Any:
    """A plain dict as one that notes its keys; anything else as it is."""
    return Watched(cast("dict[Any, Any]", value), under, names) if type(value) is dict else value


@contextmanager
def tracing(text: str) -> Generator[set[str]]:
    """Within it, the keys that are looked at: of what `json` makes of `text`, and of configs of transformers.

    Nested ones are dotted. Transformers must have been imported before, where it is used at all.
    """
    names = set[str]()
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(json, "loads", _loads(text, names)))
        # The border: no import of somebody else's library, only what is there already.
        utils: Any = sys.modules.get("transformers.configuration_utils")
        for name in _BASES:
            if utils is not None and name in vars(utils):
                base = vars(utils)[name]
                patches.enter_context(mock.patch.object(base, "__getattribute__", _attribute(base, names)))
                break
        yield names


def _loads(text: str, names: set[str]) -> Any:
    original, raw = json.loads, text.encode()

    def loads(s: Any, *rest: Any, **named: Any) -> Any:
        value = original(s, *rest, **named)
        return watched(value, "", names) if s in (text, raw) else value

    return loads


def _attribute(base: type, names: set[str]) -> Any:
    original: Any = base.__getattribute__

    def attribute(self: Any, name: str) -> Any:
        value = original(self, name)
        if name.startswith("__") or callable(value) or _is_machinery():
            return value
        meant = original(self, "attribute_map").get(name, name)
        names.update((name, meant))
        held = original(self, "__dict__")
        if type(value) is dict and held.get(meant) is value:  # others may hold it too, and change it there
            held[meant] = value = Watched(cast("dict[Any, Any]", value), f"{meant}.", names)
        return value

    return attribute


def _is_machinery() -> bool:
    """Whether code that handles all keys alike asks: a config's own methods, what copies it, this project."""
    frame = _asking()
    file = frame.f_code.co_filename
    if file.endswith(_MACHINERY) or any(room in file for room in _ROOMS):
        return True
    return any(base.__name__ in _BASES for base in type(frame.f_locals.get("self")).__mro__)


def _asking() -> FrameType:
    """Who asked for a key: the first frame that is not of this file, nor checks the types of its calls in tests."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and (frame.f_code.co_filename == __file__ or _checks(frame)):
        frame = frame.f_back
    return frame


def _checks(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith("<@") or f"{os.sep}jaxtyping{os.sep}" in file
