"""One file for each architecture: from a checkpoint's config to a Spec."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from twinlens.errors import UnknownArchitecture
from twinlens.families import gemma2, gpt2, llama
from twinlens.families.config import Config
from twinlens.families.rows import with_kernel
from twinlens.spec import Spec

FAMILIES: dict[str, ModuleType] = {"gemma2": gemma2, "gpt2": gpt2, "llama": llama}
"""By the config's `model_type`."""


def declare(config: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Spec:
    """The Spec of a checkpoint's config.

    `dtype` is the one the weights are stored in, `attention` the kernel: "eager" or "sdpa".
    Raises UnknownArchitecture, and ConfigError for a key that is missing, unknown or has a value
    that is not understood.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise UnknownArchitecture(
            f"the config says model_type={name!r}; known are {', '.join(sorted(FAMILIES))}: "
            f"add twinlens/families/{name}.py as CONTRIBUTING.md shows"
        )
    family, c = FAMILIES[name], Config(name, config)
    shape = family.shape(c)
    steps = tuple(with_kernel(family.steps(c, shape, dtype), attention))
    c.close()
    return Spec(name, steps, shape, dtype)
