"""An implementation under other configs, in this process or in the environment that its source names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from twinlens.environments.make import make
from twinlens.environments.run import run_recorder
from twinlens.lint import runner
from twinlens.lint.runner import Outcome, Progress, Trials
from twinlens.sources.parse import SourceString

__all__ = ["Outcome", "Trials", "tried"]


def tried(
    source: SourceString, folder: Path, configs: Sequence[Mapping[str, Any]], tokens: Tensor,
    say: Callable[[str], None], progress: Progress,
) -> Trials:  # fmt: skip
    """What becomes of the logits under each config. Raises TwinlensError where the source cannot be run as it is."""
    texts = [json.dumps(config) for config in configs]
    place = folder / "config.json"
    if not source.requirements:
        return runner.run(source, place, texts, tokens, progress)
    python = make(source.requirements, say)
    local = SourceString(source.kind, source.path, source.options)
    with tempfile.TemporaryDirectory(prefix="twinlens-lint-") as there:
        out = Path(there) / "trials.json"
        job = {"source": str(local), "place": str(place), "texts": texts, "tokens": tokens.tolist(), "out": str(out)}
        run_recorder(python, job, say, module="twinlens.lint.runner")
        return Trials.of(json.loads(out.read_text(encoding="utf-8")))
