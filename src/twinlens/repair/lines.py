"""What is to be changed in the code of an implementation, as a unified diff of its own files."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping, Sequence
from difflib import unified_diff

from twinlens.capture.lines import Line
from twinlens.sites import any_layer

_MARK = "# twinlens: "


def patch(words: Sequence[str], where: Mapping[str, Line]) -> str:
    """What was set, as it is; of what stands in the code, the line that computes it, with what it shall be above.

    How somebody writes it, nobody can know: what the diff adds is a comment, so that it applies as it is.
    """
    held = [said for said in words if said not in where]
    by_file = dict[str, dict[Line, list[str]]]()
    for said, line in where.items():
        by_file.setdefault(line.path, {}).setdefault(line, []).append(said)
    return "\n".join((*held, *(_of_file(lines) for _, lines in sorted(by_file.items()))))


def _of_file(said: Mapping[Line, Sequence[str]]) -> str:
    """One file's."""
    name, path = next(iter(said)).name, next(iter(said)).path
    before = [text.rstrip("\n") for text in linecache.getlines(path)]
    if not before:  # code that was made while running has no file
        return "\n".join(
            f"{line.path}:{line.number} in {line.within}: {w}" for line in said for w in _alike(said[line])
        )
    after = list(before)
    for line in sorted(said, reverse=True):
        at = line.number - 1
        indent = before[at][: len(before[at]) - len(before[at].lstrip())]
        after[at:at] = [f"{indent}{_MARK}{words}" for words in _alike(said[line])]
    return "\n".join(unified_diff(before, after, f"a/{name}", f"b/{name}", n=1, lineterm=""))


def _alike(words: Iterable[str]) -> list[str]:
    """Each once, whatever the layer, and of how many it is."""
    groups = dict[str, list[str]]()
    for said in words:
        groups.setdefault(any_layer(said), []).append(said)
    return [
        these[0] if len(these) == 1 else f"{general} (layers {', '.join(map(_layer, these))})"
        for general, these in groups.items()
    ]


def _layer(words: str) -> str:
    return words.split(".")[1]
