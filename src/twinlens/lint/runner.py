"""An implementation built and called again and again, each time with another config: `python -m twinlens.lint.runner`.

Needs nothing but torch, safetensors and the implementation, so that it runs in the environments of others. What it has
to say goes to standard output as JSON lines, as the recorder's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinlens.bits import equal
from twinlens.capture import invoke
from twinlens.errors import SourceError, TwinlensError
from twinlens.lint.instead import instead
from twinlens.lint.trace import tracing
from twinlens.loading import load
from twinlens.sources.build import build
from twinlens.sources.parse import SourceString, parse

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What another config did: the `same` logits, `changed` ones, or `refused`, in the words of who refused."""

    kind: str
    words: str = ""


@dataclass(frozen=True)
class Trials:
    """What came of each config; which keys were looked at; how often the config was opened for one model."""

    outcomes: list[Outcome]
    reads: list[str]
    opened: int

    @classmethod
    def of(cls, said: dict[str, Any]) -> Trials:
        """As `asdict` wrote it."""
        return cls([Outcome(**outcome) for outcome in said["outcomes"]], said["reads"], said["opened"])


def run(source: SourceString, place: Path, texts: Sequence[str], tokens: Tensor, progress: Progress) -> Trials:
    """Build and call the source with config.json at `place` as it is, and with each of `texts` in its place.

    Raises TwinlensError where it cannot be built or called as it is, or gives other logits each time.
    """
    text = place.read_text(encoding="utf-8")
    with instead(place, text) as opened:
        expected = _logits(source, tokens)
        times = opened.times
        again = _logits(source, tokens)
    if not equal(again, expected):
        raise SourceError(
            f"{source} gives other logits each time, so that a key which changes them cannot be told; switch off "
            "what is random in it."
        )
    outcomes = list[Outcome]()
    for done, changed in enumerate(texts):
        progress("changing keys", done, len(texts))
        outcomes.append(_tried(source, place, changed, tokens, expected))
    return Trials(outcomes, _looked_at(source, text, tokens), times)


def _looked_at(source: SourceString, text: str, tokens: Tensor) -> list[str]:
    """The keys that are looked at; none where the source does not bear to be watched. What it imports is there now."""
    with tracing(text) as names, suppress(TwinlensError):
        _logits(source, tokens)
    return sorted(names)


def _tried(source: SourceString, place: Path, text: str, tokens: Tensor, expected: Tensor) -> Outcome:
    try:
        with instead(place, text):
            found = _logits(source, tokens)
    except TwinlensError as error:
        return Outcome("refused", str(error))
    return Outcome("same" if equal(found, expected) else "changed")


@torch.no_grad()
def _logits(source: SourceString, tokens: Tensor) -> Tensor:
    if source.kind == "native":
        dtype = getattr(torch, source.options.get("dtype", "float32"))
        return load(source.path, attention=source.options.get("attn"), dtype=dtype)(tokens)
    known = set(sys.modules)
    try:
        built = build(source)
        return invoke(built.module, tokens, None, built.call)
    finally:
        if source.kind == "torch":
            _forget(known, Path(source.path.rpartition(":")[0]).absolute().parent)


def _forget(known: set[str], folder: Path) -> None:
    """What a file imported from beside it, which may have read the config while it was imported."""
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)  # the border: anything may stand there
        if isinstance(file, str) and Path(file).is_relative_to(folder) and "site-packages" not in file:
            del sys.modules[name]


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def main() -> int:
    """The job in the file that is named; errors that a user can mend in one line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        tokens = torch.tensor(job["tokens"])
        made = run(
            parse(job["source"]), Path(job["place"]), job["texts"], tokens,
            lambda what, done, of: _say(progress=f"{what}: {done} of {of}"),
        )  # fmt: skip
    except TwinlensError as error:
        _say(error=str(error), kind=type(error).__name__)
        return 2
    Path(job["out"]).write_text(json.dumps(asdict(made)), encoding="utf-8")
    _say(done=job["out"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
