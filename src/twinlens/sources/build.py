"""From a source string to a module that can be called, in this process."""

from twinlens.errors import SourceError
from twinlens.sources import hf, torch_file, transformer_lens
from twinlens.sources.built import Built
from twinlens.sources.parse import SourceString


def build(source: SourceString) -> Built:
    """Build what a source names, in this environment; its requirements are the caller's affair.

    Raises:
        SourceError: it cannot be built here, or is nothing that is built.
        CheckpointError: its weights are absent or not whole.
    """
    if source.kind == "hf":
        return hf.build(source.path, **source.options)
    if source.kind == "tl":
        return transformer_lens.build(source.path, **source.options)
    if source.kind == "torch":
        return torch_file.build(source.path, **source.options)
    raise SourceError(f"{source} is no foreign implementation; there is no module to build.")
