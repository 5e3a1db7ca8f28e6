"""Divergences that happened between implementations of one model, planted in live models, named, proved and mended.

Each wing is one file under `wings/`; each exhibit one small declaration (`exhibit.py`). `visit.py` runs one.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from twinlens.errors import InputError

if TYPE_CHECKING:
    from twinlens.museum.exhibit import Exhibit, Wing


def rooms() -> list[Wing]:
    """All rooms, by name; transformers is imported by the first who asks."""
    from twinlens.museum import wings

    files = sorted(module.name for module in pkgutil.iter_modules(wings.__path__))
    return [importlib.import_module(f"{wings.__name__}.{name}").WING for name in files]


def exhibits() -> Iterator[Exhibit]:
    """All exhibits, wing by wing."""
    for wing in rooms():
        yield from wing


BESIDE = " + "
"""Between the names of exhibits that are planted in one model."""


def named(name: str) -> Exhibit:
    """One exhibit, or several in one model: `NAME + NAME`. Raises InputError where there is none of that name."""
    if BESIDE in name:
        return functools.reduce(lambda a, b: a.beside(b), map(named, name.split(BESIDE)))
    known = {each.name: each for each in exhibits()}
    if name not in known:
        alike = [other for other in known if name.lower() in other]
        hint = f"like it: {', '.join(alike[:5])}" if alike else "`twinlens museum list` shows them all"
        raise InputError(f"the museum has no exhibit {name!r}; {hint}.")
    return known[name]
