"""`torch:FILE.py:make`: a module that the user's own file builds.

`make()` returns a `torch.nn.Module`, or a module and a `call(tokens, mask)` that gives logits. The
options of the source string are its keyword arguments, as strings: `torch:port.py:make?layers=4`.
"""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from twinlens.errors import SourceError, is_asked_to_end
from twinlens.sources.built import Built, Call, first_sentence


def build(path: str, /, **arguments: str) -> Built:
    """What `make(**arguments)` of `FILE.py:make` returns, in eval mode.

    Raises:
        SourceError: no such file or function, it failed, or it returned something else.
    """
    name, _, function = path.rpartition(":")
    file = Path(name).absolute()
    if not file.is_file():
        raise SourceError(f"{name} does not exist; torch:FILE.py:make needs a Python file.")
    made: object = _run(lambda: _make(file, function)(**arguments), file)
    module: object = made
    call: Any = None
    if isinstance(made, tuple) and len(cast(tuple[object, ...], made)) == 2:
        module, call = cast(tuple[object, Any], made)
    has_call = call is None or callable(cast(object, call))
    if not isinstance(module, nn.Module) or not has_call:
        raise SourceError(
            f"{function}() in {name} returned {_kind(made)}; it must return a torch.nn.Module, or "
            "a module and a call(tokens, mask)."
        )
    about = {
        "implementation": f"torch:{file.name}:{function}",
        "torch": torch.__version__,
        "class": type(module).__name__,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        **arguments,
    }
    return Built(module.eval(), _with_mask(call, path) if call else None, about)


def _make(file: Path, function: str) -> Callable[..., object]:
    module = _imported(file)
    if not callable(make := vars(module).get(function)):
        names = sorted(n for n, v in vars(module).items() if inspect.isfunction(v))
        raise SourceError(f"{file.name} has no function {function}; it has {', '.join(names) or 'none'}.")
    return make


def _imported(file: Path) -> ModuleType:
    name = f"_twinlens_source_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # the file may import its neighbours, now or later
    spec.loader.exec_module(module)
    return module


def _run(build_it: Callable[[], object], file: Path) -> object:
    try:
        return build_it()
    except SourceError:
        raise
    except BaseException as error:  # the border: whatever the user's own code raises, SystemExit too
        if is_asked_to_end(error):
            raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if _same(f, file)]
        at = f", line {lines[-1]}" if lines else ""
        raise SourceError(f"{file.name}{at} failed with {type(error).__name__}: {first_sentence(error)}.") from error


def _same(frame: traceback.FrameSummary, file: Path) -> bool:
    return frame.filename == str(file)


def _kind(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}".removeprefix("builtins.")


def _with_mask(call: Callable[..., Tensor], path: str) -> Call:
    """A `call(tokens)` of one argument is as good, as long as nothing is padded."""
    try:
        takes = inspect.signature(call).parameters
    except (TypeError, ValueError):  # no function of Python's
        return call
    if len(takes) > 1:
        return call

    def unmasked(tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and not bool(mask.bool().all()):
            raise SourceError(f"The call of {path} takes no mask; give tokens without padding.")
        return call(tokens)

    return unmasked
