"""The manifest: what a recording's shards hold, as one JSON file that is replaced, never edited."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinlens.errors import RecordingError
from twinlens.recording.hashes import HASHES
from twinlens.recording.shards import Entry, Seal

FORMAT = 1
NAME = "manifest.json"
INPUTS = ("tokens", "positions", "mask")
SHARD = re.compile(r"shard-\d{5,}\.safetensors")
OURS = re.compile(rf"({re.escape(NAME)}|{SHARD.pattern})(\.tmp)?")
"""Every file that a recording's folder may hold; `.tmp` is what an interruption leaves."""


@dataclass
class StoredCall:
    """One call: where its inputs and its sites lie."""

    inputs: dict[str, Entry] = field(default_factory=dict[str, Entry])
    sites: dict[str, Entry] = field(default_factory=dict[str, Entry])


@dataclass
class Manifest:
    """All that is known of a recording without reading a tensor; fields as in `Recording`."""

    about: dict[str, Any]
    config: dict[str, Any] | None
    checkpoint: dict[str, Any] | None
    partial: bool = True
    shards: dict[str, Seal] = field(default_factory=dict[str, Seal])
    calls: list[StoredCall] = field(default_factory=list[StoredCall])
    weights: dict[str, Entry] = field(default_factory=dict[str, Entry])
    weights_equal: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest in one move, once the shards that it names are on disk."""
        _sync(folder)
        unfinished = folder / f"{NAME}.tmp"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                # One line: with an indent, Python leaves its fast encoder, and this is done often.
                file.write(json.dumps(self._said()))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(folder / NAME)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def _said(self) -> dict[str, Any]:
        # A call is listed once its tokens are on disk: a site without them means nothing.
        calls = [call for call in self.calls if len(call.inputs) == len(INPUTS)]
        return {
            "twinlens": {"format": FORMAT},
            **vars(self),
            "shards": {name: seal.said() for name, seal in self.shards.items()},
            "calls": [{k: _all_said(entries) for k, entries in vars(c).items()} for c in calls],
            "weights": _all_said(self.weights),
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks a folder's manifest.

        Raises RecordingError, one sentence for each of: no folder, no manifest, no JSON, another
        format, a part that is missing or malformed.
        """
        said = _json(folder)
        written = said.get("twinlens")
        version = written.get("format") if isinstance(written, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if version != FORMAT:
            raise RecordingError(
                f"the recording {folder} has the format {version!r} where {FORMAT} was expected; "
                "read it with the twinlens that wrote it, or record once more."
            )
        try:
            return _manifest(said)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordingError(
                f"{folder / NAME} is damaged ({type(error).__name__}: {error}) where a whole "
                "manifest was expected; copy the recording again, or record once more."
            ) from error


def _all_said(entries: Mapping[str, Entry]) -> dict[str, Any]:
    return {name: vars(entry) for name, entry in entries.items()}


def _json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise RecordingError(
            f"{folder} {found} where the folder of a recording was expected; "
            "check the path, or make one with twinlens record SOURCE -o DIR."
        )
    try:
        said: object = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecordingError(
            f"{folder} has no {NAME}, so it is no recording; check the path, or make one from "
            "tensors with Recording.from_tensors(...).save(path)."
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise RecordingError(
            f"{folder / NAME} cannot be read as JSON ({error}); copy the recording again, or record once more."
        ) from error
    return said if isinstance(said, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _manifest(said: Mapping[str, Any]) -> Manifest:
    shards = {_shard_name(name): _seal(seal) for name, seal in said["shards"].items()}

    def entries(of: Mapping[str, Any]) -> dict[str, Entry]:
        return {name: _entry(entry, shards) for name, entry in of.items()}

    calls = [StoredCall(entries(call["inputs"]), entries(call["sites"])) for call in said["calls"]]
    for call in calls:
        if set(call.inputs) != set(INPUTS):
            raise ValueError(f"a call has the inputs {sorted(call.inputs)}")
    return Manifest(
        about=_a(dict, said["about"]),
        config=_a(dict, said["config"], or_none=True),
        checkpoint=_checkpoint(said["checkpoint"]),
        partial=bool(said["partial"]),
        shards=shards,
        calls=calls,
        weights=entries(said["weights"]),
        weights_equal=_names(said["weights_equal"]),
        unknown=_names(said["unknown"]),
    )


def _a(kind: type, value: Any, *, or_none: bool = False) -> Any:
    """The value, which JSON may have as anything. Raises TypeError where it is of another kind."""
    if not isinstance(value, kind) and not (or_none and value is None):
        raise TypeError(f"{value!r:.60} where a {kind.__name__} was expected")
    return value


def _names(said: Any) -> list[str]:
    return [_a(str, name) for name in _a(list, said)]


def _seal(said: Any) -> Seal:
    hashed = next((name for name in HASHES if name in said), HASHES[0])
    return Seal(hashed, _a(str, said[hashed]), _a(int, said["bytes"]))


def _checkpoint(said: Any) -> dict[str, Any] | None:
    found = _a(dict, said, or_none=True)
    for name in ("path", "sha256"):
        _a(str, (found or {}).get(name), or_none=True)
    return found


def _entry(said: Mapping[str, Any], shards: Mapping[str, Seal]) -> Entry:
    entry = Entry(
        shard=_a(str, said["shard"]),
        key=_a(str, said["key"]),
        shape=tuple(_a(int, size) for size in said["shape"]),
        dtype=_a(str, said["dtype"]),
        placed=_a(str, said["placed"]),
    )
    if entry.shard not in shards:
        raise ValueError(f"{entry.key} lies in {entry.shard}, which is not listed")
    return entry


def _shard_name(name: str) -> str:
    # A manifest may come from anywhere: no name in it may lead out of its folder.
    if not SHARD.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a shard")
    return name


def _sync(folder: Path) -> None:
    """Makes finished renames in a folder durable; only POSIX lets a folder be synchronised."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
