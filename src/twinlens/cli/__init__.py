"""The command line: `twinlens compare | record | show | explain | lint | museum | demo`.

This file is the border: what comes out of the rest as an exception leaves here as one line on
standard error and an exit status.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress

from twinlens.errors import TERMINATED, TwinlensError

SAME, DIFFERENT, FAILED = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 130, 141
"""128 + SIGINT, 128 + SIGPIPE, as shells say it."""

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
}
"""Read when the libraries are imported; what the user has set already stays."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; what is printed has been written when it ends."""
    _quieten()
    with suppress(ValueError):  # not in a thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # what was begun is cleared away
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _close_output()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except (TwinlensError, OSError) as error:
        return _failed(said(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            return _fault()
        return _failed(f"out of memory ({said(error)}); give a shorter text or a smaller dtype.")
    except Exception:
        return _fault()
    return status


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    from twinlens.cli.app import app

    # The parent of BadParameter, the error of every command line that does not parse. typer carries
    # its own click or imports click, by version: this is the one road to the class in both.
    usage: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        status = app(args=given, prog_name="twinlens", standalone_mode=False)
    except typer.Abort:
        status = INTERRUPTED
    except SystemExit as ended:  # typer makes this of a pipe that nobody reads any more
        if isinstance(ended.__context__, BrokenPipeError):
            raise BrokenPipeError from None
        if ended.code == TERMINATED:
            raise
        return _failed(f"the code that was run ended the process (SystemExit: {ended.code}); let it return instead.")
    except usage as error:
        words = str(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
        return _failed(f"{words.rstrip('.')}; see twinlens --help.")
    if status == INTERRUPTED:  # typer makes this status, or Abort, of a KeyboardInterrupt
        raise KeyboardInterrupt
    return status if isinstance(status, int) else SAME


def said(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _failed(words: str, status: int = FAILED) -> int:
    _close_output()
    print(f"twinlens: {words}{'' if words.endswith(('.', '!', '?')) else '.'}", file=sys.stderr)
    return status


def _fault() -> int:
    """Not the user's: the traceback stays, and the status is not that of a difference."""
    traceback.print_exc()
    return _failed("this is a fault of twinlens itself; please report it with the lines above.")


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's own class would need torch; its allocator for the CPU raises a bare RuntimeError.
    words = type(error).__name__ + str(error)
    return isinstance(error, MemoryError) or "OutOfMemory" in words or "allocate memory" in words


def _close_output() -> None:
    """Write what waits; where nobody takes it, let nothing be tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quieten() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")  # other people's: ours are said in the report
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no "→" gets "?" instead of a traceback.
        reconfigure = getattr(stream, "reconfigure", None)  # absent where a test put its own stream
        if reconfigure is not None:
            reconfigure(errors="replace")


__all__ = ["main"]
