"""What both sides run: `--tokens` from a file, `--text` through the reference's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twinlens.errors import InputError, SourceError
from twinlens.recording import Recording
from twinlens.sources.built import first_sentence
from twinlens.sources.parse import parse

Given = tuple[Tensor | None, Tensor | None]
"""Ids [b p] and mask [b p]; None where nothing was given."""

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
"""Without one of these files transformers makes an empty tokenizer and says nothing."""


def given(text: str | None, tokens: Path | None, checkpoint: Path | None) -> Given:
    """The ids and the mask that the user gave.

    Raises:
        InputError: both are given, the file is neither form, or there is no tokenizer.
    """
    if text is not None and tokens is not None:
        raise InputError("--text and --tokens are given both; leave one out.")
    if tokens is not None:
        return from_file(tokens)
    return (None, None) if text is None else (encoded(text, checkpoint), None)


def lengths(calls: str | None) -> list[int] | None:
    """`60,1,1` as the lengths of calls. Raises InputError for anything else."""
    if calls is None:
        return None
    parts = [part.strip() for part in calls.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InputError(f"--calls {calls!r} is no list of lengths; give the tokens of each call, such as 60,1,1.")
    return list(map(int, parts))


def from_file(path: Path) -> Given:
    """Ids and mask from JSON or safetensors. Raises InputError, or OSError where it is not read."""
    return _of_safetensors(path) if path.suffix == ".safetensors" else (_of_json(path), None)


def _of_safetensors(path: Path) -> Given:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file ({first_sentence(error)}).") from error
    if "tokens" not in tensors:
        raise InputError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; --tokens needs a tensor "
            "named tokens, integers [batch, position], and takes one named mask."
        )
    return tensors["tokens"], tensors.get("mask")


def _of_json(path: Path) -> Tensor:
    wanted = "a JSON list of lists of token ids such as [[1, 5, 2]] was expected"
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {wanted}, or a .safetensors.") from error
    rows: Any = [said] if isinstance(said, list) and said and _are_ids(said) else said
    if not isinstance(rows, list) or not all(isinstance(r, list) and _are_ids(r) for r in rows):
        raise InputError(f"{path} holds something else; {wanted}.")
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows[:6])
        raise InputError(
            f"the rows of {path} have different lengths ({lengths}); pad them, and give tokens and mask as safetensors."
        )
    try:
        return torch.tensor(rows, dtype=torch.int64)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} holds a number that is no token id.") from error


def _are_ids(of: list[Any]) -> bool:
    return all(isinstance(i, int) and not isinstance(i, bool) for i in of)


def encoded(text: str, checkpoint: Path | None) -> Tensor:
    """The ids [1 p] of a text, with the special tokens that the tokenizer adds.

    Raises:
        InputError: there is no tokenizer, or the text has no token.
    """
    if checkpoint is None:
        raise InputError("--text needs a tokenizer, and no checkpoint is known; give --tokens.")
    ids: list[int] = _tokenizer(checkpoint)(text)["input_ids"]
    if not ids:
        raise InputError(f"the text {text!r} has no token; give a longer one.")
    return torch.tensor([ids])


def _tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    if not checkpoint.exists():
        raise InputError(f"{checkpoint}, whose tokenizer --text needs, does not exist.")
    where = {"pretrained_model_name_or_path": str(checkpoint)}
    if checkpoint.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": str(checkpoint.parent)}
        where["gguf_file"] = checkpoint.name
    elif not any((checkpoint / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"{checkpoint} has no tokenizer (none of {', '.join(TOKENIZERS[:4])} …), which --text "
            "needs; copy the tokenizer's files there, or give --tokens."
        )
    try:
        return AutoTokenizer.from_pretrained(**where, local_files_only=True)
    except Exception as error:  # the border: transformers raises a dozen kinds, all meaning "no"
        raise InputError(
            f"transformers cannot read the tokenizer of {checkpoint}: {first_sentence(error)}; give --tokens."
        ) from error


def checkpoint_of(source: str) -> Path | None:
    """The folder or .gguf file of a source; None where it names none."""
    try:
        parsed = parse(source)
    except SourceError:
        return None
    if parsed.kind == "torch":
        return None
    if parsed.kind == "recording":
        where = (Recording.load(parsed.path).checkpoint or {}).get("path")
        return None if where is None else Path(where)
    return Path(parsed.path)
