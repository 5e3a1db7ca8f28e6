"""`twinlens museum`: what went wrong between implementations, to look at and to try."""

from __future__ import annotations

import textwrap
from typing import Any

from twinlens.cli import DIFFERENT, SAME
from twinlens.cli.watch import Watch
from twinlens.errors import InputError
from twinlens.museum import named, rooms
from twinlens.museum.exhibit import ANY, Exhibit, Want
from twinlens.museum.visit import LEVELS, compared, misses
from twinlens.report import table, terminal


def show_all(wing: str | None) -> int:
    """The exhibits by name, wing by wing."""
    shown = [room for room in rooms() if wing is None or wing.lower() in room.name.lower()]
    if not shown:
        raise InputError(f"the museum has no wing {wing!r}; it has {', '.join(room.name for room in rooms())}.")
    for room in shown:
        rows = tuple((e.name, e.family, _parameters(e), e.source) for e in room)
        heads = ("exhibit", "family", "at fault", "reported")  # long words, which may be broken as names may not
        print(f"\n{room.name}\n{terminal.table_text(table.Table(room.name, heads, rows))}")
    count = sum(len(room) for room in shown)
    print(f"\n{count} exhibits. twinlens museum show NAME tells of one, twinlens museum run NAME compares it.")
    return SAME


def show(name: str) -> int:
    """What one exhibit is."""
    for line in told(named(name)):
        print(line)
    return SAME


def told(exhibit: Exhibit) -> list[str]:
    """In words: what was planted in what, what must be said of it, how it is run, who reported it."""
    probe = f"2 rows of {exhibit.length} tokens" + (", the second with 13 of padding on the left" * exhibit.padded)
    if exhibit.calls is not None:
        probe += f", in calls of {', '.join(map(str, exhibit.calls))} with a key/value cache"
    lines = [f"{exhibit.name}: {exhibit.title}", ""]
    rows = [
        ("wing", exhibit.wing),
        ("model", f"{exhibit.family}, random weights, {' or '.join(exhibit.dtypes)}" + _built(exhibit.build)),
        ("probe", probe),
        ("to be named", "; ".join(map(_wanted, exhibit.causes)) or "nothing: the function is the same"),
        ("reported", exhibit.source + (f" (there {exhibit.like})" if exhibit.like else "")),
        *((f"not at {where}", why) for where, why in exhibit.hidden.items()),
    ]
    for head, text in rows:
        lines += textwrap.wrap(text, 78, initial_indent=f"  {head:<18}", subsequent_indent=" " * 20)
    return lines


def _built(build: dict[str, Any]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in build.items() if key != "dtype")
    return f"; {said}" if said else ""


def _wanted(want: Want) -> str:
    values = "" if want.reference == want.candidate == ANY else f" {_value(want.reference)} → {_value(want.candidate)}"
    layers = f", layers {', '.join(map(str, want.layers))}" if want.layers else ""
    return f"{_name(want)}{values}{layers}"


def _value(value: Any) -> str:
    return (
        "off" if value is None else "…" if value == ANY else f"{value:.6g}" if isinstance(value, float) else str(value)
    )


def _name(want: Want) -> str:
    return want.parameter if isinstance(want.parameter, str) else " or ".join(want.parameter)


def _parameters(exhibit: Exhibit) -> str:
    return ", ".join(dict.fromkeys(map(_name, exhibit.causes))) or "none"


def run(name: str, level: str, dtype: str | None) -> int:
    """Compare an exhibit; 0 where what is said of it is right."""
    exhibit = named(name)
    if level not in LEVELS:
        raise InputError(f"--sites {level} is none of {', '.join(LEVELS)}.")
    if dtype is not None and dtype not in exhibit.dtypes:
        raise InputError(f"{name} exists in {' and '.join(exhibit.dtypes)} only; leave --dtype {dtype} out.")
    with Watch() as watch:
        watch.say(f"comparing {name}")
        _, report = compared(exhibit, level, dtype)
    print(f"{exhibit.title}\n\n{report}")
    bad = misses(exhibit, report)
    print("\nAs it should be." if not bad else "\nNot as it should be:\n" + "\n".join(f"  {line}" for line in bad))
    return DIFFERENT if bad else SAME
