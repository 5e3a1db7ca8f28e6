"""`hf:PATH`: transformers, from a model folder or a .gguf file.

Runs with transformers 4.43 to 5.x. Only safetensors and GGUF are read (a pickle can run code), no
code of the checkpoint is run, and no hub is asked.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinlens.errors import CheckpointError, SourceError
from twinlens.sources.built import Built, dtype_of, first_sentence, numbers, version_of
from twinlens.sources.quiet import without_progress_bars


def build(path: str, *, attn: str = "eager", dtype: str = "float32") -> Built:
    """The model of transformers at `path`.

    Args:
        path: a folder with config.json and safetensors, or a .gguf file.
        attn: `eager` or `sdpa`.
        dtype: in which the weights are held and the model computes.

    Raises:
        CheckpointError: no such file, no safetensors, weights missing or cut short.
        SourceError: transformers is not installed, or refuses this model or setting.
    """
    version, place = version_of("transformers", "hf:PATH"), Path(path)
    module, unread = _load(place, _where(place), attn, dtype, version)
    about = {
        "implementation": "transformers",
        "transformers": version,
        "torch": torch.__version__,
        "attn": attn,
        "dtype": dtype,
        "class": type(module).__name__,
    }
    if unread:
        about["unread_weights"] = ", ".join(unread)
    config = _config(place, module)
    # What 5.x writes, 4.x takes for a stranger's key and rotates with base 10000, unscaled.
    if numbers(version) < (5,) and "rope_parameters" in config and "rope_theta" not in config:
        about["unread_config"] = "rope_parameters"
    return Built(module, None, about, config, place.absolute())


def _where(place: Path) -> dict[str, str]:
    """The arguments that name the checkpoint to `from_pretrained`."""
    if place.suffix == ".gguf":
        if not place.is_file():
            raise CheckpointError(f"{place} does not exist; give a .gguf file or a model folder.")
        version_of("gguf", "A .gguf file")
        return {"pretrained_model_name_or_path": str(place.parent), "gguf_file": place.name}
    if not (place / "config.json").is_file():
        what = "holds no config.json" if place.exists() else "does not exist"
        raise CheckpointError(f"{place} {what}; give a model folder or a .gguf file.")
    if not any(place.glob("*.safetensors")):
        raise CheckpointError(
            f"{place} holds no .safetensors; twinlens reads no pickled weights: convert them with "
            "save_pretrained(..., safe_serialization=True)."
        )
    return {"pretrained_model_name_or_path": str(place)}


def _load(place: Path, where: dict[str, str], attn: str, dtype: str, version: str) -> tuple[nn.Module, list[str]]:
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "attn_implementation": attn,
        # The keyword was renamed in 4.56; 4.43 ignores the new one without a word.
        ("dtype" if numbers(version) >= (4, 56) else "torch_dtype"): dtype_of(dtype),
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    # Weights stay mapped from disk instead of being copied; 5.x always does so. A GGUF file is
    # dequantised anyhow.
    has_accelerate = importlib.util.find_spec("accelerate") is not None
    if numbers(version) < (5,) and "gguf_file" not in where and has_accelerate:
        settings["low_cpu_mem_usage"] = True
    try:
        with without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(**where, **settings)
    except Exception as error:  # the border: transformers raises a dozen kinds, all meaning "no"
        kind = CheckpointError if "safetensor" in type(error).__name__.lower() else SourceError
        raise kind(
            f"transformers {version} cannot load {place} with attn={attn}, dtype={dtype}: {first_sentence(error)}."
        ) from error
    module, info = loaded
    # transformers fills a missing weight with random numbers and goes on.
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{place} lacks {len(missing)} weights, the first is {missing[0]}; download or convert "
            "the checkpoint again."
        )
    return module.eval().requires_grad_(False), sorted(info["unexpected_keys"])


def _config(place: Path, module: Any) -> dict[str, Any]:
    if place.is_dir():
        return json.loads((place / "config.json").read_text(encoding="utf-8"))
    return json.loads(module.config.to_json_string(use_diff=False))
