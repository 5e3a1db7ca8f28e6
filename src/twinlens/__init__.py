"""Says whether two implementations of a transformer are the same model, why not, and mends it.

Each public name is loaded when it is first used, so that recording in an environment which has only
torch and safetensors asks for nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinlens.checkpoint import Checkpoint, from_module, open_checkpoint
    from twinlens.comparison import Report, compare
    from twinlens.edits import Edit, Input, Insert, Remove, Rewire, Set
    from twinlens.errors import (
        CaptureError,
        CheckpointError,
        ComparisonError,
        ConfigError,
        EnvironmentFailed,
        InputError,
        RecordingError,
        SourceError,
        SpecError,
        TwinlensError,
        UnknownArchitecture,
    )
    from twinlens.families import declare
    from twinlens.loading import load
    from twinlens.model import Hook, Model
    from twinlens.parity import Cause
    from twinlens.recording import Recording
    from twinlens.spec import Spec, Step, Weight

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Cause",
    "Checkpoint",
    "CheckpointError",
    "ComparisonError",
    "ConfigError",
    "Edit",
    "EnvironmentFailed",
    "Hook",
    "Input",
    "InputError",
    "Insert",
    "Model",
    "Recording",
    "RecordingError",
    "Remove",
    "Report",
    "Rewire",
    "Set",
    "SourceError",
    "Spec",
    "SpecError",
    "Step",
    "TwinlensError",
    "UnknownArchitecture",
    "Weight",
    "compare",
    "declare",
    "from_module",
    "load",
    "open_checkpoint",
]

_HOME: dict[str, tuple[str, ...]] = {
    "checkpoint": ("Checkpoint", "from_module", "open_checkpoint"),
    "edits": ("Edit", "Input", "Insert", "Remove", "Rewire", "Set"),
    "errors": (
        "CaptureError",
        "CheckpointError",
        "ComparisonError",
        "ConfigError",
        "EnvironmentFailed",
        "InputError",
        "RecordingError",
        "SourceError",
        "SpecError",
        "TwinlensError",
        "UnknownArchitecture",
    ),
    "families": ("declare",),
    "loading": ("load",),
    "model": ("Hook", "Model"),
    "comparison": ("Report", "compare"),
    "parity": ("Cause",),
    "recording": ("Recording",),
    "spec": ("Spec", "Step", "Weight"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'twinlens' has no attribute {name!r}")
    value = getattr(import_module(f"twinlens.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
