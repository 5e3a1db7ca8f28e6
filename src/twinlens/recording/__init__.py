"""Recordings: what one run computed, under site names, in memory and on disk.

This room runs inside the environments of other implementations too: Python 3.10 and later, and
nothing installed but torch and safetensors.
"""

from twinlens.recording.record import Call, Recording
from twinlens.recording.writer import Writer

__all__ = ["Call", "Recording", "Writer"]
