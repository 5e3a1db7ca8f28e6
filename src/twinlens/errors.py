"""Every error that a user can mend, in one tree.

A message is one sentence that says the thing, its value, what was expected and the next step:

    blocks.3.attn.W_Q has a NaN at row 7; twinlens cannot compare a model that is not finite.
    Reload the checkpoint, or pass --sites up to blocks.2.

Whatever is not a `TwinlensError` is a fault of twinlens itself and keeps its traceback.
"""


class TwinlensError(Exception):
    """An error that the user can mend.

    The command line prints it as one line, without a traceback, and exits with status 2.
    """


TERMINATED = 143
"""128 + SIGTERM, as shells say it: the exit status of a process that was asked to end."""


def is_asked_to_end(error: BaseException) -> bool:
    """Whether somebody wants this process to end; any other SystemExit is other people's code giving up."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == TERMINATED)


class UnknownArchitecture(TwinlensError):
    """No family declares this architecture; the message lists those known and how to add one."""


class ConfigError(TwinlensError):
    """A config has a key that nobody reads, lacks one, or has a value that has no meaning here."""


class CheckpointError(TwinlensError):
    """Weights are absent, cut short, not finite, or of another shape; the tensor is named."""


class InputError(TwinlensError):
    """The tokens, positions or mask to run on are empty, too long or out of range."""


class RecordingError(TwinlensError):
    """A recording is absent, damaged, of another format, or would be overwritten."""


class CaptureError(TwinlensError):
    """A call could not be recorded: the module failed, or returned nothing that holds logits."""


class SourceError(TwinlensError):
    """A source string does not parse, or what it names cannot be built or called."""


class EnvironmentFailed(TwinlensError):
    """An environment did not install, or the recorder inside it died."""


class ComparisonError(TwinlensError):
    """Two runs cannot be compared: other tokens, other depth or width, or no site in common."""


class SpecError(TwinlensError):
    """A spec or an edit does not parse, or an edit does not fit the spec that it is applied to."""
