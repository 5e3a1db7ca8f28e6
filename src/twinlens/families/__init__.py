"""One file for each architecture: from a checkpoint's config to a Spec."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from twinlens.errors import ConfigError, UnknownArchitecture
from twinlens.families import (
    cohere2,
    deepseek_v3,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    starcoder2,
)
from twinlens.families.config import Config
from twinlens.families.rows import with_kernel
from twinlens.families.values import checked
from twinlens.spec import Shape, Spec

_FILES = (
    cohere2, deepseek_v3, falcon, gemma, gemma2, gpt2, gpt_bigcode, gpt_neox, gpt_oss, glm4, granite, llama, mistral,
    mixtral, olmo2, opt,
    phi3, qwen2, qwen3, qwen3_moe, smollm3, starcoder2,
)  # fmt: skip
FAMILIES: dict[str, ModuleType] = {
    **{file.__name__.rpartition(".")[2]: file for file in _FILES},
    "gemma3_text": gemma3,
}
"""By the config's `model_type`."""


def declare(config: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Spec:
    """The Spec of a checkpoint's config.

    `dtype` is the one the weights are stored in, `attention` the kernel: "eager" or "sdpa".
    Raises UnknownArchitecture, and ConfigError for a key that is missing, unknown or has a value
    that is not understood.
    """
    name = _model_type(config)
    if name is None or not is_declared(name):
        raise UnknownArchitecture(
            f"the config says model_type={name!r}; known are {', '.join(sorted(FAMILIES))}: "
            f"add twinlens/families/{name}.py as CONTRIBUTING.md shows"
        )
    family, c = FAMILIES[name], Config(name, config)
    shape = family.shape(c)
    _check_heads(shape)
    steps = tuple(with_kernel(family.steps(c, shape, dtype), attention))
    c.close()
    return Spec(name, steps, shape, dtype, inputs=getattr(family, "inputs", ())).apart()


def is_declared(model_type: object) -> bool:
    """Whether a family declares it; anything may stand in a config."""
    return isinstance(model_type, str) and model_type in FAMILIES


def _model_type(config: object) -> str | None:
    """A border: whatever was read as a config may stand here."""
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"a config is an object with keys, and this is a {type(config).__name__}; give that of config.json"
        )
    said: object = config.get("model_type")
    return None if said is None else checked("model_type", said, "")


def _check_heads(shape: Shape) -> None:
    """Raises ConfigError for heads that are not as many as there can be."""
    if shape.heads % shape.kv_heads or shape.head_width < 1:
        raise ConfigError(
            f"the config says that {shape.heads} heads share {shape.kv_heads} keys and values, each {shape.head_width} "
            f"wide, in a model that is {shape.d_model} wide, which cannot be; correct the numbers of heads in it"
        )
