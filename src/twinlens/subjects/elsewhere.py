"""A source that runs in an environment of its own."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from twinlens.checkpoint import open_checkpoint
from twinlens.environments.elsewhere import Mend, record_elsewhere
from twinlens.families import declare
from twinlens.recording import Recording
from twinlens.sources.parse import SourceString
from twinlens.spec import Spec
from twinlens.subjects.side import Declaration, Once, Say, declared_at


@dataclass
class Elsewhere(Once):
    """A source that runs in an environment of its own."""

    source: SourceString
    name: str = ""
    mend: Mend | None = None
    """Instructions by which the source is mended before it is recorded."""
    words: list[str] = field(default_factory=list[str])
    """What was done to mend it, in its own words."""
    patch: str = ""
    """What is to be changed in its code."""

    def said(self) -> Spec:
        """Of the config on disk."""
        return declare(open_checkpoint(self.source.path).config)

    def declaration(self) -> Declaration:
        """Of the checkpoint on disk."""
        return declared_at(self.source.path, **self.source.options)

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Run the recorder there, and read what it wrote."""
        say(f"recording {self.name}")
        folder = tempfile.mkdtemp(prefix="twinlens-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # it lives as long as the subject
        out = Path(folder) / "recording"
        made = record_elsewhere(self.source, tokens, mask, out, mend=self.mend, say=say, calls=calls)
        self.words = list(made.about.get("mended", []))
        self.patch = str(made.about.get("patch", ""))
        return made
