"""Where a checkpoint's tensors come from: a folder of safetensors, or a live module.

This file also runs where another implementation lives: it needs torch and safetensors only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from twinlens.errors import CheckpointError, InputError


class Live:
    """The parameters of a live module, and the buffers that a checkpoint holds: themselves, no copies."""

    def __init__(self, module: nn.Module) -> None:
        kept = module.state_dict().keys()
        buffers = {name: tensor for name, tensor in module.named_buffers(remove_duplicate=False) if name in kept}
        self._parameters = buffers | dict(module.named_parameters(remove_duplicate=False))

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._parameters)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._parameters[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._parameters[name].shape)


class Folder:
    """Tensors of safetensors files, mapped; a file is opened when its first tensor is asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = dict(_files(folder))
        self._open: dict[Path, Any] = {}
        for name, file in self._files.items():
            if name not in self._handle(file).keys():  # noqa: SIM118  the handle is no mapping
                raise CheckpointError(
                    f"the index of {folder} promises {name} in {file.name}, which lacks it; "
                    "download the checkpoint again."
                )

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._files)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._handle(self._files[name]).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._handle(self._files[name]).get_slice(name).get_shape())

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = _opened(file)
        return self._open[file]


@runtime_checkable
class Tensors(Protocol):
    """Tensors by name."""

    def names(self) -> tuple[str, ...]:
        """All names."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        ...


def _opened(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist, though the index beside it names it; download it again."
        ) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is cut short or no safetensors file ({error}); download it again.") from error


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each tensor of a folder with the file that holds it."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        yield from ((name, single) for name in _opened(single).keys())  # noqa: SIM118
    elif index.is_file():
        held = read_json(index, "download it again").get("weight_map")
        if not isinstance(held, dict):
            raise CheckpointError(f"{index} has no weight_map; download it again.")
        yield from ((name, folder / str(file)) for name, file in held.items())
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder} holds pickled weights only, and reading a pickle can run code; convert them "
            "with save_pretrained(..., safe_serialization=True)."
        )
    else:
        raise CheckpointError(f"{folder} holds no model.safetensors and no index of shards; download the weights.")


def check_real(module: nn.Module) -> None:
    """Raises CheckpointError for a module whose tensors lie on the meta device, where they have no numbers."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} of {type(module).__name__} lies on the meta device and holds no numbers; load its weights."
            )


def path_of(given: object) -> Path:
    """What anybody gives as a path. Raises InputError where it cannot be one."""
    if not isinstance(given, str | os.PathLike) or "\0" in str(given):
        raise InputError(f"{given!r} is no path; give a string, or a pathlib.Path.")
    return Path(given)


def read_json(file: Path, advice: str) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError; its message ends with the advice."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; {advice}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}); {advice}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object; {advice}.")
    return value
