"""What is declared of a model of another implementation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

BEFORE = "multiplies by the norm's weight in float32, transformers in bfloat16 (norm.dtype)"
ENGINE: dict[str, Any] = {
    "dtypes": ("float32",), "why": "bfloat16 was not tried: of an engine only the logits are seen",
}  # fmt: skip
HALF_TOO = ("float32", "bfloat16")
LLAMA3: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 7000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 16384,
}  # fmt: skip
"""For those that know no other original length."""


@dataclass(frozen=True)
class Logits:
    """A model that is no torch module: only its logits are seen."""

    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """A tiny model of `family`, and how this implementation is given its weights."""

    family: str
    build: Callable[[PreTrainedModel], Any]
    """A torch module, or its `Logits`."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What differs from the table of src/twinlens/museum/tiny.py, where the implementation knows nothing else."""
    dtypes: tuple[str, ...] = HALF_TOO
    why: str = ""
    """Why not bfloat16 too."""


def stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights as a checkpoint has them."""
    with checkpoint(model) as folder:
        return load_file(folder / "model.safetensors")


def engine(
    build: Callable[..., Callable[[PreTrainedModel], Logits]],
    models: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]],
) -> dict[str, Row]:
    """Rows of an engine from name: family, config, and the keys of another config that `build` takes."""
    return {name: Row(family, build(**keys), config, **ENGINE) for name, (family, config, keys) in models.items()}


@contextmanager
def checkpoint(model: PreTrainedModel) -> Generator[Path, None, None]:
    """A folder with the checkpoint, for as long as it is needed."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def renamed(
    model: PreTrainedModel, names: Mapping[str, str], joint: str = "", parts: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The weights with `names` replaced in turn, products as [out, in]; what is `joint` there apart, as `parts`."""
    products = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    found = dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        weight = tensor.T if name in products else tensor
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if joint and joint in name:
            found |= {name.replace(joint, part): t for part, t in zip(parts, weight.chunk(len(parts)), strict=True)}
        else:
            found[name] = weight
    return found


def turned(weight: Tensor, width: int) -> Tensor:
    """Of queries or keys: for a rotation of neighbours, where transformers turns the halves of a head."""
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).reshape(weight.shape)
