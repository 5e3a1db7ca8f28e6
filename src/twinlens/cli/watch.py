"""Progress of long work, on standard error and only where somebody watches."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed


class Watch:
    """A line that says what is going on; it is gone when the work is done.

    >>> with Watch() as watch:
    ...     watch.say("recording")
    ...     watch.progress("replaying", 3, 26)
    """

    def __init__(self) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            Elapsed(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, words: str) -> None:
        """What begins now, of unknown length."""
        self._bar.update(self._task, description=words[:60], total=None, visible=True)

    def progress(self, what: str, done: int, of: int) -> None:
        """How far it is."""
        self._bar.update(self._task, description=what, completed=done, total=of, visible=True)
