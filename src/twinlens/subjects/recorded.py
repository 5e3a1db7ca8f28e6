"""A recording that is there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from twinlens.checkpoint import Checkpoint
from twinlens.errors import ComparisonError
from twinlens.families import declare, is_declared
from twinlens.recording import Recording
from twinlens.sources.parse import ATTENTIONS, DTYPES
from twinlens.spec import Spec
from twinlens.subjects.side import Declaration, Once, Say, declared_at


@dataclass
class Recorded(Once):
    """A recording that is there already."""

    recording: Recording
    name: str = "recording"

    def said(self) -> Spec | None:
        """Of the config in its manifest."""
        config = self.recording.config or {}
        return declare(config) if is_declared(config.get("model_type")) else None

    def declaration(self) -> Declaration | None:
        """Of the checkpoint that its manifest names, if that is still there."""
        where = (self.recording.checkpoint or {}).get("path")
        if where is None or not Path(where).exists():
            return None
        declared = declared_at(where, **self.options)
        self._check_same(declared.checkpoint)
        return declared

    @property
    def options(self) -> dict[str, str]:
        """How it was made, as far as a source can say it."""
        about, known = self.recording.about, {"attn": ATTENTIONS, "dtype": DTYPES}
        return {k: str(about[k]) for k, values in known.items() if about.get(k) in values}

    def _check_same(self, checkpoint: Checkpoint | None) -> None:
        """Raises ComparisonError where the checkpoint has become another one since it was recorded."""
        recorded = (self.recording.checkpoint or {}).get("sha256")
        if recorded is not None and checkpoint is not None and checkpoint.fingerprint() != recorded:
            raise ComparisonError(
                f"{checkpoint.path} holds other weights than when {self.name} was recorded (its hash has changed); "
                "give the checkpoint that was recorded with --model PATH, or record again"
            )

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Itself; it must be of the tokens that the other side ran."""
        return self.recording
