"""A source recorded in the environment that it names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from twinlens.environments.make import make
from twinlens.environments.run import run_recorder
from twinlens.recording import Recording
from twinlens.sources.parse import SourceString


@dataclass(frozen=True)
class Mend:
    """What a source shall compute instead."""

    spec: str
    """The reference's steps, as text."""
    wanted: str
    """Instructions, as JSON."""
    tensors: Mapping[str, Tensor]
    """Those of the reference that are not its checkpoint's, by name."""


def record_elsewhere(
    source: SourceString, tokens: Tensor, mask: Tensor | None, out: Path, *,
    mend: Mend | None = None, say: Callable[[str], None], overwrite: bool = False,
    calls: Sequence[int] | None = None,
) -> Recording:  # fmt: skip
    """Make the environment if it is not there, run the recorder in it, open what it wrote.

    `mend`: instructions that are applied to the source before it is recorded; `calls`: lengths of calls with a cache.
    Raises EnvironmentFailed, and whatever error the recorder reports.
    """
    python = make(source.requirements, say)
    with tempfile.TemporaryDirectory(prefix="twinlens-tokens-") as folder:
        given = Path(folder) / "tokens.safetensors"
        tensors = {"tokens": tokens.to(torch.int64).contiguous()}
        save_file(tensors | ({} if mask is None else {"mask": mask.to(torch.int64).contiguous()}), given)
        local = SourceString(source.kind, source.path, source.options)
        job: dict[str, Any] = {"source": str(local), "tokens": str(given), "out": str(out), "overwrite": overwrite}
        if calls is not None:
            job["calls"] = list(calls)
        if mend is not None:
            own = Path(folder) / "own.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in mend.tensors.items()}, own)
            job |= {"spec": mend.spec, "mend": mend.wanted, "own": str(own)}
        run_recorder(python, job, say)
    return Recording.load(out)
