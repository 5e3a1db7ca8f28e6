"""transformers draws a bar for each model that it loads; twinlens has a line of its own."""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_progress_bars() -> Generator[None, None, None]:
    """Within it transformers shows no bars; those that the user wants come back after it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
